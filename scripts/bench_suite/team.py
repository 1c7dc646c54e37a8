"""A team's gateway on PostgreSQL and Redis: limits, revoked keys, a database that restarts, no Redis, and throughput.

Two machines of one process each, and 200 clients, before a provider that answers at once. A row is void where a call
that the provider saw is missing in the session logs or in the usage log. Uses the tests' throw-away servers.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import uvloop

from bench_suite import gateway as single
from bench_suite.contestants import Record, free_port, running, seen_by, throwaway, wait_for
from bench_suite.table import Row
from tests.postgresbed import Server as Postgres
from tests.redisbed import Server as Redis
from tests.redisbed import a_redis

CLIENTS = 200
LIMIT = 500
_EMAIL = "bench@example.com"
_SECRETS = {"JWT_SECRET": "of all sessions of this run", "ENCRYPTION_KEY": "of all keys of this run"}
_CHAT = "/v1/chat/completions"


@dataclass(slots=True)
class Answer:
    status: int
    seconds: float


@dataclass(slots=True)
class Team:
    ports: list[int]
    homes: list[Path]
    upstream: int
    postgres: Postgres
    redis: Redis
    key: str = ""
    ask: Any = None

    def missing(self) -> str:
        """As the gateway's own rows have it: why no row of this run counts, "" where all is recorded."""
        seen = seen_by(self.upstream) + 1  # this provider counts no GET, ours to it neither
        records = [Record(home) for home in self.homes]
        deadline = time.monotonic() + 600
        while (found := sum(record.look() for record in records)) < seen:
            if time.monotonic() > deadline:
                return f"{found} of {seen} calls are in the session logs"
            time.sleep(0.2)
        while (rows := asyncio.run(self.rows())) < seen:
            if time.monotonic() > deadline:
                return f"{rows} of {seen} calls are in the usage log"
            time.sleep(0.2)
        # Whoever left before the call was with the provider has a row, too.
        answered = rows - asyncio.run(self.rows("client_gone"))
        return "" if answered <= seen else f"{seen} calls, {answered} in the usage log, not counting whose client left"

    async def rows(self, ending: str = "%") -> int:
        link = await self.postgres.connect("team")
        try:
            query = "SELECT count(*) FROM request_logs WHERE attempt > 0 AND ending LIKE $1"
            return int(await link.fetchval(query, ending))
        finally:
            await link.close()


def rows(*, quick: bool) -> list[Row]:
    with _team() as team:
        shown = [_limits(team), _revoked(team, 3 if quick else 20), *_restarted(team), _redis_away(team)]
        void = team.missing()
    shown = [Row(row.what, row.cells, row.judged, void) for row in shown]
    return [*shown, _throughput(quick)]


# --- rows


def _limits(team: Team) -> Row:
    """Each of 200 clients asks five times at once, at both machines in turn."""
    user = team.ask.get("/auth/me")["id"]
    team.ask.put(f"/manage/limits/user/{user}", {"requests_day": LIMIT})
    time.sleep(1)
    counts = Counter(one.status for one in uvloop.run(_crowd(team, team.key, CLIENTS, 5)))
    team.ask.delete(f"/manage/limits/user/{user}")
    time.sleep(1)
    cells = {"ours": f"{counts[200]} of {counts.total()} passed, {LIMIT} may"}
    return Row("team, requests over the limit, 200 clients", cells, abs(counts[200] - LIMIT))


def _revoked(team: Team, times: int) -> Row:
    """From the answer to the revoking until both refuse, each having just served the key."""
    waits = []
    for number in range(times):
        made = team.ask.post("/auth/key", {"name": f"revoked {number}"})
        for port in team.ports:
            _until(port, made["token"], 200)
        team.ask.delete(f"/auth/key/{made['id']}")
        revoked = time.monotonic()
        for port in team.ports:
            _until(port, made["token"], 401)
        waits.append(time.monotonic() - revoked)
    cells = {"ours": f"p50 {median(waits):.2f} s, slowest {max(waits):.2f} s"}
    return Row("team, revoked key, refused by all", cells, max(waits))


