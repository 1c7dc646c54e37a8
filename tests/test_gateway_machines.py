"""A gateway of several processes and machines: who serves when one is killed, stopped, drained or replaced by a newer one.

Clients keep a count of their own, which the usage log is held against.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import llm_proxy
from llm_proxy import unix
from llm_proxy.proxy.gateway import Gateway as Door
from tests.fakeprovider import FakeProvider
from tests.gatewaybed import SECRETS, Gateway, gateways
from tests.gatewaystore import an_empty_url
from tests.redisbed import a_redis
from tests.test_gateway_door import Team, ask, team
from tests.test_gateway_whole import CHAT, HELLO, eventually, furnished

__all__ = ["gateways", "team"]


class Load:
    """Clients that call for as long as the block lasts, one call after another, on connections they keep.

    `counts` is how many answers of each status there were, 0 for none; `slowest` the longest wait in seconds.
    """

    def __init__(self, ports: list[int], key: str, clients: int = 6) -> None:
        self.counts: Counter[int] = Counter()
        self.told: list[str] = []
        self.slowest = 0.0
        self._stop = threading.Event()
        self._guard = threading.Lock()
        self._key = key
        self._threads = [threading.Thread(target=self._call, args=(ports[n % len(ports)],)) for n in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    def more(self, count: int, seconds: float = 30.0) -> None:
        """Until so many more calls have been answered well."""
        wanted = self.counts[200] + count
        eventually(lambda: self.counts[200] >= wanted, seconds, lambda: (self.counts, self.told[:5]))

    def _call(self, port: int) -> None:
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        link = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                link.request("POST", CHAT, json.dumps(HELLO), headers)
                response = link.getresponse()
                body, status = response.read(), response.status
            except (OSError, http.client.HTTPException) as error:
                body, status = repr(error).encode(), 0
                link.close()
            with self._guard:
                self.counts[status] += 1
                self.slowest = max(self.slowest, time.monotonic() - began)
                if status != 200:
                    self.told.append(body.decode(errors="replace")[:300])
        link.close()


def processes(gateway: Gateway) -> list[int]:
    """The pids of its processes, in the order of their sockets."""
    found = {}
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
            parent = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
            if b"llm_proxy.gateway" in words and parent == gateway.daemon.pid:
                found[json.loads(words[words.index(b"llm_proxy.gateway") + 1])["socket"]] = int(name)
    return [found[socket] for socket in sorted(found, key=lambda path: (len(path), path))]


def up(gateway: Gateway) -> list[int]:
    """Which of its processes answer, as `/metrics` has it."""
    lines = gateway.ask("GET", "/metrics").body.decode().splitlines()
    return [int(line[-1]) for line in lines if line.startswith("llm_proxy_gateway_worker_up{")]


def logged(gateway: Gateway) -> int:
    """Successful requests in the usage log."""
    rows = gateway.want(200, "GET", "/manage/usage", None, gateway.admin)
    return sum(row["requests"] - row.get("failures", 0) for row in rows)


TWO = {"LLM_PROXY_GATEWAY_WORKERS": "2"}


# --- several processes on one port


async def test_a_process_that_is_killed_or_hangs_is_passed_over(gateways: Any, fake: FakeProvider) -> None:
    """Of two, mid-load: the other serves at once, what the hanging one has not read goes on, and both serve in the end."""

    def play() -> None:
        gateway = gateways(env=TWO, allow=(fake.url,))
        eventually(lambda: up(gateway) == [1, 1], 30.0)
        key, before = furnished(gateway, fake), processes(gateway)
        assert len(before) == 2
        with Load([gateway.port], key) as load:
            load.more(50)
            for pid in before:
                assert busy(pid, load) > 0, "both serve"
            os.kill(before[0], signal.SIGKILL)
            load.more(100)
            assert load.counts.total() - load.counts[200] <= 6, load.told  # those that it was about to answer
            failed = load.counts.total() - load.counts[200]
            eventually(lambda: len(processes(gateway)) == 2 and up(gateway) == [1, 1], 30.0)

            os.kill(before[1], signal.SIGSTOP)
            try:
                eventually(lambda: up(gateway) == [1, 0], 10.0)
                load.more(100)
            finally:
                os.kill(before[1], signal.SIGCONT)
            eventually(lambda: up(gateway) == [1, 1], 10.0)
            load.more(50)
        assert load.counts.total() - load.counts[200] == failed, load.told
        assert gateway.daemon.stop() == 0

    await asyncio.to_thread(play)


def busy(pid: int, load: Load) -> float:
    """Processor time that it takes for some calls."""

    def used() -> int:
        return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))

    before = used()
    load.more(40)
    return used() - before


async def test_a_stop_is_seen_before_it_comes(gateways: Any, fake: FakeProvider) -> None:
    """SIGTERM: not ready at once, alive and serving for the delay, then what is under way ends, and nobody was refused."""

    def play() -> None:
        gateway = gateways(env=TWO | {"LLM_PROXY_GATEWAY_DRAIN_DELAY": "1"}, allow=(fake.url,))
        key = furnished(gateway, fake)
        assert gateway.want(200, "GET", "/health/ready") == {"status": "ready", "version": VERSION, "why": []}
        assert gateway.want(200, "GET", "/health/live") == {"status": "live", "version": VERSION}
        slow = {"model": "slow", "messages": HELLO["messages"]}
        gateway.alias("slow", "gpt-4o-mini", gateway.provider("openai", f"{fake.url}/fake=delay=2000"))
        with ThreadPoolExecutor(1) as pool:
            under_way = pool.submit(gateway.ask, "POST", CHAT, slow, key)
            eventually(lambda: gateway.daemon.health()["gateway"]["open"] == 1, 10.0)
            began = time.monotonic()
            gateway.daemon.signal(signal.SIGTERM)
            eventually(lambda: gateway.ask("GET", "/health/ready").status == 503, 0.5)
            answer = gateway.ask("GET", "/health/ready")
            assert (answer.code, answer.headers["Retry-After"]) == ("not_ready", "1")
            assert answer.json["error"]["message"] == "the gateway is stopping"
            assert gateway.ask("GET", "/health/live").status == 200
            while time.monotonic() - began < 0.8:
                assert gateway.ask("POST", CHAT, HELLO, key).status == 200
            assert under_way.result(30).status == 200
        assert gateway.daemon.wait() == 0

    await asyncio.to_thread(play)


VERSION = llm_proxy.__version__


# --- many machines


@contextlib.asynccontextmanager
async def a_team(tmp_path: Path, fake: FakeProvider) -> Any:
    """What machines are told that share a PostgreSQL and a Redis."""
    async with an_empty_url("postgresql", tmp_path) as url:
        with a_redis(tmp_path) as redis:
            yield SECRETS | {"DATABASE_URL": url, "REDIS_URL": redis.url, "LLM_PROXY_UPSTREAMS_ALLOW": fake.url}


def machine(start: Any, home: Path, env: dict[str, str], **more: Any) -> Gateway:
    home.mkdir(exist_ok=True)
    return Gateway(start("gateway", "--port", "0", env=env | {"HOME": str(home)}, **more))


async def test_a_revoked_key_is_refused_by_every_process_of_every_machine(
    start: Any, fake: FakeProvider, tmp_path: Path
) -> None:
    """At most a second after the answer to its revoking, though each had just served it."""

    def play(env: dict[str, str]) -> None:
        one, two = (machine(start, tmp_path / name, env | TWO) for name in ("one", "two"))
        for gateway in (one.wait(), two.wait()):
            eventually(lambda gateway=gateway: up(gateway) == [1, 1], 30.0)
        key = furnished(one, fake)
        sockets = [path for home in ("one", "two") for path in (tmp_path / home).glob(".local/state/llm-proxy/*.sock")]
        sockets = [path for path in sockets if not path.name.endswith(".up.sock") and path.name.startswith("gateway-")]
        assert len(sockets) == 4
        body = json.dumps(HELLO)

        def status(path: Path) -> int:
            with contextlib.closing(Direct(path)) as link:
                link.request("POST", CHAT, body, {"Authorization": f"Bearer {key}", "Content-Type": "application/json"})
                return int(link.getresponse().status)

        assert [status(path) for path in sockets] == [200] * 4
        session = one.admin
        (listed,) = one.want(200, "GET", "/auth/key", None, session)
        one.want(204, "DELETE", f"/auth/key/{listed['id']}", None, session)
        revoked = time.monotonic()
        eventually(lambda: [status(path) for path in sockets] == [401] * 4, 1.5)
        assert time.monotonic() - revoked <= 1.2

    async with a_team(tmp_path, fake) as env:
        await asyncio.to_thread(play, env)


class Direct(http.client.HTTPConnection):
    """To one process, past the proxy that chooses among them."""

    def __init__(self, path: Path) -> None:
        super().__init__("gateway", timeout=30)
        self._path = path

    def connect(self) -> None:
        address, folder = unix.address(str(self._path))
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(address)
        if folder is not None:
            os.close(folder)


async def test_a_restart_of_the_database_fails_no_call_and_loses_no_usage(
    start: Any, fake: FakeProvider, tmp_path: Path
) -> None:
    """PostgreSQL is ended at once and comes back, under the load of two machines that know the caller."""
    from tests.postgresbed import Server

    server = Server()
    name = await server.create()
    try:
        with a_redis(tmp_path) as redis:
            env = SECRETS | {"DATABASE_URL": server.url(name), "REDIS_URL": redis.url}
            env |= {"LLM_PROXY_UPSTREAMS_ALLOW": fake.url}
            await asyncio.to_thread(_restarted, start, fake, tmp_path, env, server)
    finally:
        await asyncio.to_thread(server.end)


def _restarted(start: Any, fake: FakeProvider, tmp_path: Path, env: dict[str, str], server: Any) -> None:
    machines = [machine(start, tmp_path / name, env) for name in ("one", "two")]
    one, two = (gateway.wait() for gateway in machines)
    key = furnished(one, fake)
    for gateway in machines:
        gateway.want(200, "POST", CHAT, HELLO, key)
    with Load([one.port, two.port], key) as load:
        load.more(50)
        server.halt()
        eventually(lambda: one.want(200, "GET", "/health/ready")["status"] == "degraded", 15.0)
        assert one.ask("GET", "/health/live").status == 200 and one.ask("GET", "/health/gateway").status == 503
        load.more(50)
        server.resume()
        eventually(lambda: one.want(200, "GET", "/health/ready")["status"] == "ready", 30.0)
        load.more(50)
    assert set(load.counts) == {200}, load.told[:5]
    eventually(lambda: logged(one) == load.counts[200] + 2, 15.0, lambda: (logged(one), load.counts))


async def test_a_newer_version_takes_over_under_load(start: Any, fake: FakeProvider, tmp_path: Path) -> None:
    """Old and new serve from one migrated store, one of the old restarts in it, and not a single call fails."""

    def play(env: dict[str, str]) -> None:
        machines = [machine(start, tmp_path / name, env) for name in ("one", "two")]
        one, two = (gateway.wait() for gateway in machines)
        key = furnished(one, fake)
        for gateway in machines:
            gateway.want(200, "POST", CHAT, HELLO, key)
        with Load([two.port], key, clients=4) as load:
            load.more(30)
            three = machine(
                start, tmp_path / "three", env | {"PYTHONPATH": str(newer(tmp_path))}, isolated=False
            ).wait()
            assert three.want(200, "GET", "/health/ready")["version"] == "99.0"
            with Load([three.port], key, clients=2) as others:
                others.more(30)
                load.more(30)
                (pid,) = processes(one)  # it comes back in a store that is newer than itself
                os.kill(pid, signal.SIGKILL)
                eventually(lambda: processes(one) not in ([], [pid]), 30.0)
                one.wait()
                assert one.want(200, "GET", "/health/ready")["status"] == "ready", one.log.read_text()
                one.want(200, "POST", CHAT, HELLO, key)
                others.more(30)
                load.more(30)
        assert set(load.counts | others.counts) == {200}, (load.told + others.told)[:5]
        total = load.counts[200] + others.counts[200] + 3
        eventually(lambda: logged(one) == total, 15.0, lambda: (logged(one), total))

    async with a_team(tmp_path, fake) as env:
        await asyncio.to_thread(play, env)


MIGRATION = '''"""One thing more, that programs before need not know of."""
import sqlalchemy as sa
from alembic import op

revision = "9001"
down_revision = "{before}"


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("colour", sa.String(length=16), nullable=False, server_default="red"))
    op.create_table("more", sa.Column("id", sa.Integer(), primary_key=True))
'''


def newer(tmp_path: Path) -> Path:
    """Where this program is of a later version, with one more migration."""
    from llm_proxy.gateway.store.database import VERSION as BEFORE

    folder = tmp_path / "newer"
    package = folder / "llm_proxy"
    shutil.copytree(Path(llm_proxy.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    for path, old, new in (
        (package / "gateway/store/database.py", f'VERSION = "{BEFORE}"', 'VERSION = "9001"'),
        (package / "__init__.py", f'__version__ = "{VERSION}"', '__version__ = "99.0"'),
    ):
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
    (package / "gateway/store/migrations/versions/m9001_more.py").write_text(MIGRATION.format(before=BEFORE))
    return folder


@pytest.mark.parametrize("others", [0, 2])
async def test_who_is_not_there_is_passed_over_and_all_gone_is_told(
    rigs: Any, team: Team, tmp_path: Path, others: int
) -> None:
    """A request goes to any process that listens, whichever that is; where none does, 503 comes after the wait."""
    paths = [*(str(tmp_path / f"{number}.sock") for number in range(others)), team.path]
    rig = await rigs(gateway=Door(paths[0], patience=0.2, others=tuple(paths[1:])))
    answer = await ask(rig, "/v1/models")
    assert (answer.status, answer.get(b"retry-after")) == (503, b"1")
    await team.serve()
    assert (await ask(rig, "/v1/models")).status == 200
    assert rig.proxy.gateway.open == 0


@pytest.mark.parametrize("has_read", [False, True])
async def test_only_what_a_hanging_process_has_not_read_goes_on(
    rigs: Any, team: Team, tmp_path: Path, has_read: bool
) -> None:
    """Whose request it has read may have called a provider already: that one waits, new ones go elsewhere."""
    with contextlib.closing(unix.bind(str(tmp_path / "hanging.sock"))) as hanging:
        rig = await rigs(gateway=Door(str(tmp_path / "hanging.sock"), others=(team.path,)))
        asking = asyncio.create_task(ask(rig, "/v1/messages", method="POST", body=b"{}"))
        link, _ = await asyncio.get_running_loop().sock_accept(hanging)  # as the kernel does for a stopped process
        with contextlib.closing(link):
            if has_read:
                assert (await asyncio.get_running_loop().sock_recv(link, 65536)).endswith(b"{}")
            await team.serve()
            async with asyncio.timeout(20):
                while [worker.answers for worker in rig.proxy.gateway.workers] != [False, True]:
                    await asyncio.sleep(0.01)
                assert (await ask(rig, "/v1/models")).status == 200
                if has_read:
                    assert not asking.done()
                    await asyncio.get_running_loop().sock_sendall(link, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                answer = await asking
            assert answer.status == 200 and bool(answer.payload) is not has_read
            assert [request.method for request in team.requests].count("POST") == (not has_read)
