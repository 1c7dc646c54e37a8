"""`prices` and `reprice`: lists fetched, imported and shown; recorded calls priced again beside a running keeper."""

from __future__ import annotations

import contextlib
import http.server
import json
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from backports import zstd

from llm_proxy.dialects.digest import Usage
from llm_proxy.keeper.append import Appender
from llm_proxy.keeper.store import Store
from llm_proxy.records.pricing import PriceBook
from llm_proxy.sinks.log_reader import entries
from tests.journals import WALL, Call, Journal
from tests.logpage import untold
from tests.test_keeper import Place, fill, finish, until

Command = Callable[..., "subprocess.CompletedProcess[str]"]

LIST = [
    {
        "id": "anthropic",
        "name": "Anthropic",
        "api_pattern": r"https://api\.anthropic\.com",
        "models": [
            {"id": "m", "match": {"equals": "m"}, "prices": {"input_mtok": 7, "output_mtok": 70}},
            {"id": "long", "match": {"starts_with": "long"}, "prices": {"input_mtok": {"base": 1, "tiers": [{"start": 100, "price": 2}]}}},
        ],
    }
]  # fmt: skip
LITELLM = {
    "sample_spec": {"litellm_provider": "one of"},
    "gpt-x": {
        "litellm_provider": "openai",
        "mode": "chat",
        "input_cost_per_token": 2.5e-06,
        "output_cost_per_token": 1e-05,
        "cache_read_input_token_cost": 1.25e-06,
        "input_cost_per_token_priority": 4.25e-06,
        "input_cost_per_token_batches": 1.25e-06,
        "output_cost_per_token_priority": 1.7e-05,
        "supports_vision": True,
    },
    "claude-x": {
        "litellm_provider": "anthropic",
        "input_cost_per_token": 3e-06,
        "input_cost_per_token_above_200k_tokens": 6e-06,
        "output_cost_per_token": 1.5e-05,
        "output_cost_per_token_above_200k_tokens": 2.25e-05,
        "cache_creation_input_token_cost": 3.75e-06,
        "cache_creation_input_token_cost_above_1hr": 6e-06,
        "cache_creation_input_token_cost_above_1hr_above_200k_tokens": 1.2e-05,
    },
    "gemini/gemini-x": {"litellm_provider": "gemini", "input_cost_per_token": 1e-07, "output_cost_per_token": 4e-07},
    "nobody/y": {"litellm_provider": "nobody", "input_cost_per_token": 1e-07},
    "dall-e": {"litellm_provider": "openai", "input_cost_per_pixel": 1e-08},
}


@pytest.fixture
def home(environ: dict[str, str]) -> Path:
    return Path(environ["HOME"])


def kept(home: Path) -> Path:
    return home / ".local/share/llm-proxy/prices.json"


def configure(home: Path, text: str) -> None:
    file = home / ".config/llm-proxy/config.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def cost(book: PriceBook, host: str, model: str, usage: Usage, tier: str = "") -> Decimal | None:
    return book.price(provider="", upstream=host, model=model, usages=[usage], when_ns=WALL, service_tier=tier).usd


# --- show


def test_show_says_which_list_is_used(command: Command, home: Path) -> None:
    """Without anything fetched it is the installed package's; overrides are told."""
    configure(home, '[prices."own*"]\ninput = 1.5\n')
    done = command("prices", "show")
    assert done.returncode == 0 and "genai-prices" in done.stdout and "the installed package" in done.stdout
    assert "own*: input 1.5" in done.stdout
    told = json.loads(command("prices", "show", "--json").stdout)
    assert (told["source"], told["origin"], told["sha256"]) == ("genai-prices", "", "")
    assert told["providers"]["anthropic"] > 10
    assert told["overrides"] == [{"model": "own*", "prices": {"input": "1.5"}}]


