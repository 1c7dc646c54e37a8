"""Calls get to Loki at least once, oldest first, whatever Loki or the sender goes through; and no more memory is taken."""

import json
import random
import socket
import threading
import time

import pytest

from llm_proxy.lanes.posting import retry_after
from tests.fakeloki import FakeLoki, Limits
from tests.lokibed import LINES, Bed, until
from tests.test_upstreams import Authority


@pytest.fixture
def bed(tmp_path):
    made = Bed(tmp_path / "bed")
    yield made
    made.close()


@pytest.fixture
def loki():
    with FakeLoki() as server:
        yield server


def expected(calls, per_session=50):
    """Lines of calls as `bed.make` makes them: those of each, and a start for each session."""
    return calls * LINES + -(-calls // per_session)


def exchanges(loki):
    """Per call the kinds of its lines, in the order of their times."""
    found = {}
    for entry in loki.entries():
        if exchange := entry.told("exchange"):
            found.setdefault(exchange, []).append(entry.told("log_type"))
    return found


WHOLE = ["turn_start", "request", "response", "turn_end"]


def whole(loki, ids):
    """All calls have all lines, each once."""
    found = exchanges(loki)
    assert set(found) == set(ids)
    assert [kinds for kinds in found.values() if kinds != WHOLE] == []


def test_an_outage_of_an_hour_loses_nothing_and_costs_no_memory(bed):
    """50,000 entries while the port is closed: all arrive once, in order, and the process grows by 20 MB at most."""
    loki = FakeLoki()
    with loki:
        lanes = bed.lanes(loki.url)
        first = bed.make(50, since=time.time() - 3700)
        loki.wait(entries=expected(50))
        before = lanes.rss()
        loki.close()
        ids = first + bed.make(12_490, since=time.time() - 3690, step=3600 / 12_490)
        lanes.wake()
        until(lambda: bed.standing().get("retries", 0) >= 2, bed.standing)
        told = bed.standing()
        assert told["waiting"] == 12_490 and told["since"]
        assert told["last_error"] == f"127.0.0.1:{loki.port} cannot be reached: Connection refused"
        most = lanes.rss()
        loki.open()
        total = expected(50) + expected(12_490)
        assert total > 50_000

        def arrived():
            nonlocal most
            most = max(most, lanes.rss())
            return loki.accepted >= total

        until(arrived, lambda: (loki.accepted, total, bed.standing()), 120)
        assert (loki.accepted, loki.duplicates, loki.refused) == (total, 0, 0)
        assert most - before < 20e6
        whole(loki, ids)
        until(lambda: bed.standing()["waiting"] == 0, bed.standing)
        told = bed.standing()
        assert told["state"] == "ok" and told["passed"] == len(ids) and told["counted"]["entries"] == total
        times = [json.loads(entry.text)["_meta"]["ts"] for entry in loki.entries(log_type="request")]
        assert times == sorted(times)
        assert lanes.stop() < 8


def test_killed_again_and_again_nothing_is_missing_and_what_is_doubled_is_identical(bed, loki):
    """SIGKILL at any moment, also between Loki's taking a push and our noting it: turns go on where they were."""
    ids = bed.make(1500)
    loki.late = 0.03  # the moment between, made wider
    chance = random.Random(8)
    for _ in range(12):
        seen = len(loki.pushes)
        lanes = bed.lanes(loki.url, batch_size=60)
        loki.wait(pushes=seen + chance.randint(1, 8))
        time.sleep(chance.random() * 0.05)  # any moment
        lanes.kill()
    loki.late = 0
    bed.lanes(loki.url)
    loki.wait(entries=expected(1500), timeout=60)
    until(lambda: bed.standing().get("since") == 0, bed.standing)
    # What differed in a byte would be an entry of its own.
    assert len(loki.entries()) == expected(1500) and loki.refused == 0
    assert loki.duplicates > 0
    whole(loki, ids)
    depths = {}
    for entry in loki.entries(log_type="turn_end"):
        depths.setdefault(entry.json["session_id"], []).append(entry.json["turn_depth"])
    assert len(depths) == 30 and all(depth == list(range(1, 51)) for depth in depths.values())


def test_too_many_requests_are_waited_for_as_long_as_loki_says(bed, loki):
    """429 with Retry-After: not one push before; a failure or two is not yet a sick sink."""
    loki.fail, loki.fail_next, loki.retry_after = 429, 2, "1"
    bed.make(3)
    bed.lanes(loki.url)
    loki.wait(entries=expected(3))
    first, second, third = loki.pushes
    assert (first.status, second.status, third.status) == (429, 429, 204)
    assert second.at - first.at >= 0.99 and third.at - second.at >= 0.99
    until(lambda: bed.standing().get("passed") == 3, bed.standing)
    told = bed.standing()
    assert (told["state"], told["retries"], told["parked"]) == ("ok", 2, 0)
    assert "429: ingestion rate limit exceeded" in told["last_error"]


@pytest.mark.parametrize(
    ("said", "low", "high"),
    [
        ("0", 0, 0),
        ("7", 7, 7),
        ("99999999", 600, 600),
        ("9" * 400, 600, 600),
        ("", 0, 0),
        ("-5", 0, 0),
        ("soon", 0, 0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
        ("Wed, 21 Oct 2099 07:28:00 GMT", 600, 600),
        ("\u0663", 0, 3),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_never_for_ever(said, low, high):
    """RFC 9110 §10.2.3; what is nonsense says nothing."""
    assert low <= retry_after(said) <= high


def test_an_outage_grows_into_an_unhealthy_sink(bed, loki):
    """`retry_max` failures in a row; then it is said, and it goes on trying. Pauses grow."""
    loki.fail, loki.fail_body = 503, "no ingester"
    bed.make(1)
    bed.lanes(loki.url, retry_max=3)
    loki.wait(pushes=2)
    assert bed.standing().get("state", "ok") == "ok"
    until(lambda: bed.standing().get("state") == "retrying", bed.standing)
    assert bed.standing()["retries"] >= 3 and "503: no ingester" in bed.standing()["last_error"]
    gaps = [after.at - before.at for before, after in zip(loki.pushes, loki.pushes[1:], strict=False)]
    assert gaps[1] > gaps[0] >= 0.18
    loki.fail = 0
    loki.wait(entries=expected(1))
    until(lambda: bed.standing()["state"] == "ok", bed.standing)


def test_one_bad_entry_in_a_thousand_is_put_aside_and_the_others_arrive(bed):
    """400: halved until it is found; told with Loki's words and its place in the log, not with what it says."""
    with FakeLoki(limits=Limits(line=50_000)) as loki:
        ids = [*bed.make(120), *bed.make(1, text="secret " * 10_000), *bed.make(120)]
        bed.lanes(loki.url, batch_size=2000)
        loki.wait(entries=expected(120) * 2 + 1 + LINES - 1)
        until(lambda: bed.standing().get("parked") == 1, bed.standing)
        told = exchanges(loki)
        assert {id: kinds for id, kinds in told.items() if kinds != WHOLE} == {
            ids[120]: ["turn_start", "response", "turn_end"]
        }
        assert set(told) == set(ids)
        (parked,) = bed.parked()
        assert parked["stream"]["log_type"] == "request" and parked["ts"].isdecimal()
        assert "Max entry size '50000' bytes exceeded" in parked["error"]
        assert parked["file"].endswith(".jsonl") and "secret secret" not in json.dumps(parked)
        assert (bed.state / "parked/loki.jsonl").stat().st_mode & 0o777 == 0o600
        assert len(loki.pushes) < 30
        assert bed.standing()["state"] == "ok" and bed.standing()["passed"] == 241


def test_what_is_older_than_loki_takes_is_put_aside_at_once(bed, loki):
    """A backlog of more than a week: one answer is enough to know which they are."""
    old, new = bed.make(100, since=time.time() - 10 * 86400), bed.make(100)
    bed.lanes(loki.url, batch_size=1000)
    loki.wait(entries=expected(100))
    until(lambda: bed.standing().get("parked") == expected(100), bed.standing)
    assert set(exchanges(loki)) == set(new) and not set(old) & set(new)
    assert len(loki.pushes) < 10


def test_where_nothing_is_taken_at_all_nothing_is_put_aside_in_haste(bed, loki):
    """A server that calls everything bad is more likely the wrong one: it is told, and tried again."""
    loki.fail, loki.fail_body = 400, "The plain HTTP request was sent to HTTPS port"
    bed.make(3)
    bed.lanes(loki.url)
    until(lambda: bed.standing().get("state") == "retrying", bed.standing)
    assert "plain HTTP request" in bed.standing()["last_error"]
    assert bed.standing()["parked"] == 0 and bed.parked() == []


def test_a_push_that_is_too_large_is_halved(bed):
    """413 of something between us: smaller pushes get through, and the next ones are small at once."""
    with FakeLoki() as loki:
        loki.fail, loki.fail_next, loki.fail_body = 413, 1, "body too large"
        ids = bed.make(400)
        bed.lanes(loki.url, batch_size=1000)
        loki.wait(entries=expected(400))
        sizes = [push.entries for push in loki.pushes if push.status == 204]
        until(lambda: bed.standing().get("passed") == 400, bed.standing)
        assert bed.standing()["parked"] == 0 and max(sizes) < 700
        whole(loki, ids)


@pytest.mark.parametrize("status", [401, 403, 404, 302])
def test_what_needs_a_person_is_told_at_once_and_nothing_is_dropped(bed, loki, status):
    """A wrong token, a wrong address: unhealthy with the first answer; a start with better settings sends it all."""
    loki.fail, loki.fail_body = status, "no"
    ids = bed.make(5)
    lanes = bed.lanes(loki.url)
    until(lambda: bed.standing().get("state") == "retrying", bed.standing)
    assert f"Loki answered {status}: no" in bed.standing()["last_error"] and len(loki.pushes) == 1
    lanes.kill()
    loki.fail = 0
    bed.lanes(loki.url)
    loki.wait(entries=expected(5))
    whole(loki, ids)


def test_pushes_are_bounded_by_entries_and_by_bytes_and_compressed_if_wanted(bed, loki):
    """Neither more entries than `batch_size` nor more bytes than `max_batch_bytes`, a single large call aside."""
    bed.make(100)
    bed.lanes(loki.url, batch_size=50, use_gzip=False).wake()
    loki.wait(entries=expected(100))
    assert max(push.entries for push in loki.pushes) <= 50
    assert not any("content-encoding" in push.headers for push in loki.pushes)
    until(lambda: bed.standing().get("since") == 0, bed.standing)
    bed.close()
    before = len(loki.pushes)
    bed.make(40, text="word " * 4000)
    bed.lanes(loki.url, max_batch_bytes=64 * 1024, use_gzip=False)
    loki.wait(entries=expected(100) + expected(40))
    assert max(push.size for push in loki.pushes[before:]) <= 66 * 1024
    assert len(loki.pushes) - before >= 40 * 20_000 // (64 * 1024)


def test_few_calls_wait_for_others_but_not_for_ever(bed, loki):
    """One push for calls that come one after the other within `batch_wait`."""
    bed.make(1)
    began = time.monotonic()
    lanes = bed.lanes(loki.url, batch_wait=3.0)
    until(lambda: bed.standing().get("waiting") == 1, bed.standing)
    bed.make(2)
    lanes.wake()
    loki.wait(entries=expected(1) + expected(2))
    assert len(loki.pushes) == 1 and loki.pushes[0].at - began >= 3
    bed.make(1)
    lanes.wake()
    until(lambda: bed.standing().get("waiting") == 1, bed.standing)
    lanes.stop()  # which waits for nobody
    assert len(loki.pushes) == 2 and loki.accepted == 2 * expected(1) + expected(2)


def test_a_loki_that_hangs_holds_up_neither_the_figures_nor_the_end(bed, loki):
    """What waits is counted while a push gets no answer; a stop takes 10 s at most; the next start sends all."""
    loki.hang = True
    ids = bed.make(3)
    lanes = bed.lanes(loki.url)
    loki.wait(pushes=1)
    until(lambda: bed.standing().get("waiting") == 3, bed.standing)
    ids += bed.make(7)
    lanes.wake()
    until(lambda: bed.standing().get("waiting") == 10, bed.standing)
    assert lanes.stop() < 13
    loki.hang = False
    bed.lanes(loki.url)
    loki.wait(entries=expected(3) + expected(7))
    whole(loki, ids)


def test_a_stop_while_loki_is_down_tries_once_more(bed, loki):
    """What came during an outage that is just over is not left for the next start."""
    loki.close()
    ids = bed.make(5)
    lanes = bed.lanes(loki.url, retry_max=1)
    until(lambda: bed.standing().get("retries", 0) >= 4, bed.standing)
    loki.open()
    assert lanes.stop() < 8
    whole(loki, ids)


# -- who sends --------------------------------------------------------------------------------------------------------

TOKEN, PASSWORD = "glc_eyJvIjoiMTIzNDU2Nzg5MCJ9", "p ss:wörd%2F"


@pytest.mark.parametrize(
    ("server", "options"),
    [
        ({"bearer": TOKEN}, {"auth_token": TOKEN}),
        ({"user": "me", "password": PASSWORD}, {"username": "me", "password": PASSWORD}),
        ({"multi_tenant": True}, {"tenant": "team-a"}),
    ],
)
def test_credentials_are_brought_and_shown_nowhere(bed, server, options):
    """Right: taken. Wrong: refused, and neither files, nor output, nor the command line tell them."""
    with FakeLoki(**server) as loki:
        bed.make(2)
        wrong = {name: value[:-1] + "X" if name != "tenant" else "" for name, value in options.items()}
        loki.fail_body = f"I know {TOKEN} and {PASSWORD}"
        lanes = bed.lanes(loki.url, **wrong)
        until(lambda: bed.standing().get("state") == "retrying", bed.standing)
        assert "Loki answered 401" in bed.standing()["last_error"] and loki.accepted == 0
        shown = lanes.process.args[-1]
        lanes.stop()
        lanes = bed.lanes(loki.url, **options)
        loki.wait(entries=expected(2))
        (owner,) = {entry.tenant for entry in loki.entries()}
        assert owner == options.get("tenant", "fake")
        shown += lanes.process.args[-1]
        lanes.stop()
        shown += "".join(path.read_text(errors="replace") for path in bed.state.rglob("*") if path.is_file())
        for name, secret in [*options.items(), *wrong.items()]:
            if name in ("auth_token", "password"):
                assert secret not in shown


def test_a_server_that_repeats_credentials_does_not_get_them_into_the_record(bed, loki):
    """A proxy's error page may hold the request; what is said of it is masked and stands on one line."""
    loki.fail, loki.fail_body = 403, f"denied\x1b[31m\nAuthorization: Bearer {TOKEN}"
    bed.make(1)
    bed.lanes(loki.url, auth_token=TOKEN)
    until(lambda: bed.standing().get("last_error"), bed.standing)
    assert bed.standing()["last_error"] == "Loki answered 403: denied [31m Authorization: Bearer [masked]"


def test_what_comes_instead_of_an_answer_is_not_repeated(bed):
    """A server that speaks no HTTP may say anything, our token too."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            link, _ = server.accept()
            with link:
                link.recv(65536)
                link.sendall(f"220 hello Bearer {TOKEN}\r\n\r\n".encode())

        threading.Thread(target=serve, daemon=True).start()
        bed.make(1)
        port = server.getsockname()[1]
        bed.lanes(f"http://127.0.0.1:{port}/", auth_token=TOKEN)
        until(lambda: bed.standing().get("last_error"), bed.standing)
        assert bed.standing()["last_error"] == f"127.0.0.1:{port}: no answer: what came is not HTTP"


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca"))


def test_only_a_server_that_can_prove_who_it_is_gets_anything(bed, authority, tmp_path):
    """With the CA's file it is trusted; without, or with another's, not a byte of a call is sent."""
    tls = authority.server("loki", "IP:127.0.0.1")
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other")
    with FakeLoki(tls=tls) as loki:
        bed.make(2)
        for ca_file in ("", str(other.certificate), str(tmp_path / "absent.pem")):
            lanes = bed.lanes(loki.url, ca_file=ca_file, retry_max=1)
            until(lambda: bed.standing().get("state") == "retrying", bed.standing)
            error = bed.standing()["last_error"]
            assert "absent.pem cannot be used" in error if "absent" in ca_file else "CERTIFICATE_VERIFY_FAILED" in error
            lanes.stop()
            (bed.state / "sinks.json").unlink()
        assert loki.pushes == []
        bed.lanes(loki.url, ca_file=str(authority.certificate))
        loki.wait(entries=expected(2))
