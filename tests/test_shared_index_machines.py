"""A record of several machines: the lane that fills it, and where the bodies of other machines' calls come from."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path

import anthropic
import psutil
import pytest
from aiohttp import ClientSession
from aiohttp.test_utils import TestServer

from llm_proxy.explorer import guard, site
from llm_proxy.explorer.options import Options, Shared
from llm_proxy.index import bodies
from llm_proxy.index.bodies import Fleet, Local, Storage
from llm_proxy.index.ingest import Indexer
from llm_proxy.index.postgres import open_shared
from llm_proxy.index.postgres_write import SharedIndexer
from llm_proxy.index.queries import Filter, IndexUnavailable, Place, open_index
from llm_proxy.service import passing
from llm_proxy.sinks import log_reader, s3_client
from tests.explored import gemini, record
from tests.fakes3 import FakeS3
from tests.lokibed import Bed, Lanes, until
from tests.postgresbed import SERVER
from tests.sharedbed import shared
from tests.test_sinks_lanes import ask, configured, states

__all__ = ["shared"]


@pytest.fixture
def storage():
    fake = FakeS3()
    yield fake
    fake.close()


@pytest.fixture
def bed(tmp_path):
    made = Bed(tmp_path)
    yield made
    made.close()


def lanes(bed, name, **table):
    told = {"state": str(bed.state), "folder": str(bed.logs), "sinks": [[name, {}]], "name": ""}
    process = Lanes(bed, json.dumps(told), json.dumps({name: table}))
    bed._processes.append(process)
    return process


def standing(bed, name):
    try:
        return json.loads((bed.state / "sinks.json").read_text())["sinks"][name]
    except (OSError, ValueError, KeyError):
        return {}


def counted(url):
    """Calls in the shared index, once each; -1 where nobody can ask."""
    try:
        with open_shared(url) as index:
            ids = [call.id for call in index.calls(Filter())]
            assert len(set(ids)) == len(ids)
            return len(ids)
    except IndexUnavailable:
        return -1


# --- the lane


def test_what_is_recorded_comes_into_the_shared_index(bed, shared):
    """What was there before, what comes while it runs, and what is deleted; over a kill, each call once."""
    bed.make(30)
    table = {"url": shared, "machine": "m1", "address": "http://127.0.0.1:9", "key": "k"}
    first = lanes(bed, "shared-index", **table)
    until(lambda: counted(shared) == 30, first.stop)
    bed.make(20)
    first.wake()
    until(lambda: counted(shared) == 50)
    first.kill()
    bed.make(120, per_session=10)
    second = lanes(bed, "shared-index", **table)
    until(lambda: counted(shared) > 60)
    second.kill()
    third = lanes(bed, "shared-index", **table)
    until(lambda: counted(shared) == 170)
    with closing(Indexer(bed.state / "index.db", bed.logs)) as own:
        own.catch_up_all()
    with open_index(bed.state / "index.db") as one, open_shared(shared) as other:
        assert other.stats(Filter(), "session") == one.stats(Filter(), "session")
        assert list(other.rows("SELECT name, address, secret FROM machines", {})) == [("m1", "http://127.0.0.1:9", "k")]
    third.stop()


def test_while_postgresql_is_away_nothing_is_lost(bed, shared):
    """It is said, tried again, and made up for; a row counts once, however often it was begun."""
    database = shared.rpartition("/")[2]
    bed.make(10)
    process = lanes(bed, "shared-index", url=shared, machine="m1")
    until(lambda: counted(shared) == 10)
    asyncio.run(SERVER.execute(f'ALTER DATABASE "{database}" ALLOW_CONNECTIONS false'))
    asyncio.run(SERVER.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'"))
    bed.make(25)
    process.wake()
    until(lambda: standing(bed, "shared-index").get("state") == "retrying")
    assert "shared index" in standing(bed, "shared-index")["last_error"]
    assert "p%40ss" not in (bed.state / "sinks.json").read_text()
    asyncio.run(SERVER.execute(f'ALTER DATABASE "{database}" ALLOW_CONNECTIONS true'))
    until(lambda: counted(shared) == 35)
    until(lambda: standing(bed, "shared-index").get("state") == "ok")
    assert standing(bed, "shared-index")["parked"] == 0
    process.stop()


# --- storage


def test_files_that_rest_are_copied_and_what_is_deleted_goes_there_too(bed, storage, monkeypatch):
    """Plain lines, whatever they are here; again where they have changed; refused ones later; nothing under way."""
    from llm_proxy.lanes import s3
    from llm_proxy.lanes.sink import Refused

    monkeypatch.setattr(s3, "PAUSE", 0)
    bed.make(12, per_session=4)
    files = sorted(bed.logs.rglob("*.jsonl"))
    options = {"bucket": storage.bucket(), "machine": "m1", "after": 60, "state": str(bed.state)}
    sink = s3.S3(bed.logs, options)
    sink.tend()
    assert not storage.objects  # written just now
    for file in files:
        os.utime(file, (time.time() - 100,) * 2)
    storage.refusing = True
    with pytest.raises(Refused):
        sink.tend()
    storage.refusing = False
    sink.tend()
    name = "kept/team/m1/" + str(files[0].relative_to(bed.logs))
    assert set(storage.objects) == {"kept/team/m1/" + str(file.relative_to(bed.logs)) for file in files}
    assert storage.objects[name] == files[0].read_bytes()
    copies = len(storage.asked)
    sink.tend()
    sink.close()
    sink = s3.S3(bed.logs, options)  # another run knows what is there
    sink.tend()
    assert len(storage.asked) == copies
    lines = files[0].read_bytes()
    packed = files[0].with_name(files[0].name + ".zst")
    packed.write_bytes(log_reader.zstandard().compress(lines))
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes().replace(b"hello", b"jello"))
    files[2].unlink()
    for file in (packed, files[1]):
        os.utime(file, (time.time() - 90,) * 2)
    sink.tend()
    assert storage.objects.pop(name.removesuffix(".jsonl") + ".zst.jsonl") == lines
    assert [b"jello" in data for data in storage.objects.values()] == [True]
    sink.close()
    wrong = s3.S3(bed.logs, options | {"bucket": storage.bucket(secret_key="wrong"), "state": str(bed.logs)})
    with pytest.raises(Refused, match="SignatureDoesNotMatch"):
        wrong.tend()
    wrong.close()


def test_a_file_that_cannot_be_read_keeps_no_other_from_being_copied(bed, storage, monkeypatch):
    """It is counted, once however often it is tried, and copied when it can be read again."""
    from llm_proxy.lanes import s3

    monkeypatch.setattr(s3, "PAUSE", 0)
    bed.make(12, per_session=4)
    files = sorted(bed.logs.rglob("*.jsonl"))
    damaged = files[0].with_name(files[0].name + ".zst")
    files[0].rename(damaged)
    for file in (damaged, *files[1:]):
        os.utime(file, (time.time() - 100,) * 2)
    sink = s3.S3(bed.logs, {"bucket": storage.bucket(), "machine": "m1", "after": 60, "state": str(bed.state)})
    for _ in range(2):
        sink.tend()
        assert len(storage.objects) == 2 and sink.counted == {"copied": 2, "deleted": 0, "unreadable": 1}
    damaged.write_bytes(log_reader.zstandard().compress(damaged.read_bytes()))
    os.utime(damaged, (time.time() - 90,) * 2)
    sink.tend()
    assert len(storage.objects) == 3 and sink.counted == {"copied": 3, "deleted": 0, "unreadable": 0}
    sink.close()


def test_a_copy_that_a_kill_left_unnoted_is_deleted_and_those_in_another_bucket_are_named(bed, storage, monkeypatch):
    """A copy is known before it is made; a bucket copied to before is neither touched nor kept silent about."""
    from llm_proxy.lanes import s3
    from llm_proxy.lanes.deleting import Gone

    monkeypatch.setattr(s3, "PAUSE", 0)
    bed.make(4, per_session=4)
    (file,) = bed.logs.rglob("*.jsonl")
    os.utime(file, (time.time() - 100,) * 2)
    options = {"bucket": storage.bucket(), "machine": "m1", "after": 60, "state": str(bed.state)}
    killed = s3.S3(bed.logs, options)

    class Killed(BaseException):
        pass

    def dies(*given):
        raise Killed

    copy = killed._copy
    monkeypatch.setattr(killed, "_copy", lambda *given: (copy(*given), dies()))
    with pytest.raises(Killed):
        killed.tend()
    killed.close()
    before = s3.S3(bed.logs, options | {"bucket": storage.bucket(name="before")})
    before.tend()
    before.close()
    assert {name.partition("/")[0] for name in storage.objects} == {"kept", "before"}
    lines = file.read_bytes()
    file.unlink()
    sink = s3.S3(bed.logs, options)
    left = sink.forget(Gone({}, ()))
    assert left == f"copies in the bucket before of {storage.url}, where nothing is copied to any more"
    assert {name.partition("/")[0] for name in storage.objects} == {"before"}
    file.write_bytes(lines)
    os.utime(file, (time.time() - 100,) * 2)
    sink.tend()  # copied here, whatever the other bucket has
    assert {name.partition("/")[0] for name in storage.objects} == {"kept", "before"}
    sink.close()


# --- names of machines


def test_a_machine_with_another_name_is_the_same_and_two_of_one_name_are_said(bed, shared, tmp_path):
    """Its files go by the new name, none is read again; who has the same name by chance is told, and writes nothing."""
    from llm_proxy.lanes import shared_index

    bed.make(12, per_session=4)
    options = {"url": shared, "machine": "old.lan", "state": str(bed.state)}
    for name in ("old.lan", "new.lan", "new.lan"):
        sink = shared_index.SharedIndex(bed.logs, options | {"machine": name})
        sink.tend()
        sink.close()
        with open_shared(shared) as index:
            assert {path.partition("/")[0] for path in _files(shared)} == {name}
            assert list(index.rows("SELECT name FROM machines", {})) == [(name,)]
            keys = list(index.rows("SELECT key FROM calls ORDER BY 1", {}))
            assert keys == [(key,) for key in range(1, 13)]
    (tmp_path / "clone").mkdir()
    clone = shared_index.SharedIndex(bed.logs, options | {"machine": "new.lan", "state": str(tmp_path / "clone")})
    with pytest.raises(OSError, match=r"another machine is called 'new.lan'.*set index.machine"):
        clone.tend()
    clone.close()


def test_a_machine_that_is_gone_is_forgotten_and_older_versions_too(bed, shared, environ, tmp_path):
    """By the command, which takes out no machine that lives, nor this one, and drops no newer version's schema."""
    bed.make(12, per_session=4)
    for machine in ("gone", "stays"):
        with closing(SharedIndexer(shared, machine, bed.logs)) as indexer:
            if machine == "gone":
                indexer.fill()
            indexer.announce("", "k", time.time() - 3600 * (machine == "gone"))
    with closing(SharedIndexer(shared, "stays", record(tmp_path).logs)) as indexer:
        indexer.fill()
    database = shared.rpartition("/")[2]
    for schema in ("llm_proxy_index_2", "llm_proxy_index_3_9", "llm_proxy_index_999_1", "llm_proxy_indexes"):
        asyncio.run(SERVER.execute(f"CREATE SCHEMA {schema}", database))
    there = counted(shared)
    config = configured(environ, f'[index]\ndatabase_url = "{shared}"\nmachine = "this"\n')

    def run(*words):
        command = [sys.executable, "-m", "llm_proxy", "reindex", *words, "--config", config]
        return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)

    for name, said in (("stays", "was there"), ("this", "is this machine"), ("no such", "knows no machine")):
        done = run("--forget-machine", name)
        assert done.returncode == 2 and said in done.stderr, done
    done = run("--forget-machine", "gone", "--forget-versions", "--json")
    assert json.loads(done.stdout) == {"files": 3, "schemas": ["llm_proxy_index_2", "llm_proxy_index_3_9"]}, done
    assert counted(shared) == there - 12
    assert {path.partition("/")[0] for path in _files(shared)} == {"stays"}
    assert run("--forget-versions").stdout == "no older version has left anything\n"


