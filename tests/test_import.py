"""`llm-proxy import`: logs of five programs and five eras become session logs like those of live calls."""

import pytest

from tests import oldlogs
from tests.oldlogs import JWT, Reference, answer, append, claude_trace, proxy_llm, question, sse, taco
from tests.test_ask import Home


@pytest.fixture
def home(tmp_path):
    (tmp_path / "home").mkdir()
    return Home(tmp_path / "home")


@pytest.fixture
def old(tmp_path):
    return tmp_path / "old"


def _calls(home):
    """All calls with their entries, by time."""
    found = [call for row in home.json("sessions")["sessions"] for call in home.json("view", row["id"])["calls"]]
    return sorted(found, key=lambda call: (call["request"]["_meta"]["ts"], call["seq"]))


def _log(home):
    """Everything that stands in the log folder."""
    return b"".join(path.read_bytes() for path in sorted((home.folder / ".llm-provider-logs").rglob("*.jsonl")))


@pytest.mark.parametrize("era", range(5))
def test_every_era_of_the_reference(home, old, era):
    """Its own ids where it had them, its times, bodies as they were, understood and counted like live calls."""
    log = Reference(old, era).start()
    first = log.call(question("hello <there>"), answer("Hi & hello"))
    log.call(question("hello <there>", "Hi & hello", "go on"), "Going on then", at=5)
    done = home.json("import", str(old))
    assert (done["new"], done["sessions"], done["skipped_calls"], done["skipped_files"]) == (2, 1, [], [])
    assert done["files"] == {"llm-proxy (Go)": 1}
    one, two = _calls(home)
    if era >= 3:
        assert one["id"] == first
    assert one["request"]["body"] == log_body("hello <there>")
    assert one["request"]["_meta"]["machine"] == (oldlogs.MACHINE if era >= 2 else "unknown@unknown")
    assert one["request"]["_meta"]["ts"] == oldlogs.moment() and one["request"]["_meta"]["host"] == "api.anthropic.com"
    assert one["response"]["timing"] == {"ttfb_ms": 300, "total_ms": 450} and one["response"]["ending"] == "complete"
    assert one["response"]["digest"]["usage"] == {"input": 12, "output": 5} and one["response"]["price"]["usd"]
    assert "".join(chunk["raw"] for chunk in two["response"]["chunks"]) == sse("Going on then")
    assert two["response"]["timing"] == {"ttfb_ms": 300, "total_ms": 900}
    assert two["response"]["digest"]["usage"] == {"input": 12, "output": 7}
    assert [call["seq"] for call in (one, two)] == [1, 2]


def log_body(text):
    import json

    return json.dumps(question(text))
