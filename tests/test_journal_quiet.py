"""A journal that nothing is written to: what is settled does not lie there until a segment is full."""

import json
import secrets
import time
import urllib.request

from tests.recorded import Provider


def holding(folder, words):
    return [path for path in folder.rglob("*") if path.is_file() and words.encode() in path.read_bytes()]


def ask(daemon, provider, text, call=0):
    body = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": text}]}
    request = urllib.request.Request(
        f"{daemon.url}/anthropic/127.0.0.1:{provider.port}/v1/messages",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.read()


def test_a_secret_in_a_prompt_leaves_the_disk_when_the_call_is_settled(daemon):
    """Redacted in the log; of the journal, which has bodies as they came, nothing is left after a few quiet seconds."""
    provider = Provider()
    try:
        key = "sk-proj-" + secrets.token_urlsafe(48)
        ask(daemon, provider, f"my key is {key}")
        told = daemon.entries(until=lambda found: any(one["type"] == "response" for one in found))
        assert not any(key in json.dumps(entry) for entry in told)
        deadline = time.monotonic() + 60
        while found := holding(daemon.home, key):
            assert time.monotonic() < deadline, found
            time.sleep(0.1)
        ask(daemon, provider, "and then?")
        daemon.entries(until=lambda found: sum(one["type"] == "response" for one in found) == 2)
    finally:
        provider.stop()


def test_calls_go_on_over_the_turn_of_a_segment(daemon):
    """A quiet while between calls, kills of the keeper in between: each stands in the log once, in order."""
    provider = Provider()
    try:
        segments = daemon.state / "journal/foreground-1"
        for number in range(3):
            before = sorted(segments.glob("*.seg"))
            ask(daemon, provider, f"question {number}")
            daemon.entries(
                until=lambda found, wanted=number + 1: sum(one["type"] == "response" for one in found) == wanted
            )
            if number == 2:  # no call comes behind it
                break
            deadline = time.monotonic() + 60
            while sorted(segments.glob("*.seg")) == before or len(sorted(segments.glob("*.seg"))) > 1:
                assert time.monotonic() < deadline
                time.sleep(0.1)
    finally:
        provider.stop()
    assert daemon.stop() == 0
    told = [one for one in daemon.entries() if one["type"] == "request"]
    assert [json.loads(one["body"])["messages"][0]["content"] for one in told] == [f"question {n}" for n in range(3)]