def test_show_a_model(command: Command, home: Path) -> None:
    """What it costs at each seller, overrides first, tiers by length below each other; an unknown one is status 1."""
    configure(home, '[prices."claude-sonnet-4-5*"]\ninput = 1\n')
    offers = json.loads(command("prices", "show", "claude-sonnet-4-5-20250929", "--json").stdout)
    assert offers[0] == {
        "seller": "config",
        "model": "claude-sonnet-4-5*",
        "prices": [{"class": "input", "above_prompt": 0, "usd": "1"}],
        "service_tiers": [],
    }
    found = next(offer for offer in offers if offer["seller"] == "anthropic")
    assert {"class": "input", "above_prompt": 200_000, "usd": "6"} in found["prices"]
    assert found["service_tiers"] == ["batch"]
    lines = command("prices", "show", "claude-sonnet-4-5").stdout.splitlines()
    assert any(line.split("\t")[:3] == ["", "", ">200000"] and "$22.5" in line for line in lines)
    nothing = command("prices", "show", "no-such-\x1b[31mmodel")
    assert nothing.returncode == 1 and "\x1b" not in nothing.stdout


@pytest.mark.parametrize(
    "words", [[], ["shwo"], ["show", "a", "b"], ["import"], ["update", "x"], ["show", "--colour"]], ids=str
)
def test_wrong_usage(command: Command, words: list[str]) -> None:
    """Says what there is, status 2."""
    done = command("prices", *words)
    assert done.returncode == 2 and "prices" in done.stderr and "Traceback" not in done.stderr


# --- import and update


def test_import_a_list_of_the_package(command: Command, home: Path, tmp_path: Path) -> None:
    """It is used from then on, also by a book that is open, and says where it comes from."""
    book = PriceBook(data=str(kept(home)))
    assert cost(book, "api.anthropic.com", "m", Usage(input=1000)) is None
    file = tmp_path / "list.json"
    file.write_text(json.dumps(LIST))
    done = command("prices", "import", str(file))
    assert done.returncode == 0, done.stderr
    assert cost(book, "api.anthropic.com", "m", Usage(input=1000, output=100)) == Decimal("0.014")
    assert cost(book, "api.anthropic.com", "long-one", Usage(input=101)) == Decimal("0.000202")
    assert book.data.version.partition(" ")[2].startswith("sha256:")
    told = json.loads(command("prices", "show", "--json").stdout)
    assert (told["origin"], told["providers"]) == (str(file), {"anthropic": 2}) and len(told["sha256"]) == 64
    assert stat.S_IMODE(kept(home).stat().st_mode) == 0o600
    assert stat.S_IMODE(kept(home).parent.stat().st_mode) == 0o700
    kept(home).unlink()
    assert cost(book, "api.anthropic.com", "claude-haiku-4-5", Usage(input=1000)) == Decimal("0.001")


def test_import_litellm(command: Command, home: Path, tmp_path: Path) -> None:
    """Its prices per token become ours, with tiers by length and by service; what cannot be taken is counted."""
    file = tmp_path / "model_prices_and_context_window.json"
    file.write_text(json.dumps(LITELLM))
    done = command("prices", "import", str(file), "--json")
    told = json.loads(done.stdout)
    assert (told["source"], told["left_out"], told["providers"]) == (
        "litellm",
        2,
        {"openai": 1, "anthropic": 1, "google": 1},
    )
    book = PriceBook(data=str(kept(home)))
    openai, anthropic = "api.openai.com", "api.anthropic.com"
    used = Usage(input=1000, cache_read=1000, output=100)
    assert cost(book, openai, "gpt-x", used) == Decimal("0.00475")
    assert cost(book, openai, "gpt-x", used, "priority") == Decimal("0.0072")  # cached tokens have no price of the tier
    assert cost(book, openai, "gpt-x", Usage(input=1000), "batch") == Decimal("0.00125")
    assert cost(book, anthropic, "claude-x", Usage(input=200_000, output=10)) == Decimal("0.60015")
    assert cost(book, anthropic, "claude-x", Usage(input=200_001, output=10)) == Decimal("1.200231")
    assert cost(book, anthropic, "claude-x", Usage(cache_write_1h=1000)) == Decimal("0.006")
    assert cost(book, anthropic, "claude-x", Usage(cache_write_1h=200_001)) == Decimal("2.400012")
    assert cost(book, "generativelanguage.googleapis.com", "gemini-x", Usage(input=1000)) == Decimal("0.0001")
    assert cost(book, openai, "gpt-4o", Usage(input=1000)) is None, "what the file does not know has no price"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        "null",
        "7",
        '"x"',
        "[" * 100_000,
        '[{"id": 1}]',
        '[{"id": "a", "name": "a", "api_pattern": "x", "models": []}]',
        '{"gpt-x": 7}',
        '{"gpt-x": {"litellm_provider": ["openai"], "input_cost_per_token": 1}}',
        '{"gpt-x": {"litellm_provider": "openai", "input_cost_per_token": "free"}}',
        '{"gpt-x": {"litellm_provider": "openai", "input_cost_per_token": NaN}}',
        '{"gpt-x": {"litellm_provider": "openai", "input_cost_per_token": -1}}',
    ],
    ids=lambda text: text[:40],
)
def test_what_is_no_list_is_refused(command: Command, home: Path, tmp_path: Path, text: str) -> None:
    """It is named, and what was used before is still used."""
    file = tmp_path / "bad.json"
    file.write_text(text)
    done = command("prices", "import", str(file))
    assert done.returncode == 1 and f"{file} is no list of prices" in done.stderr and "Traceback" not in done.stderr
    assert not kept(home).exists()


