"""Releases that bring their own Python, for tests: the interpreter that runs them, copied, with what it has installed.

What scripts/release builds comes from locked packages and is compiled; here two versions must be there within seconds.
The archive for machines without such a Python is on the page too, and empty.
"""

import functools
import importlib.metadata
import shutil
import subprocess
import sys
import tarfile

import pytest
from packaging.requirements import Requirement

from tests.release import NEW, OLD, ROOT, add_sums, copy_sources


@functools.cache
def machine():
    processor = subprocess.check_output(["uname", "-m"], text=True).strip()
    return "linux-" + {"amd64": "x86_64", "arm64": "aarch64"}.get(processor, processor)


def archive(version):
    return f"llm-proxy-{version}-{machine()}.tar.gz"


class Bundled:
    """`page` is the folder to serve."""

    def __init__(self, folder):
        self.page = folder / "page"
        tree = folder / "runtime"
        packages = _interpreter(tree, folder) / "site-packages"
        for name in _needed("llm-proxy") - {"llm-proxy"}:
            _copy(importlib.metadata.distribution(name), packages)
        for version in (OLD, NEW):
            self._add(version, tree, packages, folder / version)
        (self.page / "latest").mkdir()
        (self.page / "latest/download").symlink_to(f"../download/v{NEW}")

    def _add(self, version, tree, packages, source):
        page, name = self.page / f"download/v{version}", f"llm-proxy-{version}"
        page.mkdir(parents=True)
        copy_sources(source, version)
        shutil.rmtree(packages / "llm_proxy", ignore_errors=True)
        (source / "llm_proxy").rename(packages / "llm_proxy")
        tarfile.open(page / f"{name}.tar.gz", "w:gz").close()
        with tarfile.open(page / archive(version), "w:gz", compresslevel=1) as packed:
            packed.add(source / "packaging/launcher.sh", f"{name}/launcher.sh")
            packed.add(tree, f"{name}/runtime")
        shutil.copy(ROOT / "scripts/install.sh", page)
        add_sums(page)


def _interpreter(tree, work):
    """As scripts/release copies the local one; its library folder."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        from release_suite import runtime
    finally:
        sys.path.remove(str(ROOT / "scripts"))
    runtime._local(tree, work)
    (library,) = (path for path in tree.glob("lib/python3.*") if path.is_dir())
    for name in ("idlelib", "lib2to3", "pydoc_data", "ensurepip", "tkinter", "turtledemo"):
        shutil.rmtree(library / name, ignore_errors=True)
    return library


def _needed(name):
    """The package and all it needs, without extras."""
    found, left = set(), [name]
    while left:
        if (name := left.pop()) not in found:
            found.add(name)
            wanted = map(Requirement, importlib.metadata.requires(name) or ())
            left += [one.name for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found


def _copy(package, folder):
    for file in package.files:
        if ".." not in file.parts:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file.locate(), folder / file)


@pytest.fixture(scope="session")
def bundled(tmp_path_factory):
    """Two versions, built once."""
    return Bundled(tmp_path_factory.mktemp("bundled"))
