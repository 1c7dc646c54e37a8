"""The daemon under systemd: how soon it is ready, what clients notice of restarts and upgrades; and the installer.

systemd is a real one, in a sandbox of the tests (root on Linux). The installer runs on this machine, in homes that are
thrown away. Leaves out what needs another system: launchd, and machines where new shells start the daemon.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from bench_suite.contestants import ROOT
from bench_suite.table import Row
from tests.installbed import Person
from tests.release import NEW, OLD, Releases
from tests.sandbox import Machine, User, why_not

_INSTALLERS = ("PIP_", "SSL_", "REQUESTS_")  # how this machine reaches packages
_PAGE = 8999  # port of the release page in the sandbox, which has a network of its own

# Calls one after the other, each on a new connection, until it is told to stop. Says how many, how many failed, for how
# many ms in all nobody listened, and how long the slowest took.
_CLIENT = r"""
import json, signal, socket, sys, time
to, upstream = int(sys.argv[1]), int(sys.argv[2])
body = b'{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"hi"}]}'
request = (
    b"POST /anthropic/127.0.0.1:%d/v1/messages HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\nConnection: close\r\n\r\n" % (upstream, to, len(body))
) + body
asked, failed, slowest, refused, since = 0, 0, 0.0, 0.0, None
going = True
def stop(*_):
    global going
    going = False
signal.signal(signal.SIGTERM, stop)
while going:
    asked += 1
    begun = time.monotonic()
    try:
        with socket.create_connection(("127.0.0.1", to), 60) as link:
            if since is not None:
                refused, since = refused + begun - since, None
            link.sendall(request)
            answer = b"".join(iter(lambda: link.recv(65536), b""))
        failed += not (answer.startswith(b"HTTP/1.1 200") and answer.rstrip().endswith(b"}"))
        slowest = max(slowest, time.monotonic() - begun)
    except ConnectionRefusedError:
        failed += 1
        since = since or begun
    except OSError:
        failed += 1
    time.sleep(0.002)
