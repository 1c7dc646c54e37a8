"""A team's gateway as it is run: nginx with our configuration before machines that share a PostgreSQL and a Redis.

`Crowd` calls, `Books` hold against each other what four sides have counted, each by itself: the clients, the provider,
the usage log and the session logs of all machines. Leaves out breaking anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

from tests.conftest import _KEPT, Daemon, _forget_rings, end_keepers
from tests.fakeprovider import FakeProvider
from tests.gatewaybed import SECRETS, Gateway
from tests.nginxbed import Nginx, an_nginx, free_port
from tests.postgresbed import Server as Postgres
from tests.redisbed import Server as Redis
from tests.redisbed import a_redis

CHAT = "/v1/chat/completions"
THINKING = 400  # milliseconds in which the provider thinks


T = TypeVar("T")


def eventually(what: Callable[[], T], seconds: float, told: Callable[[], object] = lambda: "") -> T:
    """What it gives, once that is true."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, told()
        time.sleep(0.02)
    return found


class Machine:
    """A gateway with a home and a port of its own, which it keeps over its lives."""

    def __init__(self, home: Path, env: dict[str, str]) -> None:
        self.home, self.port = home, free_port()
        home.mkdir()
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        self._env = kept | env | {"HOME": str(home)}
        self.gateway: Gateway
        self.start()

    def start(self) -> None:
        daemon = Daemon(self.home, ("gateway", "--port", str(self.port)), self._env, {})
        self.gateway = Gateway(daemon)

    def wait(self) -> None:
        eventually(self._is_ready, 90.0, lambda: "".join(self.gateway.daemon.lines[-20:]))

    def restart(self) -> None:
        """What the keeper has no time for now, the next one writes."""
        self.gateway.daemon.signal(signal.SIGTERM)
        assert self.gateway.daemon.wait() == 0, self.gateway.daemon.lines[-20:]
        self.start()
        self.wait()

    def stop(self) -> None:
        """Everything is in the logs then."""
        assert self.gateway.daemon.stop() == 0, self.gateway.daemon.lines[-20:]

    def end(self) -> None:
        if self.gateway.daemon.process.poll() is None:
            self.gateway.daemon.kill()
        end_keepers(self.home)
        _forget_rings(str(self.home))

    def processes(self) -> list[int]:
        """The pids of those that serve."""
        found = {}
        for name in os.listdir("/proc"):
            with contextlib.suppress(OSError, ValueError):
                words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
                parent = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
                if b"llm_proxy.gateway" in words and parent == self.gateway.daemon.pid:
                    found[json.loads(words[words.index(b"llm_proxy.gateway") + 1])["socket"]] = int(name)
        return [found[path] for path in sorted(found, key=lambda path: (len(path), path))]

    def up(self) -> list[int]:
        """Which of several processes answer, as `/metrics` has it."""
        lines = self.gateway.ask("GET", "/metrics").body.decode().splitlines()
        return [int(line[-1]) for line in lines if line.startswith("llm_proxy_gateway_worker_up{")]

    def log(self) -> str:
        """What all of its processes say."""
        return "".join(path.read_text() for path in sorted(self.gateway.log.parent.glob("gateway*.log")))

    def readiness(self) -> str:
        return str(self.gateway.want(200, "GET", "/health/ready")["status"])

    def _is_ready(self) -> bool:
        with contextlib.suppress(OSError):
            return self.gateway.ask("GET", "/health/ready").status == 200
        return False


@dataclass(slots=True)
class Call:
    """As its client saw it: status 0 where no answer came to its end. `code` is of an error."""

    id: str
    began: float
    ended: float = 0.0
    status: int = 0
    request_id: str = ""
    code: str = ""
    sent: bool = True  # False: nobody took the connection


class Crowd:
    """So many clients, each one call after the other on a connection of its own, whole answers and streams in turn."""

    def __init__(self, url: str, clients: int, pause: float = 1.5) -> None:
        self.calls: list[Call] = []
        self._url, self._count, self._pause = url, clients, pause
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()

    async def begin(self, key: str) -> None:
        self._tasks = [asyncio.create_task(self._client(key, number)) for number in range(self._count)]

    async def end(self) -> None:
        """What is under way comes to its end."""
        self._stopping.set()
        async with asyncio.timeout(60):
            await asyncio.gather(*self._tasks)

    async def burst(self, key: str, each: int) -> list[Call]:
        """All of them at once, this often each."""
        made: list[Call] = []

        async def client(number: int) -> None:
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as http:
                for turn in range(each):
                    made.append(await self._call(http, key, stream=bool((number + turn) % 2)))

        await asyncio.gather(*(client(number) for number in range(self._count)))
        return made

    async def _client(self, key: str, number: int) -> None:
        dice = random.Random(number)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as http:
            while not self._stopping.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), dice.random() * 2 * self._pause)
                    return
                await self._call(http, key, stream=bool(number % 2))

    async def _call(self, http: aiohttp.ClientSession, key: str, stream: bool) -> Call:
        call = Call(f"call-{len(self.calls)}-", time.monotonic())
        self.calls.append(call)
        said = {"model": "fast", "stream": stream, "messages": [{"role": "user", "content": call.id}]}
        try:
            async with http.post(self._url + CHAT, json=said, headers={"Authorization": f"Bearer {key}"}) as answer:
                call.request_id = answer.headers.get("x-llm-proxy-request-id", "")
                body = await answer.read()
                if not stream or answer.status != 200 or b"data: [DONE]" in body:
                    call.status = answer.status
                if answer.status != 200:
                    with contextlib.suppress(ValueError, KeyError, TypeError):
                        call.code = json.loads(body)["error"]["code"]
        except aiohttp.ClientConnectorError:
            call.sent = False
        except (aiohttp.ClientError, TimeoutError):
            pass
        finally:
            call.ended = time.monotonic()
        return call