def test_a_machine_that_hangs_is_waited_for_no_longer_than_the_page_has(tmp_path):
    """Then it is not asked again at once, unless it had next to no time."""
    with socket.create_server(("127.0.0.1", 0)) as hanging:  # connections come to stand in its queue
        address = bodies.Address(f"http://127.0.0.1:{hanging.getsockname()[1]}", "k")
        fleet = Fleet("here", Local(tmp_path), lambda: {"there": address})
        place = Place("there/x/y.jsonl", 0, 10)
        for seconds, avoided in ((0.2, False), (2.0, True)):
            began = time.monotonic()
            with pytest.raises(OSError, match="timed out"):
                fleet.entry(place, began + seconds)
            assert time.monotonic() - began < seconds
            assert ("there" in fleet._avoided) == avoided


# --- what users want to be deleted


def test_what_is_deleted_is_answered_when_the_shared_index_and_storage_are_rid_of_it(bed, shared, storage, monkeypatch):
    """Not while either cannot be asked; copies of changed files go at once; a bucket that keeps versions is named."""
    from llm_proxy.index.postgres import Unreachable
    from llm_proxy.lanes import s3, shared_index
    from llm_proxy.lanes.deleting import Gone
    from llm_proxy.lanes.sink import Refused

    assert {"shared-index", "s3"} <= set(passing.DELETING)
    bed.make(12, per_session=4)
    files = sorted(bed.logs.rglob("*.jsonl"))
    for file in files:
        os.utime(file, (time.time() - 100,) * 2)
    index = shared_index.SharedIndex(bed.logs, {"url": shared, "machine": "m1"})
    copies = s3.S3(bed.logs, {"bucket": storage.bucket(), "machine": "m1", "after": 60, "state": str(bed.state)})
    index.tend()
    copies.tend()
    assert counted(shared) == 12 and len(storage.objects) == 3
    files[0].unlink()
    lines = files[1].read_bytes().splitlines(keepends=True)
    beside = files[1].with_name("new")
    beside.write_bytes(b"".join(lines[:3]))  # its session's beginning and one call
    beside.replace(files[1])
    gone = Gone({}, ())
    database = shared.rpartition("/")[2]
    _refuse(database)
    storage.refusing = True
    with pytest.raises(Unreachable):
        index.forget(gone)
    with pytest.raises(Refused):
        copies.forget(gone)
    _back(database)
    storage.refusing = False
    assert index.forget(gone) == copies.forget(gone) == ""
    assert counted(shared) == 5
    kept = f"kept/team/m1/{files[2].relative_to(bed.logs)}"
    assert list(storage.objects) == [kept]
    files[2].unlink()
    storage.versions = True
    assert "older versions of copies in the bucket kept" in copies.forget(gone)
    assert not storage.objects
    index.close()
    copies.close()


