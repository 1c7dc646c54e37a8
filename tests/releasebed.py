"""A release as scripts/release builds it, from a clean checkout of its own; built once for all workers of a test run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from release_suite import facts

from llm_proxy import __version__ as VERSION
from tests.sharing import built_once

ROOT = Path(__file__).parent.parent
BASE = "https://example.invalid/llm-proxy/releases"
EPOCH = 1700000000
HERE = facts.this_platform()
NAME = f"llm-proxy-{VERSION}"
TARBALL = f"{NAME}-{HERE[0]}-{HERE[1]}.tar.gz"
# Built on other machines: here only their sums matter.
OTHERS = [f"{NAME}-{system}-{machine}.tar.gz" for system, machine in facts.PLATFORMS if (system, machine) != HERE]
_SOURCES = (
    "llm_proxy",
    "scripts",
    "packaging",
    "homebrew",
    "systemd",
    "docs",
    "pyproject.toml",
    "README.md",
    "LICENSE",
)


def checkout(folder):
    """This checkout, committed as a whole and ready to be released."""
    folder.mkdir(parents=True)
    for name in _SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    shutil.copy(ROOT / ".gitignore", folder)
    changes = (ROOT / "CHANGELOG.md").read_text()
    heading = rf"(?m)^## \[{re.escape(VERSION)}\] - .*$"
    (folder / "CHANGELOG.md").write_text(re.sub(heading, f"## [{VERSION}] - 2023-11-14", changes))
    git = ["git", "-C", folder, "-c", "user.name=A", "-c", "user.email=a@example.invalid"]
    date = {"GIT_AUTHOR_DATE": f"{EPOCH} +0000", "GIT_COMMITTER_DATE": f"{EPOCH} +0000"}
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "All of it"]):
        subprocess.run([*git, *command], check=True, env=os.environ | date)
    return folder


def run(folder, *options, **environ):
    """scripts/release in that checkout; the completed process."""
    changes = {"PYTHON": sys.executable, "LC_ALL": "C.UTF-8"} | environ
    return subprocess.run(
        [folder / "scripts/release", *map(str, options)],
        env={name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"} | changes,
        capture_output=True,
        text=True,
        timeout=600,
        cwd=folder,
    )


def build(folder):
    """Release that checkout as the workflow does, around the local Python and without the package for Debian."""
    out = folder / "dist"
    out.mkdir()
    for name in OTHERS:
        (out / name).write_bytes(name.encode())
    done = run(folder, "--out", "dist", "--runtime", "local", "--base", BASE, "--no-deb")
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done.stdout


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """A clean checkout, and beside it what it said when it was released."""

    def make(folder):
        _, said = build(checkout(folder / "source"))
        (folder / "said").write_text(said)

    return built_once(tmp_path_factory, "release", make) / "source"


@pytest.fixture(scope="session")
def release(source):
    """The folder of a release; not to be changed."""
    return source / "dist"


def unpack(release, folder):
    """The tarball of this platform; what it unpacks to."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["tar", "-xzf", release / TARBALL, "-C", folder], check=True)
    return folder / NAME
