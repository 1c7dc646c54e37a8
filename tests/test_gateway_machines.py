"""A gateway of several processes and machines: who serves when one is killed, stopped, drained or replaced by a newer one.

Clients keep a count of their own, which the usage log is held against. What is started is started at once, and serves
all tests of this module in their order: the last of each part ends what it shares, or leaves it changed.
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
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import llm_proxy
from llm_proxy import unix
from llm_proxy.proxy.gateway import Gateway as Door
from tests import postgresbed
from tests.gatewaybed import SECRETS, Gateway, a_gateway
from tests.redisbed import a_redis
from tests.test_gateway_door import Team, ask, team
from tests.test_gateway_whole import CHAT, HELLO, eventually

__all__ = ["team"]

ROOT = Path(__file__).parent.parent
TWO = {"LLM_PROXY_GATEWAY_WORKERS": "2"}
VERSION = llm_proxy.__version__


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


def logged(gateway: Gateway, key: int) -> int:
    """Successful requests in the usage log that came by this key."""
    rows = gateway.want(200, "GET", f"/manage/usage?key={key}", None, gateway.admin)
    return sum(row["requests"] - row.get("failures", 0) for row in rows)


def a_key(gateway: Gateway, name: str, **more: Any) -> tuple[str, int]:
    """A new one and its id, which tells its calls from those of other tests."""
    token = gateway.key(name=name, **more)
    (listed,) = (one for one in gateway.want(200, "GET", "/auth/key", None, gateway.admin) if one["name"] == name)
    return token, listed["id"]


def sockets(gateway: Gateway) -> list[Path]:
    """Of its processes, in their order."""
    found = [path for path in gateway.daemon.state.glob("gateway-*.sock") if not path.name.endswith(".up.sock")]
    return sorted(found, key=lambda path: (len(path.name), path))


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


def status(path: Path, key: str, model: str = "fast") -> int:
    """Of a call to one process; 0 where it does not listen."""
    with contextlib.suppress(ConnectionError), contextlib.closing(Direct(path)) as link:
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        link.request("POST", CHAT, json.dumps(HELLO | {"model": model}), headers)
        return int(link.getresponse().status)
    return 0


def known(gateways: Sequence[Gateway], key: str, model: str = "fast") -> None:
    """Until each of their processes serves it: the others than the one that was told hear of it a little later."""
    paths = [path for gateway in gateways for path in sockets(gateway)]
    eventually(lambda: {status(path, key, model) for path in paths} == {200}, 30.0)


# --- what is shared


@dataclass
class Begun:
    """A gateway of two processes on SQLite; and two machines, the first of two processes, on a PostgreSQL and a Redis.

    Everything is on its way when the first test begins.
    """

    provider: str
    pair: Gateway
    server: postgresbed.Server
    env: dict[str, str]
    one: Gateway
    two: Gateway
    newer: Path

    def serving(self) -> tuple[Gateway, Gateway]:
        """The two machines, with the model `fast`."""
        for gateway in (self.one.wait(), self.two.wait()):
            eventually(lambda gateway=gateway: set(up(gateway)) == {1}, 30.0)
        if not self.one.want(200, "GET", "/manage/aliases", None, self.one.admin):
            self.one.alias("fast", "gpt-4o-mini", self.one.provider("openai", self.provider))
            known((self.one, self.two), self.one.key())
        return self.one, self.two


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Begun]:
    folder = tmp_path_factory.mktemp("machines")
    homes = {name: folder / name for name in ("pair", "one", "two", "redis")}
    for home in homes.values():
        home.mkdir()
    with contextlib.ExitStack() as stack:
        provider = stack.enter_context(a_provider())
        delay = {"LLM_PROXY_GATEWAY_DRAIN_DELAY": "1"}
        pair = stack.enter_context(a_gateway(homes["pair"], (provider,), TWO | delay))
        server = postgresbed.Server()
        stack.callback(server.end)
        name = asyncio.run(server.create())
        asyncio.run(server.execute(f'ALTER DATABASE "{name}" SET synchronous_commit TO on'))  # a commit is one
        redis = stack.enter_context(a_redis(homes["redis"]))
        env = SECRETS | {"DATABASE_URL": server.url(name), "REDIS_URL": redis.url}
        env |= {"LLM_PROXY_UPSTREAMS_ALLOW": provider}
        one = stack.enter_context(a_gateway(homes["one"], (provider,), env | TWO))
        two = stack.enter_context(a_gateway(homes["two"], (provider,), env))
        yield Begun(provider, pair, server, env, one, two, newer(folder))


@contextlib.contextmanager
def a_provider() -> Iterator[str]:
    """The URL of one in a process of its own, which no test's loop holds up."""
    words = [sys.executable, "-P", "-m", "tests.fakeprovider"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline().removeprefix('PORT '))}"
        finally:
            process.kill()