def _restarted(team: Team) -> Iterator[Row]:
    """PostgreSQL ended at once and begun again under load, whose callers are known."""
    for port in team.ports:
        _status(port, team.key)
    before = asyncio.run(team.rows())
    with _load(team) as answers:
        time.sleep(1)
        team.postgres.halt()
        time.sleep(2)
        team.postgres.resume()
        time.sleep(2)
    told = Counter(one.status for one in answers)
    deadline = time.monotonic() + 60
    while (written := asyncio.run(team.rows()) - before) < told[200] and time.monotonic() < deadline:
        time.sleep(0.2)
    yield Row(
        "team, PostgreSQL restarts, usage lost",
        {"ours": f"{written} rows of {told[200]} calls"},
        abs(told[200] - written),
    )
    yield Row("team, PostgreSQL restarts, failed calls", {"ours": f"of {told.total()}"}, told.total() - told[200])


def _redis_away(team: Team) -> Row:
    """The slowest call while Redis is stopped (SIGSTOP), beside the slowest of as many before."""
    user = team.ask.get("/auth/me")["id"]
    team.ask.put(f"/manage/limits/user/{user}", {"requests_day": 10_000_000})
    time.sleep(1)
    slowest = []
    for freeze in (False, True):
        if freeze:
            team.redis.freeze()
        with _load(team, clients=4) as answers:
            time.sleep(4)
        slowest.append(max(one.seconds for one in answers))
        if any(one.status != 200 for one in answers):
            slowest[-1] = float("inf")
    team.redis.thaw()
    cells = {"ours": f"{slowest[0] * 1e3:.0f} ms with it, {slowest[1] * 1e3:.0f} ms without"}
    return Row("team, Redis away, longest extra of a call", cells, max(0.0, slowest[1] - slowest[0]) * 1e3)


def _throughput(quick: bool) -> Row:
    """One process on the shared stores, a limit counted, beside one on SQLite that counts by itself."""
    seconds, rounds = (4, 1) if quick else (8, 3)
    ratios, rates, void = [], [], ""
    for _ in range(rounds):
        with single._instant() as upstream, single._ours(upstream) as gate:
            single._warm(gate, "fast")
            alone = single._wrk(gate, "fast", seconds, single.CONNECTIONS)
            void = void or single._missing(gate, upstream)
        with _team(machines=1) as team:
            gate = single.Gate("ours", team.ports[0], team.key)
            user = team.ask.get("/auth/me")["id"]
            team.ask.put(f"/manage/limits/user/{user}", {"requests_day": 10_000_000})
            single._warm(gate, "fast")
            shared = single._wrk(gate, "fast", seconds, single.CONNECTIONS)
            void = void or team.missing()
        if alone.failed or shared.failed:
            void = void or f"{alone.failed + shared.failed} calls failed"
        ratios.append(shared.rate / alone.rate)
        rates.append((alone.rate, shared.rate))
    cells = {"ours": f"{median(b for _, b in rates):,.0f}/s shared, {median(a for a, _ in rates):,.0f}/s alone"}
    return Row("team, requests/s, shared stores beside SQLite", cells, median(ratios), void)


# --- load