# --- bodies


class Machine:
    """An explorer of its own, with logs of its own, before the shared index."""

    def __init__(self, folder: Path, name: str, url: str, bucket: dict[str, str]) -> None:
        self.name, self.url = name, url
        self.made = record(folder)
        self.state = folder / "state"
        self.state.mkdir(mode=0o700)
        self.secret = guard.new_secret(self.state)
        options = Options(
            index=str(self.made.index),
            logs=str(self.made.logs),
            state=str(self.state),
            shared=Shared(url, name, bucket),
        )
        self.server = TestServer(site.application(options))

    def fill(self, address: str) -> None:
        with closing(SharedIndexer(self.url, self.name, self.made.logs)) as indexer:
            indexer.fill()
            indexer.announce(address, bodies.key_of(self.secret), time.time())

    async def get(self, path: str, **headers: str) -> tuple[int, str]:
        async with ClientSession() as session:
            given = headers or guard.bearer(self.secret)
            async with session.get(self.server.make_url(f"/llm-proxy{path}"), headers=given) as answer:
                return answer.status, await answer.text()


@pytest.fixture
async def east(tmp_path, shared, storage):
    """Has recorded what `west` is asked for."""
    (tmp_path / "east").mkdir()
    machine = Machine(tmp_path / "east", "east", shared, {})
    await machine.server.start_server()
    await asyncio.to_thread(machine.fill, str(machine.server.make_url("")))
    yield machine
    await machine.server.close()


