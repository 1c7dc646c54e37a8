"""`llm-proxy upgrade`: which release there is, and handing over to its installer; or back to the version before.

For what scripts/install.sh has installed. All that changes anything is that script's doing: it tries a version before
it switches, switches in one rename, and goes back where something fails. This asks only where the version that runs
came from, over TLS unless that is this machine, and sends no credentials. Leaves out other ways of installing: their
own tools upgrade them.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import IO, NamedTuple, NoReturn
from urllib.parse import urlsplit

from llm_proxy import __version__, paths
from llm_proxy.errors import CannotUpgrade
from llm_proxy.service import shells
from llm_proxy.service.origin import origin

_SHELL = "/bin/sh"
_LARGEST = 1 << 20  # bytes; both files have a few thousand
_SILENCE, _LIMIT = 20.0, 60.0  # seconds without a byte, and for a whole file
_VERSION = re.compile(r"(\d+(?:\.\d+)*)(?:\.?(dev|a|b|rc|post)(\d+))?")
_ORDER = ("dev", "a", "b", "rc", "", "post")  # PEP 440, in the forms that releases have
_ARCHIVE = re.compile(r"llm-proxy-([0-9][0-9A-Za-z.+]*)\.tar\.gz")
_SUM = re.compile(r"([0-9a-f]{64}) [ *](\S+)")


class Installed(NamedTuple):
    """What install.sh noted of the version that runs: `folder` holds it, `base` is where releases lie."""

    folder: Path
    base: str
    python_env: bool


class Release(NamedTuple):
    """`sums`: SHA-256 in hex by file name."""

    version: str
    place: str
    sums: Mapping[str, str]


def installed(environ: Mapping[str, str]) -> Installed:
    """Raises CannotUpgrade where this command is not the one that upgrades it."""
    folder = _version_folder()
    facts = _facts(folder)
    if "checkout" in facts:
        again = f"git -C {facts['checkout']} pull && sh {facts['checkout']}/scripts/install.sh"
        raise CannotUpgrade(f"it was installed from the checkout {facts['checkout']}; to upgrade it: {again}")
    base = (environ.get("LLM_PROXY_BASE_URL") or facts.get("base", "")).rstrip("/")
    if not base:
        raise CannotUpgrade("it is not known where its releases lie; LLM_PROXY_BASE_URL=https://... says so")
    return Installed(folder, _allowed(base), facts.get("python-env") == "yes")


def find(base: str, version: str = "") -> Release:
    """A release, or the newest. Raises CannotUpgrade."""
    where = f"{base}/download/v{version}" if version else f"{base}/latest/download"
    text = fetch(f"{where}/SHA256SUMS").decode("utf-8", "replace")
    lines = [found.groups() for found in map(_SUM.fullmatch, text.splitlines()) if found]
    named = [found[1] for found in map(_ARCHIVE.fullmatch, (name for _, name in lines)) if found]
    if len(named) != 1 or (version and named != [version]):
        raise CannotUpgrade(f"{where}/SHA256SUMS does not name one llm-proxy-{version or 'VERSION'}.tar.gz")
    if len(sums := {name: digest for digest, name in lines}) != len(lines):
        raise CannotUpgrade(f"{where}/SHA256SUMS names a file twice")
    return Release(named[0], f"{base}/download/v{named[0]}", sums)


def is_newer(version: str, than: str = __version__) -> bool:
    """Raises CannotUpgrade for what is no version."""
    return _key(version) > _key(than)


def hand_over(here: Installed, release: Release, environ: Mapping[str, str], *, dry_run: bool) -> NoReturn:
    """Become the release's installer, which is checked first. Raises CannotUpgrade, and then nothing is changed."""
    url = f"{release.place}/install.sh"
    script = fetch(url)
    if hashlib.sha256(script).hexdigest() != release.sums.get("install.sh"):
        raise CannotUpgrade(f"{url} is not what the release's SHA256SUMS says; nothing was changed")
    try:
        with tempfile.TemporaryFile() as file:  # with no name, so that nothing is left wherever this ends
            file.write(script)
            file.seek(0)
            os.dup2(file.fileno(), 0)
    except OSError as exc:
        raise CannotUpgrade(f"the installer cannot be written into {tempfile.gettempdir()}: {exc.strerror}") from exc
    words = ["-s", "--", "--version", release.version, *(["--python-env"] if here.python_env else [])]
    placed = _placed(here.folder, environ) | {"LLM_PROXY_BASE_URL": here.base}
    _become([*words, *_wishes(environ, dry_run)], placed)