@contextmanager
def _load(team: Team, clients: int = 20) -> Iterator[list[Answer]]:
    """Clients one call after the other, at both machines, until the end of the block."""
    answers: list[Answer] = []
    stopping = threading.Event()

    def client(port: int) -> None:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as link:
            while not stopping.is_set():
                begun = time.perf_counter()
                status = _asked(link, team.key)
                answers.append(Answer(status, time.perf_counter() - begun))
                time.sleep(0.01)

    threads = [threading.Thread(target=client, args=(team.ports[n % len(team.ports)],)) for n in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        stopping.set()
        for thread in threads:
            thread.join()


def _asked(link: http.client.HTTPConnection, key: str) -> int:
    """The status, 0 where the connection broke."""
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    try:
        link.request("POST", _CHAT, single._body("fast"), headers)
        answer = link.getresponse()
        answer.read()
        return int(answer.status)
    except (OSError, http.client.HTTPException):
        link.close()
        return 0


async def _crowd(team: Team, key: str, clients: int, each: int) -> list[Answer]:
    """All at once, on a connection each."""

    async def client(number: int) -> list[Answer]:
        gate = single.Gate("ours", team.ports[number % len(team.ports)], key)
        reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
        body = single._body("fast")
        head = (
            f"POST {_CHAT} HTTP/1.1\r\nHost: 127.0.0.1:{gate.port}\r\nAuthorization: Bearer {key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        found = []
        for _ in range(each):
            begun = time.perf_counter()
            writer.write(head.encode() + body)
            told = await reader.readuntil(b"\r\n\r\n")
            length = next(
                int(line.partition(b":")[2])
                for line in told.splitlines()
                if line.lower().startswith(b"content-length:")
            )
            await reader.readexactly(length)
            found.append(Answer(int(told.split(b" ", 2)[1]), time.perf_counter() - begun))
        writer.close()
        return found

    return [one for found in await asyncio.gather(*map(client, range(clients))) for one in found]


def _until(port: int, key: str, status: int) -> None:
    wait_for(lambda: _status(port, key) == status, f"a key to be answered with {status}")


def _status(port: int, key: str) -> int:
    """Of a question that costs nothing."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as link:
        link.request("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})
        return int(link.getresponse().status)


# --- a team


class _Asking:
    """An administrator with a session."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.token = ""

    def get(self, path: str) -> Any:
        return self._ask("GET", path)

    def post(self, path: str, body: object) -> Any:
        return self._ask("POST", path, body)

    def put(self, path: str, body: object) -> Any:
        return self._ask("PUT", path, body)

    def delete(self, path: str) -> Any:
        return self._ask("DELETE", path)

    def _ask(self, method: str, path: str, body: object = None) -> Any:
        headers = {"Content-Type": "application/json"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)) as link:
            link.request(method, path, None if body is None else json.dumps(body), headers)
            answer = link.getresponse()
            data = answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {data[:500]!r}")
        return json.loads(data or b"null")


@contextmanager
def _team(machines: int = 2) -> Iterator[Team]:
    """Machines of one process each, with both models and a key."""
    with ExitStack() as stack:
        upstream = stack.enter_context(single._instant())
        postgres = Postgres()
        postgres.start()
        stack.callback(postgres.end)
        asyncio.run(postgres.create(name="team"))
        asyncio.run(postgres.execute("ALTER DATABASE team SET synchronous_commit TO on"))
        redis = stack.enter_context(a_redis(stack.enter_context(throwaway())))
        base = f"http://127.0.0.1:{upstream}"
        env = {"PATH": os.environ["PATH"], "LLM_PROXY_UPSTREAMS_ALLOW": base, **_SECRETS}
        env |= {"DATABASE_URL": postgres.url("team"), "REDIS_URL": redis.url}
        team = Team([], [], upstream, postgres, redis)
        for _ in range(machines):
            home, port = stack.enter_context(throwaway()), free_port()
            stack.callback(_forget_rings, home)
            command = [sys.executable, "-I", "-m", "llm_proxy", "gateway", "--port", str(port)]
            stack.enter_context(running(command, env | {"HOME": str(home)}, home))
            team.ports.append(port)
            team.homes.append(home)
        for port in team.ports:
            ready = f"http://127.0.0.1:{port}/health/ready"
            wait_for(lambda ready=ready: single._lives(ready), "a machine", 60)
        team.ask = _Asking(team.ports[0])
        team.key = single._furnish(team.ask, base)
        for port in team.ports:
            _until(port, team.key, 200)
        yield team


def _forget_rings(home: Path) -> None:
    for pointer in home.glob(".local/state/llm-proxy/journal/*/ring"):
        Path(pointer.read_text()).unlink(missing_ok=True)