@pytest.fixture
async def west(tmp_path, shared, storage):
    """Has recorded nothing: all that it shows is another machine's."""
    (tmp_path / "west").mkdir()
    machine = Machine(tmp_path / "west", "west", shared, storage.bucket())
    shutil.rmtree(machine.made.logs)
    await machine.server.start_server()
    yield machine
    await machine.server.close()


async def test_a_conversation_is_read_from_the_machine_that_has_it(east, west, storage, monkeypatch):
    """By its key alone; from storage where it does not answer; else what the index knows, with the machine's name."""
    monkeypatch.setattr(bodies, "_AVOIDED", 0.0)
    page = f"/sessions/{east.made.sessions['ledger']}"
    for machine in (east, west):
        status, listed = await machine.get("/")
        assert status == 200 and east.made.sessions["ledger"] in listed
        status, shown = await machine.get(page)
        assert status == 200 and "def test_reconcile_groups_match" in shown
    assert not storage.asked
    for file in east.made.logs.rglob("*.jsonl"):
        if file.parent != east.made.logs:
            storage.objects[f"kept/team/east/{file.relative_to(east.made.logs)}"] = file.read_bytes()
    await east.server.close()
    page = f"/sessions/{east.made.sessions['spent']}"
    status, shown = await west.get(page)
    assert status == 200 and "Bytes sleep in the leaves" in shown
    assert {status for _, _, status in storage.asked} == {206}
    storage.objects.clear()
    page = f"/sessions/{east.made.sessions['gemini']}"
    status, shown = await west.get(page)
    assert status == 200
    status, shown = await west.get(f"{page}/part?call={east.made.calls['gemini'][0]}&part=tools")
    assert status == 410 and "on the machine east" in shown
    status, told = await west.get(f"/api{page}")
    assert "east/generativelanguage.googleapis.com/" in told


