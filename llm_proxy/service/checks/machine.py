"""The machine: its clock, its disks, its certificates, and, where asked to, whether the providers can be reached."""

from __future__ import annotations

import http.client
import os
import ssl
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path

import llm_proxy
from llm_proxy.proxy.dialler import DialFailed, proxy_for
from llm_proxy.service.checks.daemon import forget
from llm_proxy.service.checks.scene import Finding, Scene, note, problem, quoted

PROVIDERS = ("api.anthropic.com", "api.openai.com", "generativelanguage.googleapis.com")
_ONLINE_LIMIT = 5.0  # seconds for each provider
_CLOCK_LIMIT = 300.0  # seconds; request signatures (SigV4) and short-lived tokens allow about that
_DAY = 86400.0
_FULL, _TIGHT = 100 * 10**6, 10**9  # bytes


def clock(scene: Scene) -> Iterator[Finding]:
    """A clock before the day this program was installed gives every record a wrong date, and breaks TLS."""
    installed = Path(llm_proxy.__file__).stat().st_mtime
    if time.time() < installed - _DAY:
        yield problem(f"the clock says {time.strftime('%Y-%m-%d')}, before this was installed", _set_clock(scene))


def disk(scene: Scene) -> Iterator[Finding]:
    seen = set()
    for folder in (scene.state, scene.status.logs.folder):
        place = _existing(Path(folder))
        if (device := place.stat().st_dev) in seen:
            continue
        seen.add(device)
        facts = os.statvfs(place)
        free = facts.f_bavail * facts.f_frsize
        logs = Path(scene.status.logs.folder)
        mend = forget(logs) if scene.status.logs.size > _FULL else f"du -xh {quoted(place)} | sort -h | tail"
        if facts.f_files and not facts.f_favail:
            yield problem(f"the disk of {place} can hold no more files: calls are carried, not recorded", mend)
        elif free < _FULL:
            yield problem(f"the disk of {place} is full: calls are carried, not recorded", mend)
        elif free < _TIGHT:
            yield note(f"the disk of {place} has {free / 10**6:.0f} MB left", mend)


def certificates(scene: Scene) -> Iterator[Finding]:
    """What TLS to the providers rests on, as far as it can be seen without the network."""
    wrong = [n for n in ("SSL_CERT_FILE", "SSL_CERT_DIR") if (p := scene.environ.get(n)) and not Path(p).exists()]
    for name in wrong:
        yield problem(f"{name} names {scene.environ[name]}, which does not exist", scene.unset(name))
    places = ssl.get_default_verify_paths()
    folder = Path(places.capath) if places.capath else None
    if not wrong and not places.cafile and not (folder and any(folder.iterdir())):
        install = "brew install ca-certificates" if scene.platform == "darwin" else "sudo apt install ca-certificates"
        yield problem("there are no CA certificates: no provider can be verified", install)


def providers(scene: Scene) -> Iterator[Finding]:
    """A TLS connection to each provider, and the time it has. No key is sent."""
    for host in PROVIDERS:
        try:
            yield from _skewed(scene, host, _date(scene, host))
        except ssl.SSLCertVerificationError as exc:
            text = f"{host} shows a certificate that is not trusted ({exc.verify_message}): TLS is intercepted here"
            yield problem(f"{text}; SSL_CERT_FILE names its CA", f"openssl s_client -showcerts -connect {host}:443")
        except (OSError, http.client.HTTPException, DialFailed) as exc:
            yield note(f"{host} cannot be reached: {exc}", f"curl -v -o /dev/null https://{host}/")


def _skewed(scene: Scene, host: str, date: str) -> Iterator[Finding]:
    try:
        ahead = time.time() - parsedate_to_datetime(date).timestamp()
    except ValueError:
        return
    if abs(ahead) > _CLOCK_LIMIT:
        way = "ahead of" if ahead > 0 else "behind"
        yield problem(f"the clock is {abs(ahead):.0f} s {way} that of {host}", _set_clock(scene))


def _date(scene: Scene, host: str) -> str:
    """Its Date header. Raises OSError, HTTPException, DialFailed."""
    proxy = proxy_for(host, 443, scene.environ)
    at, port = (proxy.host, proxy.port) if proxy else (host, 443)
    link = http.client.HTTPSConnection(at, port, timeout=_ONLINE_LIMIT)
    try:
        if proxy:
            name, _, value = proxy.authorization.strip().partition(": ")
            link.set_tunnel(host, 443, {name: value} if name else {})
        link.request("HEAD", "/")
        return link.getresponse().getheader("date", "")
    finally:
        link.close()


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _set_clock(scene: Scene) -> str:
    return "sudo sntp -sS time.apple.com" if scene.platform == "darwin" else "sudo timedatectl set-ntp true"
