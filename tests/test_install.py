"""scripts/install.sh in a throw-away home: installs, upgrades, refuses, and never breaks what was there."""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llm_proxy.service import state
from tests.installbed import PATH

ROOT = Path(__file__).parent.parent
COPIED = ("llm_proxy", "scripts", "packaging", "systemd", "docs", "pyproject.toml", "README.md", "LICENSE")
PIP = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "UV_", "SSL_", "REQUESTS_"))}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of this checkout, so that tests can change it."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture
def home(tmp_path):
    """A home with a quote and a space in its name; what still runs in it at the end is stopped."""
    folder = tmp_path / "ho me'x"
    folder.mkdir()
    yield folder
    run = state.read_run(str(folder / ".local/state/llm-proxy"))
    if run is not None and state.alive(run):
        os.kill(run.pid, signal.SIGTERM)
        deadline = time.monotonic() + 60
        while state.alive(run) and time.monotonic() < deadline:
            time.sleep(0.05)


def _install(checkout, home, **environ):
    return subprocess.run(
        ["sh", str(checkout / "scripts/install.sh")],
        env={"HOME": str(home), "PATH": PATH, "PYTHON": sys.executable} | PIP | environ,
        capture_output=True,
        text=True,
        timeout=300,
    )


def _command(home, *arguments):
    program = home / ".local/bin/llm-proxy"
    environ = {"HOME": str(home), "PATH": PATH}
    return subprocess.run([program, *arguments], env=environ, capture_output=True, text=True, timeout=30)


def _status(home):
    return json.loads(_command(home, "--status", "--json").stdout)


def _files(home):
    return sorted(str(path.relative_to(home)) for path in home.rglob("*"))


def test_install_upgrade_and_a_build_that_does_not_run(checkout, home, releases):
    """One home through its life: installed, running; again, a new process on the same port; a broken build changes nothing.

    By pip from where everybody's packages come from, then by uv from a folder.
    """
    done = _install(checkout, home)
    assert done.returncode == 0, done.stderr
    for words in ("RUNNING", "is installed", "not on your PATH yet", "--env"):
        assert words in done.stdout
    assert re.search(r"^Recording: +ok$", done.stdout, re.MULTILINE), "the first thing a user sees is no alarm"
    assert not (home / ".cache").exists(), "no cache of pip's is left where there was none"
    first = _status(home)
    assert first["running"] and stat.S_IMODE((home / ".local/state/llm-proxy/daemon.log").stat().st_mode) == 0o600
    exports = _command(home, "--env")
    assert f"export ANTHROPIC_BASE_URL='{first['url']}/anthropic/api.anthropic.com'\n" in exports.stdout
    shown = re.search(r"Use it in this shell: +(.*)", done.stdout)[1]
    taken = subprocess.run(
        ["sh", "-c", f"{shown}; echo $OPENAI_BASE_URL"],
        env={"HOME": str(home), "PATH": PATH},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert taken.stdout == f"{first['url']}/openai/api.openai.com/v1\n"

    again = _install(checkout, home, **releases.environ())
    assert again.returncode == 0, again.stderr
    second = _status(home)
    assert second["running"] and second["pid"] != first["pid"] and second["port"] == first["port"]

    source = checkout / "llm_proxy/cli/main.py"
    good = source.read_text()
    source.write_text("raise SystemExit('broken')\n")
    try:
        broken = _install(checkout, home, **releases.environ())
    finally:
        source.write_text(good)
    assert broken.returncode == 1 and "the new build does not run; nothing was changed" in broken.stderr
    assert _status(home)["pid"] == second["pid"]
    assert len(list((home / ".local/share/llm-proxy/versions").iterdir())) == 2

    config = home / ".config/llm-proxy/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text("prot = 1\n")
    wrong = _install(checkout, home, **releases.environ())
    assert wrong.returncode == 1 and "did you mean 'port'" in wrong.stderr and "nothing was changed" in wrong.stderr
    config.unlink()
    assert _status(home)["pid"] == second["pid"]


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"HOME": ""}, "HOME must be an absolute path"),
        ({"HOME": "relative"}, "HOME must be an absolute path"),
        ({"HOME": "/nonexistent/home"}, "does not exist"),
        ({"PYTHON": "/bin/false", "PATH": "/usr/bin:/bin"}, "Python 3.11 or newer is needed"),
    ],
)
def test_it_refuses_before_it_writes(checkout, home, environ, words):
    """One clear line, exit 1, nothing left behind."""
    done = _install(checkout, home, **environ)
    assert done.returncode == 1 and words in done.stderr
    assert _files(home) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="sudo's signs are only believed of root")
def test_it_refuses_sudo(checkout, home):
    """It would leave root's files in somebody's home."""
    done = _install(checkout, home, SUDO_USER="alice")
    assert done.returncode == 1 and "without sudo" in done.stderr and _files(home) == []


def test_half_a_script_does_nothing(checkout, home, tmp_path):
    """Cut anywhere before its last line, it changes nothing: that line is what runs it."""
    whole = (checkout / "scripts/install.sh").read_bytes()
    folder = tmp_path / "cut" / "scripts"
    folder.mkdir(parents=True)
    for end in range(0, len(whole) - len(b"main\n"), 97):
        (folder / "install.sh").write_bytes(whole[:end])
        subprocess.run(
            ["sh", folder / "install.sh"],
            env={"HOME": str(home), "PATH": "/usr/bin:/bin"},
            cwd=tmp_path,
            capture_output=True,
            timeout=10,
        )
        assert _files(home) == []


@pytest.mark.parametrize("shell", ["dash", "bash", "zsh"])
@pytest.mark.parametrize("script", ["install.sh", "test.sh"])
def test_the_scripts_are_plain_sh(shell, script):
    """Each shell can parse them."""
    program = shutil.which(shell)
    assert program, f"{shell} is missing: scripts/test.sh installs it"
    subprocess.run([program, "-n", ROOT / "scripts" / script], check=True, timeout=10)