async def test_a_machine_gives_lines_of_its_logs_to_who_has_its_key(east, tmp_path):
    """Nothing without the key, nothing that is no entry, nothing from beside the logs."""
    file = next(one for one in east.made.logs.rglob("*.jsonl") if one.parent != east.made.logs)
    name, first = file.relative_to(east.made.logs), len(file.read_bytes().partition(b"\n")[0]) + 1
    right = {"Authorization": f"Bearer {bodies.key_of(east.secret)}"}
    whole = f"/entry?file={name}&offset=0&length={first}"
    assert await east.get(whole, **right) == (200, file.read_text().partition("\n")[0] + "\n")
    for wrong in ("", "Bearer ", "Bearer x", f"Bearer {east.secret}", f"Basic {bodies.key_of(east.secret)}"):
        assert (await east.get(whole, Authorization=wrong))[0] == 401
    shutil.copy(file, tmp_path / "east" / "beside.jsonl")
    os.symlink(tmp_path / "east" / "beside.jsonl", east.made.logs / "api.openai.com" / "link.jsonl")
    for path in (
        "../beside.jsonl",
        "x/../../beside.jsonl",
        f"{tmp_path}/east/beside.jsonl",
        "api.openai.com/link.jsonl",
        ".hidden/x.jsonl",
        "",
        f"{name}%00",
        "no/such.jsonl",
    ):
        assert (await east.get(f"/entry?file={path}&offset=0&length={first}", **right))[0] == 404, path
    for numbers in ("offset=1&length=50", "offset=-1&length=9", "offset=0&length=", "offset=0", "offset=9e9&length=1"):
        assert (await east.get(f"/entry?file={name}&{numbers}", **right))[0] == 404, numbers
    status, _ = await east.get("/", **right)
    assert status == 401  # it opens nothing else