print(json.dumps([asked, failed, refused * 1000, slowest * 1000]))
"""


def rows(*, quick: bool) -> list[Row]:
    found = _installing()
    if reason := why_not():
        return [*found, *(Row(label, void=reason) for label in ("ready after start, p50", "refused at a restart"))]
    with TemporaryDirectory(prefix="llm-proxy-bench-") as name:
        folder = Path(name)
        releases = Releases(folder / "releases")
        (folder / "systemd").mkdir()
        machine = Machine(folder / "systemd")
        try:
            machine.binds.append(folder / "releases")
            machine.boot()
            return found + _running(machine, releases, 5 if quick else 31, 2 if quick else 7)
        finally:
            machine.close()


def _installing() -> list[Row]:
    """From this checkout, twice: the second time the packages are in pip's cache."""
    with TemporaryDirectory(prefix="llm-proxy-bench-") as name:
        packages = {key: value for key, value in os.environ.items() if key.startswith(_INSTALLERS)}
        packages |= {"PIP_CACHE_DIR": f"{name}/cache", "PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}
        for home in ("first", "second"):
            person = Person(Path(name) / home, packages)
            begun = time.monotonic()
            subprocess.run(
                ["sh", ROOT / "scripts/install.sh"], env=person.environ(), stdout=subprocess.DEVNULL, check=True
            )
            taken = time.monotonic() - begun
            assert person.status()["recording"] == "ok"
            assert person.command("--uninstall").returncode == 0
            after = person.snapshot()
            changed = len(after.items() ^ person.before.items())
    return [
        Row("install from a checkout, warm cache", {"ours": f"{taken:.1f} s"}, taken),
        Row("changed in the home by install and uninstall", {"ours": str(changed)}, changed),
    ]


def _running(machine: Machine, releases: Releases, starts: int, restarts: int) -> list[Row]:
    user = machine.user("bench")
    user.log_in()
    upstream = _provider(user)
    user.run(f"{sys.executable} -m http.server {_PAGE} --directory {releases.page} >/dev/null 2>&1 </dev/null &")
    _install(user, releases, OLD)
    ready = _ready(user, starts)
    restart = "systemctl --user reset-failed llm-proxy; systemctl --user restart llm-proxy"
    plain = _meanwhile(user, upstream, f"for i in $(seq {restarts}); do {restart}; sleep 0.5; done")
    busy = _meanwhile(
        user, upstream, f"for i in $(seq {restarts}); do {_stream(user, upstream)}; {restart}; wait; done"
    )
    upgrade = _meanwhile(user, upstream, lambda: _install(user, releases, NEW))
    user.run("llm-proxy --setup --socket-activation")
    activated = _meanwhile(user, upstream, lambda: _install(user, releases, OLD))
    return [
        Row("ready after start, p50", {"ours": f"{ready:.0f} ms"}, ready),
        *_noticed("a restart", plain, restarts),
        *_noticed("a restart, a stream open", busy, restarts),
        *_noticed("an upgrade", upgrade, 1),
        Row(
            "failed over an upgrade, socket activation",
            {"ours": f"{activated[1]:.0f} of {activated[0]:,.0f}"},
            activated[1],
        ),
    ]


def _noticed(event: str, measured: list[float], times: int) -> list[Row]:
    asked, failed, refused, slowest = measured
    return [
        Row(f"refused at {event}", {"ours": f"{refused / times:.0f} ms"}, refused / times),
        Row(f"failed over {event}, slowest", {"ours": f"{failed:.0f} of {asked:,.0f}, {slowest:.0f} ms"}),
    ]


def _install(user: User, releases: Releases, version: str) -> None:
    environ = releases.environ() | {"LLM_PROXY_BASE_URL": f"http://127.0.0.1:{_PAGE}", "PYTHON": sys.executable}
    path = f"{user.home}/.local/bin:/usr/bin:/bin"
    user.run(f"sh -s -- --version {version} < {ROOT}/scripts/install.sh", timeout=300, PATH=path, **environ)


def _provider(user: User) -> int:
    """Start the fake provider; its port."""
    user.run(f"cd {ROOT} && {{ {sys.executable} -m tests.fakeprovider > $HOME/provider 2>&1 </dev/null & }}")
    user.run("for i in $(seq 200); do grep -q PORT provider && break; sleep 0.05; done")
    return int(user.run("cut -d ' ' -f 2 provider").stdout)


def _ready(user: User, times: int) -> float:
    """Milliseconds from `systemctl start` to its return, which READY=1 allows."""
    script = (
        f"for i in $(seq {times}); do systemctl --user stop llm-proxy; systemctl --user reset-failed llm-proxy; "
        "a=$(date +%s%N); systemctl --user start llm-proxy; echo $(($(date +%s%N) - a)); done"
    )
    return median(int(line) / 1e6 for line in user.run(script, timeout=300).stdout.split())


def _stream(user: User, upstream: int) -> str:
    """A script that opens a call whose answer takes about two seconds, once the daemon answers."""
    url = f"http://127.0.0.1:{_port(user)}/anthropic/127.0.0.1:{upstream}/v1/messages"
    body = '{"model":"m","max_tokens":9,"stream":true,"messages":[{"role":"user","content":"hi"}]}'
    return f"curl -sN -m 60 -H 'X-Fake: words=60; slow=30' -d '{body}' {url} >/dev/null & sleep 0.5"


def _port(user: User) -> int:
    return int(user.run("cat .local/state/llm-proxy/last_port").stdout)


def _meanwhile(user: User, upstream: int, event: str | Callable[[], None]) -> list[float]:
    """What a client finds while a script runs, or a function: calls, failed ones, ms of refusals, ms of the slowest."""
    user.run(f"cat > client.py <<'END'\n{_CLIENT}END")
    user.run(
        f"{sys.executable} client.py {_port(user)} {upstream} > told 2>&1 </dev/null & echo $! > client; sleep 0.5"
    )
    user.run(event, timeout=300) if isinstance(event, str) else event()
    user.run("sleep 0.5; kill $(cat client); for i in $(seq 600); do [ -s told ] && break; sleep 0.1; done")
    told = user.run("cat told").stdout
    return [float(word) for word in told.strip("[]\n").split(",")]