@dataclass(slots=True)
class Books:
    """What the sides have of each call, by the id in its prompt or by its request's id."""

    arrived: Counter[str] = field(default_factory=Counter)  # at the provider
    logged: Counter[str] = field(default_factory=Counter)  # in the session logs of all machines
    requests: dict[str, str] = field(default_factory=dict)  # the request's id in the session logs -> the call's
    rows: Counter[str] = field(default_factory=Counter)  # of attempts, by the request's id
    refused: Counter[str] = field(default_factory=Counter)  # rows of what was never sent


class Bed:
    """nginx, two machines (the first with two processes), PostgreSQL, Redis, the provider, and a loop for the clients."""

    def __init__(self, folder: Path, machines: list[Machine], nginx: Nginx, postgres: Postgres, redis: Redis) -> None:
        self.folder, self.machines, self.nginx = folder, machines, nginx
        self.postgres, self.redis = postgres, redis
        self.fake: FakeProvider
        self.run: Callable[[Coroutine[Any, Any, Any]], Any]
        self.crowd: Crowd
        self.database = ""
        self.killed = 0.0  # when a process was, by the clock of the calls

    @property
    def front(self) -> Gateway:
        return self.machines[0].gateway

    def new_key(self, email: str) -> tuple[int, str]:
        """A user's id and a key of his."""
        session = self.front.sign_up(email) if email else self.front.admin
        me = self.front.want(200, "GET", "/auth/me", None, session)["id"]
        return me, self.front.key(session)

    def more(self, count: int, seconds: float = 60.0) -> None:
        """Until so many more calls were answered well."""
        wanted = self.answered + count
        eventually(lambda: self.answered >= wanted, seconds, self.outcomes)

    @property
    def answered(self) -> int:
        return sum(call.status == 200 for call in list(self.crowd.calls))

    def outcomes(self) -> Counter[tuple[int, str]]:
        return Counter((call.status, call.code) for call in list(self.crowd.calls) if call.ended)

    def failed(self, since: float = 0.0) -> list[Call]:
        """Calls that reached somebody and were not answered well, of those that ended since."""
        return [call for call in list(self.crowd.calls) if call.ended > since and call.status != 200 and call.sent]

    def books(self) -> Books:
        """As they are now."""
        made = Books()
        for request in self.fake.requests:
            if request.method == "POST":
                made.arrived[_id_of(request.body.decode())] += 1
        for machine in self.machines:
            for entry in _entries(machine.gateway.daemon.logs):
                if entry.get("type") == "request" and entry["method"] == "POST":
                    id = _id_of(entry["body"])
                    made.logged[id] += 1
                    made.requests[entry["gateway"]["request"]] = id
        for request_id, provider in self.run(self._rows()):
            (made.rows if provider else made.refused)[request_id] += 1
        return made

    async def _rows(self) -> list[tuple[str, str]]:
        link = await self.postgres.connect(self.database)
        try:
            found = await link.fetch("SELECT request_id, provider_used FROM request_logs")
            return [(row[0], row[1]) for row in found]
        finally:
            await link.close()


def _id_of(body: str) -> str:
    """Of the call with this prompt."""
    return f"call-{body.partition('call-')[2].partition('-')[0]}-"


def _entries(folder: Path) -> Iterator[dict[str, Any]]:
    for path in folder.rglob("*.jsonl"):
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                yield json.loads(line)


@contextlib.contextmanager
def a_loop() -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """An event loop in a thread of its own; a function that runs a coroutine there and gives what it gives."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield lambda coroutine: asyncio.run_coroutine_threadsafe(coroutine, loop).result(120)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextlib.contextmanager
def a_team(folder: Path, clients: int = 200) -> Iterator[Bed]:
    """Furnished, with a crowd that has yet to begin."""
    postgres, fake = Postgres(), FakeProvider()
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(a_loop())
        run(fake.__aenter__())
        stack.callback(lambda: run(fake.__aexit__(None, None, None)))
        postgres.start()
        stack.callback(postgres.end)
        database = run(postgres.create(name="team"))
        # Its default, which throw-away servers switch off: what was said to be written is there after a kill.
        run(postgres.execute(f'ALTER DATABASE "{database}" SET synchronous_commit TO on'))
        redis = stack.enter_context(a_redis(folder))
        env = SECRETS | {"DATABASE_URL": postgres.url(database), "REDIS_URL": redis.url}
        env |= {"LLM_PROXY_UPSTREAMS_ALLOW": fake.url, "LLM_PROXY_GATEWAY_SIGNUP": "open"}
        env |= {"LLM_PROXY_GATEWAY_DRAIN_DELAY": "2"}
        machines = []
        for name, processes in (("one", "2"), ("two", "1")):
            machines.append(Machine(folder / name, env | {"LLM_PROXY_GATEWAY_WORKERS": processes}))
            stack.callback(machines[-1].end)
        for machine in machines:
            machine.wait()
        eventually(lambda: machines[0].up() == [1, 1], 60.0)
        nginx = stack.enter_context(an_nginx(folder / "nginx", [machine.port for machine in machines]))
        bed = Bed(folder, machines, nginx, postgres, redis)
        bed.fake, bed.run, bed.database = fake, run, database
        shared = {"shared": True}
        provider = bed.front.provider("openai", f"{fake.url}/fake=delay={THINKING}", **shared)
        bed.front.alias("fast", "gpt-4o-mini", provider, **shared)

        async def crowd() -> Crowd:
            return Crowd(f"http://127.0.0.1:{nginx.port}", clients)

        bed.crowd = run(crowd())
        yield bed


def freeze(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


def thaw(pid: int) -> None:
    os.kill(pid, signal.SIGCONT)
