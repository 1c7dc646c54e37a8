"""Imports go strictly down, and what must stay small imports little."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import llm_proxy

ROOT = Path(llm_proxy.__file__).parent

# Each part may import the parts on its right, and `errors`, `paths` only where they are named.
ALLOWED = {
    "wire": set(),
    "dialects": {"wire"},
    "records": {"dialects", "wire"},
    "journal": {"records", "dialects", "wire"},
    "sinks": {"records", "dialects", "wire"},
    "proxy": {"journal", "records", "wire", "unix"},
    "index": {"sinks", "records", "dialects", "wire"},
    "formats": {"index", "sinks", "records", "dialects", "wire", "errors"},
    "keeper": {"index", "sinks", "journal", "records", "dialects", "wire"},
    "explorer": {"index", "formats", "sinks", "journal", "records", "dialects", "wire", "unix", "web"},
    "gateway": {"records", "dialects", "wire", "unix", "web"},
    "lanes": {"formats", "index", "sinks", "records", "dialects", "wire"},
    "service": {
        "explorer",
        "gateway",
        "lanes",
        "keeper",
        "proxy",
        "formats",
        "index",
        "sinks",
        "journal",
        "records",
        "dialects",
        "wire",
        "settings",
        "paths",
        "unix",
        "errors",
    },
    "cli": {"service", "formats", "index", "sinks", "records", "dialects", "wire", "settings", "paths", "errors"},
    "settings": {"paths", "errors"},
    "paths": set(),
    "unix": set(),
    "web": set(),
    "errors": set(),
    "__main__": {"cli"},
}


def _modules():
    return sorted(ROOT.rglob("*.py"))


def _part(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _imports(path):
    """(line, part of llm_proxy) for every import of ours, wherever it stands in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} is relative"
            names = [node.module]
            if node.module == "llm_proxy":
                names = [f"llm_proxy.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("llm_proxy.") and not name.endswith(".__version__"):
                yield node.lineno, name.split(".")[1]


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_strictly_down(path):
    """cli -> service -> keeper, proxy -> sinks, journal -> records -> dialects -> wire, and never up."""
    part = _part(path)
    if part == "__init__":
        assert not list(_imports(path))
        return
    for line, target in _imports(path):
        assert target == part or target in ALLOWED[part], f"{path}:{line}: {part} must not import {target}"


def test_the_table_holds_every_part():
    """A new package is a decision about what it may import."""
    assert {_part(path) for path in _modules()} - {"__init__"} == set(ALLOWED)


def test_packages_hold_a_docstring_and_no_code():
    """Importing a package must not import its modules."""
    for path in ROOT.rglob("__init__.py"):
        body = ast.parse(path.read_text()).body
        assert isinstance(body[0], ast.Expr) and isinstance(body[0].value.value, str), path
        assert len(body) == (2 if path.parent == ROOT else 1), path  # the root holds the version too


def test_the_daemon_does_without_the_heavy_ones():
    """The proxy process is small: no SQL, no web framework, no parsers of files, nothing of the dialects."""
    code = "import sys, llm_proxy.service.daemon; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, timeout=30)
    loaded = set(done.stdout.split())
    heavy = {"aiohttp", "argparse", "msgspec", "psutil", "sqlite3", "tomllib", "tomlkit", "yaml", "http.client"}
    assert not loaded & (heavy | {"llm_proxy.dialects", "llm_proxy.sinks", "llm_proxy.settings"})
    assert not loaded & _GATEWAYS and not [name for name in loaded if name.startswith("llm_proxy.gateway")]


# What only a gateway's own process needs, and the commands that look after its store.
_GATEWAYS = {"aiosqlite", "alembic", "argon2", "asyncpg", "bcrypt", "bpe_openai", "cryptography", "jwt", "redis"}
_GATEWAYS |= {"sqlalchemy", "greenlet"}


@pytest.mark.parametrize("command", [["--env"], ["--status"], ["doctor"], ["sessions"], ["stats"], ["--help"]])
def test_commands_load_nothing_of_the_gateways(command, environ):
    """Whoever has no team pays nothing for it: neither its packages nor, but for what it is told, its modules."""
    code = "import sys, runpy, atexit\natexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
    code += "sys.argv[0] = 'llm-proxy'\nrunpy.run_module('llm_proxy', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, timeout=60, env=environ
    )
    loaded = set(done.stderr.split())
    assert "llm_proxy.cli" in loaded, done.stderr
    assert not loaded & _GATEWAYS
    ours = {name for name in loaded if name.startswith("llm_proxy.gateway.")}
    assert ours <= {"llm_proxy.gateway.options"}, ours


def test_only_the_service_imports_the_gateway():
    """And of its modules only what tells it and what looks after its store; the heavy ones in one module of the service."""
    found = set()
    for path in _modules():
        if _part(path) != "gateway":
            found |= {(path.relative_to(ROOT).as_posix(), line) for line, part in _imports(path) if part == "gateway"}
    assert {name for name, _ in found} == {
        "service/gateway.py",
        "service/gateway_care.py",
        "service/gateway_secrets.py",
    }