def roll_back(environ: Mapping[str, str], *, dry_run: bool) -> NoReturn:
    """Become the installer that came with this version, which goes back. Raises CannotUpgrade."""
    folder = _version_folder()
    script = folder / "install.sh"
    if not script.is_file():
        raise CannotUpgrade(f"{script} is missing, which would go back; --version V installs any version anew")
    _become([str(script), "--rollback", *_wishes(environ, dry_run)], _placed(folder, environ))


def fetch(url: str) -> bytes:
    """A small file. Raises CannotUpgrade."""
    try:
        if url.startswith("file://"):
            with open(url.removeprefix("file://"), "rb") as file:  # noqa: PTH123
                content = file.read(_LARGEST + 1)
        else:
            content = _downloaded(url)
    except (OSError, ValueError, http.client.HTTPException) as exc:
        raise CannotUpgrade(f"{url} cannot be fetched: {exc}") from exc
    if len(content) > _LARGEST:
        raise CannotUpgrade(f"{url} has more than {_LARGEST >> 20} MiB, which no such file has")
    return content


def _downloaded(url: str) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": f"llm-proxy/{__version__}"})
    deadline = time.monotonic() + _LIMIT
    content = bytearray()
    with _opener(url).open(request, timeout=_SILENCE) as answer:
        while len(content) <= _LARGEST and (piece := answer.read1(65536)):
            content += piece
            if time.monotonic() > deadline:
                raise TimeoutError(f"it takes longer than {_LIMIT:g} s")
        if len(content) <= _LARGEST and answer.length:
            raise http.client.IncompleteRead(bytes(content), answer.length)
    return bytes(content)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Followed, but from a secure address to secure ones only."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if req.type == "https" and urlsplit(newurl).scheme != "https":
            raise CannotUpgrade(f"{req.full_url} leads to an address without TLS, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, _allowed(newurl))


def _opener(url: str) -> urllib.request.OpenerDirector:
    """What urllib opens by itself, without FTP, files and other things that an address may lead to."""
    proxies: dict[str, str] | None = None if url.startswith("https:") else {}  # None: those of the environment
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(proxies),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        _Redirects(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _allowed(url: str) -> str:
    """The address, if a program may come from there. Raises CannotUpgrade."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError as exc:
        raise CannotUpgrade(f"{url!r} is no address: {exc}") from exc
    if "@" in parts.netloc:
        raise CannotUpgrade(f"the address of releases at {host} holds a user's name; credentials are not sent")
    allowed = {
        "https": bool(host),
        "http": _is_here(host),
        "file": not parts.netloc and parts.path.startswith("/"),
    }
    if allowed.get(parts.scheme):
        return url
    raise CannotUpgrade(f"releases are taken from https:// addresses, this machine and file:/// only, not from {url!r}")


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _key(version: str) -> tuple[list[int], int, int]:
    found = _VERSION.fullmatch(version.partition("+")[0])
    if found is None:
        raise CannotUpgrade(f"{version!r} is not a version as releases have them, such as 1.2.3 or 1.2.3rc1")
    numbers = [int(part) for part in found[1].split(".")]
    while numbers and not numbers[-1]:
        numbers.pop()
    return numbers, _ORDER.index(found[2] or ""), int(found[3] or 0)


def _version_folder() -> Path:
    found = origin()
    if found.kind != "script":
        raise CannotUpgrade(f"it was installed by other means ({found.kind}); to upgrade it: {found.upgrade}")
    return found.place


def _facts(folder: Path) -> dict[str, str]:
    try:
        lines = (folder / "release").read_text("utf-8").splitlines()
    except (OSError, ValueError):
        return {}
    return {name: value for name, _, value in (line.partition(" ") for line in lines)}


def _wishes(environ: Mapping[str, str], dry_run: bool) -> list[str]:
    """What was chosen before stays: whoever has no block in a shell's file gets none by an upgrade."""
    return [*([] if shells.patched(environ) else ["--no-shell"]), *(["--dry-run"] if dry_run else [])]


def _placed(folder: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment with which the installer finds the versions where this one lies."""
    versions = folder.parent
    usual = (Path(paths.data_folder()) / "versions").resolve() == versions
    return {**environ} if usual else {**environ, "XDG_DATA_HOME": str(versions.parent.parent)}


def _become(words: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
    sys.stdout.flush()
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and what is ignored stays so
        signal.signal(number, signal.SIG_DFL)
    os.execve(_SHELL, ["sh", *words], environ)