def test_an_entry_is_looked_for_where_it_can_be(tmp_path, storage):
    """Own files first; a machine that does not answer is not asked again at once; storage; then it is said where."""
    made = record(tmp_path)
    with open_index(made.index) as index:
        place = next(index.calls(Filter())).request
    own = Local(made.logs)
    wanted = own.entry(place)
    bucket = s3_client.Bucket(**storage.bucket())
    copies = Storage(lambda: s3_client.client(bucket), bucket.name, bucket.prefix)
    dead = {"gone": bodies.Address("http://127.0.0.1:1", "k")}
    asked = []

    def addresses():
        asked.append(1)
        return dead

    alone, kept = Fleet("here", own, addresses), Fleet("here", own, addresses, copies)
    there = place._replace(file=f"gone/{place.file}")
    assert alone.entry(place._replace(file=f"here/{place.file}")) == wanted
    with pytest.raises(OSError):
        alone.entry(there)
    with pytest.raises(OSError, match="on the machine gone"):
        alone.entry(there)
    with pytest.raises(OSError, match="on the machine unknown"):
        alone.entry(place._replace(file=f"unknown/{place.file}"))
    assert len(asked) == 1
    with pytest.raises(OSError, match="storage"):
        kept.entry(there)
    storage.objects[f"kept/team/gone/{place.file}"] = (made.logs / place.file).read_bytes()
    assert kept.entry(there) == wanted
    with pytest.raises(ValueError):
        kept.entry(there._replace(length=place.length - 2))


# --- while it is away


def _filled(url, machine, logs):
    with closing(SharedIndexer(url, machine, logs)) as indexer:
        indexer.fill()


ALONE = "cannot be asked just now: this is what east alone has recorded"


def _hang(database):
    SERVER.freeze()


