"""A release as the web would serve it: built from this checkout, laid out as on a release page, served on loopback.

`python -m tests.release FOLDER` builds one there, serves it and prints the command that installs it. What a real release
holds beyond this is not decided here.
"""

import functools
import hashlib
import http.server
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import tomllib
from pathlib import Path

import pytest

from tests.installbed import PATH
from tests.sharing import built_once

ROOT = Path(__file__).parent.parent
OLD, NEW = "0.0.8", "0.0.9"
_SOURCES = ("llm_proxy", "packaging", "pyproject.toml", "README.md", "LICENSE")
# How packages are found and trusted here; nothing else of this process's environment reaches pip.
_REACH = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "REQUESTS_", "HTTP"))}


# What the installer adds to the package, and what builds it.
EXTRAS = re.search(r"(?m)^EXTRAS=(.+)$", (ROOT / "scripts/install.sh").read_text())[1]
BUILDERS = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]


class Releases:
    """`page` is the folder to serve; `wheels` holds every package a release needs, so that no test needs the web.

    `path` is a PATH that has uv, too, where it is to be had.
    """

    def __init__(self, folder):
        self.page, self.wheels, self._cache = (Path(folder) / name for name in ("page", "wheels", "cache"))
        self.path = f"{folder}/bin:{PATH}"

    def build(self):
        folder = self.page.parent
        self.wheels.mkdir(parents=True)
        (folder / "bin").mkdir()
        if uv := shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"):
            (folder / "bin/uv").symlink_to(uv)
        subprocess.run([sys._base_executable, "-m", "venv", f"{folder}/tools"], check=True)
        for version in (OLD, NEW):
            self._build(folder, version)
        (self.page / "latest").mkdir()
        (self.page / "latest/download").symlink_to(f"../download/v{NEW}")
        return self

    def _build(self, folder, version):
        source, name = folder / version, f"llm-proxy-{version}"
        copy_sources(source, version)
        others = BUILDERS if version == OLD else ["--no-deps"]
        pip = [f"{folder}/tools/bin/python", "-I", "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "wheel", *others, "-w", self.wheels, f"{source}[{EXTRAS}]"], check=True, env=_environ())
        if version == OLD:  # asked for before Python 3.11.3, which a distribution's interpreter may be
            subprocess.run([*pip, "wheel", "--no-deps", "-w", self.wheels, "async-timeout"], check=True, env=_environ())
        (wheel,) = self.wheels.glob(f"llm_proxy-{version}-*.whl")
        page = self.page / f"download/v{version}"
        page.mkdir(parents=True)
        with tarfile.open(page / f"{name}.tar.gz", "w:gz") as archive:
            archive.add(wheel, f"{name}/{wheel.name}")
            archive.add(source / "packaging/launcher.sh", f"{name}/launcher.sh")
        wheel.unlink()
        shutil.copy(ROOT / "scripts/install.sh", page)
        add_sums(page)

    def environ(self):
        """For an installation that takes its packages from here, by uv: pip takes four times as long."""
        return self.found(self.wheels) | {"PATH": self.path, "UV_CACHE_DIR": str(self._cache)}

    @staticmethod
    def found(wheels):
        """Packages are looked for there and nowhere else, by uv and by pip."""
        uv = {"UV_OFFLINE": "1", "UV_FIND_LINKS": str(wheels), "UV_NO_CONFIG": "1"}
        return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_DISABLE_PIP_VERSION_CHECK": "1"} | uv


class Server:
    """Serves a folder on loopback; `script` is the installer as this release would publish it."""

    def __init__(self, folder):
        handler = functools.partial(_Quiet, directory=str(folder))
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        text = (ROOT / "scripts/install.sh").read_text()
        self.script, count = re.subn(r"(?m)^published=$", f"published={self.url}", text)
        assert count == 1
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def copy_sources(folder, version):
    """This checkout as if it were that version."""
    folder.mkdir()
    for name in _SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    module = folder / "llm_proxy/__init__.py"
    module.write_text(re.sub(r'(?m)^__version__ = ".*"$', f'__version__ = "{version}"', module.read_text()))


def add_sums(page):
    """Write SHA256SUMS for the files of a release's folder, as sha256sum does."""
    names = sorted(path.name for path in page.iterdir() if path.name != "SHA256SUMS")
    sums = [f"{hashlib.sha256((page / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (page / "SHA256SUMS").write_text("".join(sums))


def _environ():
    return {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ} | _REACH


@pytest.fixture(scope="session")
def releases(tmp_path_factory):
    """Two versions, built once for all workers of a test run."""
    return Releases(built_once(tmp_path_factory, "releases", lambda folder: Releases(folder).build()))


@pytest.fixture
def serve():
    """Serve a folder for the time of a test."""
    running = []

    def begin(folder):
        running.append(Server(folder))
        return running[-1]

    yield begin
    for server in running:
        server.close()


def main():
    folder = Path(sys.argv[1])
    releases = Releases(folder).build()
    server = Server(releases.page)
    (releases.page / "install.sh").write_text(server.script)
    print(f"curl -fsSL {server.url}/install.sh | sh", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