def test_a_file_that_is_not_there(command: Command, tmp_path: Path) -> None:
    """Its name and the reason."""
    done = command("prices", "import", str(tmp_path / "none.json"))
    assert done.returncode == 1 and "none.json cannot be read: No such file" in done.stderr


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"providers": 1, "source": "x", "version": "y"}'])
def test_a_damaged_stored_list(command: Command, home: Path, damage: str) -> None:
    """The package's own is used, and every price says so until it is mended."""
    kept(home).parent.mkdir(parents=True)
    kept(home).write_text(damage)
    price = PriceBook(data=str(kept(home))).price(
        provider="", upstream="api.anthropic.com", model="claude-haiku-4-5", usages=[Usage(input=1000)], when_ns=WALL
    )
    assert price.usd == Decimal("0.001") and "prices.json cannot be used" in price.why
    assert "prices.json cannot be used" in command("prices", "show").stdout


@contextlib.contextmanager
def serving(answers: dict[str, bytes]) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = answers.get(self.path)
            self.send_response(200 if found is not None else 404)
            self.send_header("Content-Length", str(len(found or b"")))
            self.end_headers()
            with contextlib.suppress(OSError):  # the client has seen enough
                self.wfile.write(found or b"")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_update_from_a_mirror(command: Command, home: Path) -> None:
    """Fetched once, checked, kept with date and hash; whatever goes wrong leaves what was there."""
    large = b" " * ((64 << 20) + 1)
    with serving({"/data.json": json.dumps(LIST).encode(), "/bad": b"<html>", "/large": large}) as url:
        done = command("prices", "update", "--url", f"{url}/data.json")
        assert done.returncode == 0, done.stderr
        before = kept(home).read_bytes()
        assert json.loads(before)["origin"] == f"{url}/data.json"
        for path, words in (("/bad", "no list"), ("/large", "64 MiB"), ("/none", "404")):
            done = command("prices", "update", "--url", url + path)
            assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr
    for wrong in (f"{url}/data.json", "nonsense", "http://[", "file:///etc/passwd"):
        done = command("prices", "update", "--url", wrong)
        assert done.returncode == 1 and "cannot be fetched" in done.stderr and "Traceback" not in done.stderr
    assert kept(home).read_bytes() == before
    assert "m" in command("prices", "show", "m").stdout


# --- reprice


