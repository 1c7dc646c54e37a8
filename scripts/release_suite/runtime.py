"""A Python of the release's own with every package in it, in one folder that runs wherever it is put.

`standalone` is the real thing: a build of python-build-standalone, fetched by uv, which checks it against the sum it
carries. `local` copies the interpreter that runs this, for machines that cannot fetch that: a stand-in, since it needs
this system's libraries. Packages are those of packaging/requirements.txt, each checked against its sums there.

Left out: what no daemon needs (tests, Tk, headers, pip, descriptions of AWS's services) and every command but python
and llm-proxy. Bytecode is shipped, unchecked against its source: the first start is as quick as any, also in a folder
that cannot be written, and the dates that an unpacker gives do not matter.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from release_suite import lock
from release_suite.facts import Facts, NotReleasable

PYTHON = "3.13"  # the minor version that releases carry
# Packages that are published as source only; everything else is taken as built by its authors.
_FROM_SOURCE = "sdnotify"
_UNUSED = (
    "EXTERNALLY-MANAGED",
    "__phello__",
    "config-*",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "lib-dynload/_test*",
    "lib-dynload/_tkinter*",
    "pydoc_data",
    "test",
    "tkinter",
    "turtle.py",
    "turtledemo",
)
_UNUSED_ANYWHERE = ("__pycache__", "*.a", "*.pyc", "*.whl", "tests")
# Of the descriptions of every service of AWS, those from which botocore gets credentials.
_SERVICES = {"signin", "sso", "sso-oidc", "sts"}
# Debian's Python looks for packages elsewhere than others; only a local runtime has this.
_SITE = '''"""Packages lie beside the standard library here, whatever the system's Python is used to."""
import site
import sys