# --- several processes on one port


def test_a_process_that_is_killed_or_hangs_is_passed_over(begun: Begun) -> None:
    """Of two, mid-load: the other serves at once, what the hanging one has not read goes on, and both serve in the end."""
    gateway = begun.pair.wait()
    eventually(lambda: up(gateway) == [1, 1], 30.0)
    gateway.alias("fast", "gpt-4o-mini", gateway.provider("openai", begun.provider))
    key, before = gateway.key(), processes(gateway)
    assert len(before) == 2
    known([gateway], key)
    with Load([gateway.port], key) as load:
        load.more(50)
        for pid in before:
            assert busy(pid, load) > 0, "both serve"
        os.kill(before[0], signal.SIGKILL)
        load.more(100)
        assert load.counts.total() - load.counts[200] <= 6, load.told  # those that it was about to answer
        failed = load.counts.total() - load.counts[200]
        known([gateway], key)  # the new one is there
        eventually(lambda: up(gateway) == [1, 1], 10.0)

        os.kill(before[1], signal.SIGSTOP)
        try:
            eventually(lambda: up(gateway) == [1, 0], 10.0)
            load.more(100)
        finally:
            os.kill(before[1], signal.SIGCONT)
        eventually(lambda: up(gateway) == [1, 1], 10.0)
        load.more(50)
    assert load.counts.total() - load.counts[200] == failed, load.told


def busy(pid: int, load: Load) -> float:
    """Processor time that it takes for some calls."""

    def used() -> int:
        return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))

    before = used()
    load.more(40)
    return used() - before


def test_metrics_are_of_all_processes_whichever_is_asked(begun: Begun) -> None:
    """Each sample says whose it is and none jumps; a process that does not answer is left out, and that is said."""
    gateway = begun.pair.wait()
    eventually(lambda: up(gateway) == [1, 1], 30.0)
    key = gateway.key(name="Prometheus", scopes=["usage"])

    def told(query: str = "") -> dict[tuple[str, str], float]:
        """By the name of the sample and the process; each series once."""
        answer = gateway.ask("GET", f"/manage/metrics{query}", None, key)
        assert answer.status == 200, answer
        families = list(text_string_to_metric_families(answer.body.decode()))
        assert len({one.name for one in families}) == len(families)
        samples = [one for family in families for one in family.samples]
        assert len({(one.name, *sorted(one.labels.items())) for one in samples}) == len(samples)
        return {(one.name, one.labels.get("worker", "")): one.value for one in samples}

    noted, here = "llm_proxy_gateway_usage_noted_total", "llm_proxy_gateway_worker_told"
    models = gateway.key()
    for number, path in enumerate(sockets(gateway), 1):
        before = told()
        status(path, models)
        after = [told() for _ in range(4)]
        assert {one[noted, str(number)] for one in after} == {before[noted, str(number)] + 1}
        assert {one[noted, str(3 - number)] for one in after} == {before[noted, str(3 - number)]}
        assert all((one[here, "1"], one[here, "2"]) == (1, 1) for one in after)
    assert {worker for _, worker in told()} == {"1", "2"}
    assert {worker for _, worker in told("?of=process")} == {""}
    assert gateway.ask("GET", "/manage/metrics?of=2", None, key).code == "invalid_request"

    _, second = processes(gateway)
    os.kill(second, signal.SIGSTOP)
    try:
        eventually(lambda: up(gateway) == [1, 0], 10.0)
        began = time.monotonic()
        left = told()
        assert time.monotonic() - began < 5.0
        assert (left[here, "1"], left[here, "2"]) == (1, 0)
        assert {name for name, worker in left if worker == "2"} == {here}
    finally:
        os.kill(second, signal.SIGCONT)
    eventually(lambda: up(gateway) == [1, 1] and told()[here, "2"] == 1, 10.0)