def answer(number: int = 0, tokens: int = 1000) -> bytes:
    facts = {
        "id": f"msg_{number}",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [{"type": "text", "text": f"answer {number}"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": tokens, "output_tokens": 100},
    }
    return json.dumps(facts).encode()


ASKED = b'{"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}'


class Home(Place):
    """A user's own folders."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.journal = home / ".local/state/llm-proxy/journal/foreground"
        self.logs = home / ".llm-provider-logs"
        self.state = home / ".local/state/llm-proxy"

    def prices(self) -> list[dict[str, Any]]:
        found = [entry for entry in self.entries() if entry["type"] == "price"]
        assert all(untold(entry) == [] for entry in found)
        return found


@pytest.fixture
def place(home: Path) -> Home:
    return Home(home)


def calls(amount: int, session: str = "s", first: int = 1, **more: Any) -> list[Call]:
    return [
        Call(number, session=session, request=ASKED, answer=answer(number), **more)
        for number in range(first, first + amount)
    ]


def test_reprice_appends_what_changed_and_nothing_else(command: Command, home: Path, place: Home) -> None:
    """Unpriced calls get the override's price; a second time nothing is written; another price is another entry."""
    made = calls(3)
    fill(place.journal, made)
    place.settle()
    before = place.files()[0].read_bytes()
    configure(home, "[prices.m]\ninput = 1\noutput = 10\n")
    tried = command("reprice", "--dry-run")
    assert tried.returncode == 0 and "3 of 3 calls would get a new price" in tried.stdout, tried.stderr + tried.stdout
    assert place.files()[0].read_bytes() == before
    done = command("reprice", "--json")
    assert done.returncode == 0, done.stderr
    assert (json.loads(done.stdout)["changed"], json.loads(done.stdout)["after"]) == (3, "0.006000000000")
    found = place.prices()
    assert {entry["_meta"]["request_id"]: entry["seq"] for entry in found} == {
        str(call.id): call.serial for call in made
    }
    assert found[0]["price"] == {
        "basis": "override",
        "source": "config",
        "units": {"input": 1, "output": 10},
        "usd": 0.002,
    }
    after = place.files()[0].read_bytes()
    assert after.startswith(before), "what was written stays"
    assert "0 of 3 calls got a new price" in command("reprice").stdout
    assert place.files()[0].read_bytes() == after
    configure(home, "[prices.m]\ninput = 2\noutput = 10\n")
    assert "3 of 3 calls got a new price" in command("reprice").stdout
    assert [entry["price"]["usd"] for entry in place.prices()] == [0.002] * 3 + [0.003] * 3
    total = json.loads(command("stats", "--json").stdout)["total"]
    assert Decimal(total["cost"]["usd"]) == Decimal("0.009"), "the last one holds"


def test_reprice_only_what_was_chosen(command: Command, home: Path, place: Home) -> None:
    """The filters of the other commands."""
    fill(place.journal, [*calls(2, "s"), *calls(2, "t", 3, wall=WALL - 86_400 * 10**10)])
    place.settle()
    configure(home, "[prices.m]\ninput = 1\noutput = 10\n")
    assert "0 of 0 calls" in command("reprice", "--model", "other").stdout
    assert "2 of 2 calls got" in command("reprice", "--from", "2d").stdout
    assert "2 of 4 calls got" in command("reprice").stdout


def test_reprice_beside_a_running_keeper(command: Command, home: Path, place: Home) -> None:
    """The session goes on in the same file: no line twice, none lost, no new start, numbers in order."""
    configure(home, "[prices.m]\ninput = 1\noutput = 10\n")
    journal = Journal(place.journal)
    with place.running():
        for turn in range(4):
            for call in calls(5, first=turn * 5 + 1):
                journal.add(*call.frames)
            until(lambda turn=turn: len(place.told()) == (turn + 1) * 10)
            done = command("reprice")
            assert "5 of" in done.stdout, done.stdout + done.stderr
    kinds = [entry["type"] for entry in place.entries()]
    assert len(place.files()) == 1
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "session_start": 1,
        "request": 20,
        "response": 20,
        "price": 20,
    }
    assert [entry["seq"] for entry in place.entries() if entry["type"] == "request"] == list(range(1, 21))
    journal.close()


def test_what_a_killed_keeper_left_is_still_found(place: Home) -> None:
    """Lines beyond the settled size, one of them torn: a price behind them must not hide them from the next keeper."""
    made = calls(3)
    fill(place.journal, made[:2])
    place.settle()
    (file,) = place.files()
    settled = file.stat().st_size
    other = Home(place.folder)
    other.journal = place.journal.with_name("other")
    fill(other.journal, made[2:])
    other.settle()
    whole = file.read_bytes()
    database = place.state / "sessions.db"
    store = Store(database, "")
    with store.transaction():
        session = store.by_id(file.stem)
        assert session is not None
        session.size, session.last_seq = settled, 2
        store.save([session])
    store.close()
    file.write_bytes(whole + b'{"torn')
    with Appender(database, place.logs) as appender:
        assert appender.append(str(file.relative_to(place.logs)), b'{"type":"price"}\n')
        assert not appender.append("api.anthropic.com/2020-01-01/none.jsonl", b"{}\n")
    assert file.read_bytes() == whole + b'{"type":"price"}\n'
    store = Store(database, "")
    assert {(kind, seat.seq) for (_, kind), seat in store.written().items()} == {("request", 3), ("response", 3)}
    found = store.by_id(file.stem)
    assert found is not None and (found.size, found.last_seq) == (file.stat().st_size, 3)
    store.close()


def test_prices_whose_writer_was_killed(place: Home) -> None:
    """They stand in the file and nobody settled it: the keeper takes them for what they are and remembers nothing."""
    fill(place.journal, calls(1))
    place.settle()
    (file,) = place.files()
    request = place.entries()[1]
    price = {"type": "price", "seq": 1, "_meta": request["_meta"], "price": {"usd": 1, "basis": "list"}}
    file.write_bytes(file.read_bytes() + json.dumps(price).encode() + b"\n")
    fill(place.journal, calls(1, first=2))
    place.settle()
    assert [entry["type"] for entry in place.entries()][3:] == ["price", "request", "response"]
    store = Store(place.state / "sessions.db", "")
    assert store.written() == {}
    store.close()


def test_a_file_that_was_cut(place: Home) -> None:
    """A price begins on a line of its own, and the session still begins anew when it goes on."""
    fill(place.journal, calls(1))
    place.settle()
    (file,) = place.files()
    file.write_bytes(file.read_bytes()[:100])
    with Appender(place.state / "sessions.db", place.logs) as appender:
        assert appender.append(str(file.relative_to(place.logs)), b'{"type":"price"}\n')
    assert file.read_bytes()[100:] == b'\n{"type":"price"}\n'
    fill(place.journal, calls(1, first=2))
    place.settle()
    assert [json.loads(line)["type"] for line in file.read_bytes().splitlines()[1:]] == [
        "price",
        "session_start",
        "request",
        "response",
    ]


def test_prices_of_a_compressed_session_stand_beside_it(command: Command, home: Path, place: Home) -> None:
    """The compressed file stays as it is, and the price is found."""
    fill(place.journal, calls(2))
    place.settle()
    (file,) = place.files()
    packed = file.with_suffix(".jsonl.zst")
    packed.write_bytes(zstd.compress(file.read_bytes()))
    file.unlink()
    before = packed.read_bytes()
    configure(home, "[prices.m]\ninput = 1\noutput = 10\n")
    assert "2 of 2 calls got a new price" in command("reprice").stdout
    assert packed.read_bytes() == before
    assert [entry["type"] for _, _, entry in entries(file)] == ["price", "price"]
    assert "0 of 2 calls got a new price" in command("reprice").stdout
    fill(place.journal, calls(1, first=3))
    place.settle()
    total = json.loads(command("stats", "--json").stdout)["total"]
    assert (total["calls"], Decimal(total["cost"]["usd"])) == (3, Decimal("0.004"))


def test_calls_without_an_answer_get_no_price(command: Command, place: Home) -> None:
    """An error costs nothing and is not unpriced either; a known model at its seller is priced by the list."""
    error = b'{"type":"error","error":{"type":"overloaded_error","message":"no"}}'
    known = answer(2).replace(b'"m"', b'"claude-haiku-4-5-20251001"')
    fill(
        place.journal,
        [
            Call(1, session="s", request=ASKED, answer=error, status="529 Overloaded"),
            Call(2, session="s", request=ASKED, answer=known),
            Call(3, session="s", request=ASKED, answer=answer(3), upstream="127.0.0.1:9"),
        ],
    )
    place.settle()
    done = json.loads(command("reprice", "--dry-run", "--json").stdout)
    assert (done["looked_at"], done["after"], done["unpriced"]) == (2, "0.001500000000", 1)
    assert list(done["reasons"]) == ["anthropic at 127.0.0.1:9, which is not a provider with list prices"]


def test_a_keeper_that_is_killed_while_prices_are_written(command: Command, home: Path, place: Home) -> None:
    """Killed at any moment, and started again: each call is told once and each price stands."""
    configure(home, "[prices.m]\ninput = 1\noutput = 10\n")
    journal = Journal(place.journal)
    made: list[Call] = []
    for turn in range(6):
        fresh = calls(10, first=turn * 10 + 1)
        made += fresh
        keeper = place.start()
        for call in fresh:
            journal.add(*call.frames)
        until(lambda count=turn * 20: len(place.told()) > count)
        command("reprice")
        keeper.kill()
        finish(keeper)
    journal.close()
    place.settle()
    command("reprice")
    place.assert_told_once(made)
    assert len({entry["_meta"]["request_id"] for entry in place.prices()}) == 60