site.addsitedir(f"{sys.prefix}/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages")
'''


def build(facts: Facts, kind: str, wheel: Path, target: Path, work: Path) -> dict[str, str]:
    """Make the tree `target`; the SHA-256 sums of the files that its packages came from, by normalised name."""
    {"standalone": _standalone, "local": _local}[kind](target, work)
    python = target / "bin/python"
    library = _library(target)
    for pattern in _UNUSED:
        _remove(library.glob(pattern))
    shutil.rmtree(library / "site-packages", ignore_errors=True)
    found = _install(facts, python, wheel, library / "site-packages", work)
    shutil.move(library / "site-packages/bin/llm-proxy", target / "bin/llm-proxy")
    _remove([library / "site-packages/bin", library / "site-packages/share"])
    services = (path for path in library.glob("site-packages/botocore/data/*") if path.is_dir())
    _remove(path for path in services if path.name not in _SERVICES)
    for pattern in _UNUSED_ANYWHERE:
        _remove(sorted(library.rglob(pattern)))
    for record in library.glob("site-packages/*.dist-info/RECORD"):
        _keep_true(record)
    _compile(facts, python, target)
    return found


def try_it(folder: Path, version: str) -> None:
    """Run it from where it lies now. Raises NotReleasable."""
    python = folder / "bin/python"
    for command in ([python, "-I", "-m", "llm_proxy", "--version"], [folder / "bin/llm-proxy", "--version"]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if (done.returncode, done.stdout.split("\n")[0]) != (0, f"llm-proxy {version}"):
            raise NotReleasable(f"the runtime does not run: {done.stdout}{done.stderr}")
    loads = "import llm_proxy.service.daemon, llm_proxy.keeper.__main__, botocore.session, yaml, ssl, sqlite3"
    subprocess.run([python, "-I", "-c", loads], check=True, timeout=120)


def _standalone(target: Path, work: Path) -> None:
    uv = [sys.executable, "-m", "uv", "--quiet", "python", "install", "--no-bin", "--install-dir", work / "pythons"]
    if subprocess.run([*uv, PYTHON]).returncode:
        raise NotReleasable("uv could not fetch a standalone Python; --runtime local builds around this one")
    (tree,) = (path for path in (work / "pythons").glob("cpython-*") if not path.is_symlink())
    tree.rename(target)
    for path in (*target.glob("bin/*"), *target.glob("lib/*")):
        if not re.fullmatch(r"bin/python(3(\.\d+)?)?|lib/(python3\.\d+|libpython.*)", str(path.relative_to(target))):
            _remove([path])
    _remove([target / "include", target / "share"])
    executable = (target / "bin/python").resolve()
    if b"libpython" not in executable.read_bytes():  # it holds the library itself
        _remove(target.glob("lib/libpython*"))
    for settings in _library(target).glob("_sysconfigdata*.py"):  # uv wrote into it where it was unpacked
        settings.write_text(settings.read_text().replace(str(tree), "/install"))


def _local(target: Path, work: Path) -> None:
    executable = Path(sys._base_executable).resolve()  # type: ignore[attr-defined]
    name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    library = target / "lib" / name
    skipped = ("__pycache__", "site-packages", "dist-packages", "config-*", "test", "sitecustomize.py")
    shutil.copytree(sysconfig.get_path("stdlib"), library, ignore=shutil.ignore_patterns(*skipped))
    (library / "sitecustomize.py").write_text(_SITE)
    (target / "bin").mkdir()
    shutil.copy(executable, target / "bin" / name)
    for link in ("python", "python3"):
        (target / "bin" / link).symlink_to(name)
    if sysconfig.get_config_var("Py_ENABLE_SHARED"):
        folder, shared = sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("INSTSONAME")
        if (Path(folder) / shared).exists() and folder.encode() in executable.read_bytes():
            shutil.copy(Path(folder) / shared, target / "lib" / shared)
            _find_beside(target / "bin" / name, folder.encode())


def _find_beside(executable: Path, folder: bytes) -> None:
    """Let it look for its library in its own tree: an ELF string may become shorter, never longer."""
    beside = b"$ORIGIN/../lib"
    if len(folder) < len(beside):
        raise NotReleasable(f"the interpreter's library lies in {folder!r}, which cannot become {beside!r}")
    content = executable.read_bytes().replace(folder + b"\0", beside.ljust(len(folder), b"\0") + b"\0")
    executable.write_bytes(content)


def _install(facts: Facts, python: Path, wheel: Path, packages: Path, work: Path) -> dict[str, str]:
    report = work / "report.json"
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "--quiet", "install"]
    common = ["--no-deps", "--no-compile", "--ignore-installed", "--root-user-action=ignore", "--target", packages]
    locked = ["--require-hashes", "--only-binary=:all:", f"--no-binary={_FROM_SOURCE}", "--report", report]
    environ = facts.environ
    subprocess.run([*pip, *common, *locked, "-r", facts.root / lock.CARRIED], check=True, env=environ)
    _remove([packages / "bin"])  # names an interpreter by its path, each of them
    # by name, so that no file says where the wheel lay
    ours = ["--no-index", "--find-links", wheel.parent, f"llm-proxy=={facts.version}"]
    without = {name: value for name, value in environ.items() if name != "PIP_FIND_LINKS"}
    subprocess.run([*pip, *common, *ours], check=True, env=without)
    return {
        _normal(entry["metadata"]["name"]): entry["download_info"]["archive_info"]["hashes"]["sha256"]
        for entry in json.loads(report.read_text())["install"]
    }


def _keep_true(record: Path) -> None:
    """Let it list what is still there: commands that were removed had this build's path in them, and so other sums."""
    rows = [row for row in csv.reader(record.read_text().splitlines()) if (record.parent.parent / row[0]).exists()]
    with record.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _compile(facts: Facts, python: Path, target: Path) -> None:
    environ = facts.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    how = ["-m", "compileall", "-q", "-j", "1", "--invalidation-mode", "unchecked-hash", "-s", target]
    subprocess.run([python, "-s", *how, target / "lib"], check=True, env=environ)


def _library(target: Path) -> Path:
    (library,) = (path for path in target.glob("lib/python3.*") if path.is_dir())
    return library


def _remove(paths: Iterable[Path]) -> None:
    for path in list(paths):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _normal(name: str) -> str:
    """PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()