def test_a_stop_is_seen_before_it_comes(begun: Begun) -> None:
    """SIGTERM: not ready at once, alive and serving for the delay, then what is under way ends, and nobody was refused."""
    gateway = begun.pair.wait()
    assert gateway.want(200, "GET", "/health/ready") == {"status": "ready", "version": VERSION, "why": []}
    assert gateway.want(200, "GET", "/health/live") == {"status": "live", "version": VERSION}
    slow, quick = (HELLO | {"model": name} for name in ("slow", "quick"))
    gateway.alias("slow", "gpt-4o-mini", gateway.provider("openai", f"{begun.provider}/fake=delay=2000"))
    gateway.alias("quick", "gpt-4o-mini", gateway.provider("openai", begun.provider))
    key = gateway.key()
    known([gateway], key, "quick")
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
            assert gateway.ask("POST", CHAT, quick, key).status == 200
        assert under_way.result(30).status == 200
    assert gateway.daemon.wait() == 0


# --- many machines


def test_a_revoked_key_is_refused_by_every_process_of_every_machine(begun: Begun) -> None:
    """Soon after the answer to its revoking, though each had just served it; how soon, `scripts/bench team` says."""
    one, two = begun.serving()
    key, number = a_key(one, "revoked")
    paths = [*sockets(one), *sockets(two)]
    assert len(paths) == 3
    assert [status(path, key) for path in paths] == [200] * 3
    one.want(204, "DELETE", f"/auth/key/{number}", None, one.admin)
    eventually(lambda: [status(path, key) for path in paths] == [401] * 3, 10)


def test_one_process_tells_of_itself_alone(begun: Begun) -> None:
    """Metrics of a machine with one have no label that says so."""
    _, two = begun.serving()
    text = two.ask("GET", "/manage/metrics", None, begun.one.admin).body.decode()
    assert "llm_proxy_gateway_usage_noted_total " in text and "worker" not in text


def test_a_restart_of_the_database_fails_no_call_and_loses_no_usage(begun: Begun) -> None:
    """PostgreSQL is ended at once and comes back, under the load of two machines that know the caller."""
    one, two = begun.serving()
    key, number = a_key(one, "restart")
    assert [status(path, key) for path in (*sockets(one), *sockets(two))] == [200] * 3
    with Load([one.port, two.port], key) as load:
        load.more(50)
        begun.server.halt()
        eventually(lambda: one.want(200, "GET", "/health/ready")["status"] == "degraded", 15.0)
        assert one.ask("GET", "/health/live").status == 200 and one.ask("GET", "/health/gateway").status == 503
        load.more(50)
        begun.server.resume()
        eventually(lambda: one.want(200, "GET", "/health/ready")["status"] == "ready", 30.0)
        load.more(50)
    assert set(load.counts) == {200}, load.told[:5]
    total = load.counts[200] + 3
    eventually(lambda: logged(one, number) == total, 15.0, lambda: (logged(one, number), total))


def test_a_newer_version_takes_over_under_load(begun: Begun, start: Any, tmp_path: Path) -> None:
    """Old and new serve from one migrated store, one of the old restarts in it, and not a single call fails."""
    one, two = begun.serving()
    key, number = a_key(one, "upgrade")
    for gateway in (one, two):
        gateway.want(200, "POST", CHAT, HELLO, key)
    (tmp_path / "three").mkdir()
    environ = begun.env | {"HOME": str(tmp_path / "three"), "PYTHONPATH": str(begun.newer)}
    with Load([one.port], key, clients=4) as load:
        load.more(30)
        three = Gateway(start("gateway", "--port", "0", env=environ, isolated=False)).wait()
        assert three.want(200, "GET", "/health/ready")["version"] == "99.0"
        with Load([three.port], key, clients=2) as others:
            others.more(30)
            load.more(30)
            (pid,) = processes(two)  # it comes back in a store that is newer than itself
            os.kill(pid, signal.SIGKILL)
            eventually(lambda: processes(two) not in ([], [pid]), 30.0)
            two.wait()
            assert two.want(200, "GET", "/health/ready")["status"] == "ready", two.log.read_text()
            two.want(200, "POST", CHAT, HELLO, key)
            others.more(30)
            load.more(30)
    assert set(load.counts | others.counts) == {200}, (load.told + others.told)[:5]
    total = load.counts[200] + others.counts[200] + 3
    eventually(lambda: logged(one, number) == total, 15.0, lambda: (logged(one, number), total))


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
    shutil.copytree(Path(llm_proxy.__file__).parent, package)  # compiled already
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