def _refuse(database):
    asyncio.run(SERVER.execute(f'ALTER DATABASE "{database}" ALLOW_CONNECTIONS false'))
    asyncio.run(SERVER.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'"))


def _back(database):
    SERVER.thaw()
    asyncio.run(SERVER.execute(f'ALTER DATABASE "{database}" ALLOW_CONNECTIONS true'))


@pytest.mark.parametrize("go", [_hang, _refuse])
async def test_while_it_is_away_a_machine_shows_its_own_record_and_says_so(east, shared, go):
    """Pages and JSON of this machine alone, with words; only who comes first waits; all of it again by itself."""
    database = shared.rpartition("/")[2]
    folder = Path(east.made.logs).parent / "others"
    folder.mkdir()
    other = record(folder, scenes=[gemini])
    for file in other.logs.rglob("*.jsonl"):
        file.write_text(file.read_text().replace("-0000000", "-1000000"))  # sessions of its own
    await asyncio.to_thread(_filled, shared, "other", other.logs)
    theirs = next(iter(other.sessions.values())).replace("-0000000", "-1000000")
    status, page = await east.get("/")
    assert status == 200 and theirs in page and ALONE not in page
    await asyncio.to_thread(go, database)
    try:
        for patience in (15, 3):
            began = time.monotonic()
            status, page = await east.get("/")
            assert status == 200 and ALONE in page and theirs not in page and east.made.sessions["ledger"] in page
            assert time.monotonic() - began < patience
        status, page = await east.get(f"/sessions/{east.made.sessions['ledger']}")
        assert status == 200 and ALONE in page and "def test_reconcile_groups_match" in page
        address = east.server.make_url("/llm-proxy/api/sessions")
        async with ClientSession(headers=guard.bearer(east.secret)) as session, session.get(address) as answer:
            assert answer.headers["X-LLM-Proxy-Record"] == "east only"
    finally:
        await asyncio.to_thread(_back, database)
    async with asyncio.timeout(30):
        while ALONE in page or theirs not in page:
            status, page = await east.get("/")
            assert status == 200


# --- the whole of it


def test_a_daemon_shares_what_it_records(start, environ, provider, shared):
    """By its settings alone: calls come into the shared index, its explorer shows it, and no command line tells."""
    with closing(SharedIndexer(shared, "other", _logs_of_another(Path(environ["HOME"])))) as other:
        other.fill()
    config = f'[index]\ndatabase_url = "{shared}"\nmachine = "this"\naddress = "http://127.0.0.1:1"\n'
    daemon = start("--port", "0", "--config", configured(environ, config))
    ask(daemon, provider, "say this to the shared index")
    until(lambda: any(path.startswith("this/") for path in _files(shared)), lambda: [*daemon.lines])
    request = urllib.request.Request(f"{daemon.url}/llm-proxy/api/sessions")
    request.add_header("Authorization", f"Bearer {(daemon.state / 'secret').read_text()}")
    wanted = {"say this to the shared index", "What does the borrow checker say?"}
    until(lambda: wanted <= _titles(request), lambda: [*daemon.lines])
    for process in psutil.Process(daemon.process.pid).children(recursive=True):
        assert SERVER.url("x").rpartition("@")[0] not in " ".join(process.cmdline())
    assert states(daemon)["shared-index"]["state"] == "ok"


def test_a_conversation_whose_calls_alternate_between_daemons_is_one(start, environ, provider, shared, tmp_path):
    """No id of the client's, no session file in common: each machine's keeper has a part, the explorer shows one."""
    daemons = []
    for name in ("east", "west"):
        home = tmp_path / name
        home.mkdir()
        config = configured({"HOME": str(home)}, f'[index]\ndatabase_url = "{shared}"\nmachine = "{name}"\n')
        daemons.append(start("--port", "0", "--config", config, env={"HOME": str(home)}))
    said = [{"role": "user", "content": "Which animal has stripes?"}]
    for turn in range(6):
        daemon = daemons[turn % 2]
        url = f"{daemon.url}/anthropic/127.0.0.1:{provider.port}"
        with anthropic.Anthropic(base_url=url, api_key="sk-ant-api03-0123456789abcdef", max_retries=0) as client:
            answer = client.messages.create(model="claude-sonnet-4-6", max_tokens=100, messages=said)
        said += [{"role": "assistant", "content": answer.content}, {"role": "user", "content": f"And animal {turn}?"}]
    until(lambda: counted(shared) == 6, lambda: [line for daemon in daemons for line in daemon.lines])
    with open_shared(shared) as index:
        (row,) = index.sessions(Filter())
        assert row.calls == 6 and {file.partition("/")[0] for file in row.files} == {"east", "west"}
        assert [call.seq for call in index.calls_of(row.id)] == [1, 2, 3, 4, 5, 6]
    request = urllib.request.Request(f"{daemons[1].url}/llm-proxy/api/sessions/{row.id}")
    request.add_header("Authorization", f"Bearer {(daemons[1].state / 'secret').read_text()}")
    with urllib.request.urlopen(request, timeout=30) as told:
        shown = json.loads(told.read())
    assert shown["machines"] == ["east", "west"]
    assert shown["figures"]["calls"] == len(shown["turns"]) == 6


def _titles(request):
    """None of them while a busy machine takes longer than a page may."""
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            listed = json.loads(answer.read())
    except urllib.error.HTTPError as error:
        assert error.code == 503, error.read()
        return set()
    return {one["title"] for group in listed["groups"] for one in group["sessions"]}


def _files(url):
    with open_shared(url) as index:
        return [path for (path,) in index.rows("SELECT path FROM files", {})]


def _logs_of_another(home):
    (home / "another").mkdir()
    return record(home / "another").logs
