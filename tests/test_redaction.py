"""Secrets leave the record and nothing else does: which are found, which are not, and where they hide."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import stat
import string
import struct
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from llm_proxy import settings
from llm_proxy.errors import ConfigError
from llm_proxy.keeper.options import Options
from llm_proxy.keeper.projects import Client
from llm_proxy.keeper.redact import NUMBERS, Numbers, Redaction, is_off
from llm_proxy.records.redaction import Entry, Redactor, without_content
from llm_proxy.records.secrets import FAMILIES
from llm_proxy.wire import eventstream
from tests.goldens import golden, names

ALPHANUMERIC = string.ascii_letters + string.digits
_chance = random.Random(7)


def made(prefix: str, length: int, letters: str = ALPHANUMERIC) -> str:
    """A key that nobody has: made here, so that none stands in this repository."""
    return prefix + "".join(_chance.choices(letters, k=length))


UPPER, HEX, URL64 = string.ascii_uppercase + string.digits, string.digits + "abcdef", ALPHANUMERIC + "_-"
SECRET = made("", 40, ALPHANUMERIC + "/+")
PASSWORD = "hunter2-" + made("", 4)
JWT = ".".join((made("eyJ", 20), made("eyJ", 60), made("", 43)))
PEM = "\n".join(
    (
        "-----BEGIN RSA PRIVATE KEY-----",
        *(made("", 64) for _ in range(12)),
        made("", 30),
        "-----END RSA PRIVATE KEY-----",
    )
)
ANTHROPIC = made("sk-ant-api03-", 93, URL64) + "AA"

# (kind, the text around the secret with {} in its place, the secret)
FOUND = [
    ("ANTHROPIC_KEY", "use {} please", ANTHROPIC),
    ("ANTHROPIC_KEY", "export ANTHROPIC_API_KEY={}\n", made("sk-ant-oat01-", 80, URL64)),
    ("ANTHROPIC_KEY", "ANTHROPIC_API_KEY='{}'", made("sk-ant-admin01-", 40)),
    ("ANTHROPIC_KEY", "Authorization: Bearer {}", made("sk-ant-api03-", 40)),
    ("OPENAI_KEY", "OPENAI_API_KEY={}", made("sk-proj-", 120, URL64)),
    ("OPENAI_KEY", "key: {},", made("sk-", 48)),
    ("OPENAI_KEY", "({})", made("sk-svcacct-", 60, URL64)),
    ("OPENAI_KEY", "https://api.example/v1?key={}&x=1", made("sk-", 32, HEX)),
    ("OPENAI_KEY", "?u=a%3D{}", made("sk-", 40)),
    ("OPENROUTER_KEY", "{}", made("sk-or-v1-", 64, HEX)),
    ("GOOGLE_KEY", "GEMINI_API_KEY={}", made("AIzaSy", 33, URL64)),
    ("GOOGLE_TOKEN", "{}", made("ya29.", 120, URL64)),
    ("GOOGLE_SECRET", "{}", made("GOCSPX-", 28, URL64)),
    ("AWS_KEY", "aws_access_key_id = {}", made("AKIA", 16, UPPER)),
    ("AWS_KEY", '"AccessKeyId": "{}"', made("ASIA", 16, UPPER)),
    ("AWS_KEY", "{} is in every manual", "AKIA" + "IOSFODNN7EXAMPLE"),
    ("AWS_SECRET", "aws_secret_access_key = {}\n", SECRET),
    ("AWS_SECRET", "export AWS_SECRET_ACCESS_KEY={}", SECRET),
    ("AWS_SECRET", '"SecretAccessKey": "{}",', SECRET),
    ("AWS_SECRET", "<SecretAccessKey>{}</SecretAccessKey>", SECRET),
    ("AWS_TOKEN", "aws_session_token={}", made("IQoJb3JpZ2lu", 300, ALPHANUMERIC + "/+") + "=="),
    ("AWS_BEDROCK_KEY", "{}", made("ABSK", 128) + "="),
    ("GITHUB_TOKEN", "https://x-access-token:{}@github.com/a/b", made("ghs_", 36)),
    ("GITHUB_TOKEN", "{}", made("ghp_", 36)),
    ("GITHUB_TOKEN", "{}", made("github_pat_", 22) + made("_", 59)),
    ("GITLAB_TOKEN", "glab auth login --token {}", made("glpat-", 20, URL64)),
    ("SLACK_TOKEN", "{}", made("xoxb-", 12, string.digits) + made("-", 12, string.digits) + made("-", 24)),
    ("SLACK_TOKEN", "{}", made("xapp-1-A0", 9, UPPER) + made("-", 13, string.digits) + made("-", 64, HEX)),
    (
        "SLACK_WEBHOOK",
        "https://hooks.slack.com/services/{}",
        made("T", 8, UPPER) + made("/B", 9, UPPER) + made("/", 24),
    ),
    ("HF_TOKEN", "HF_TOKEN={}", made("hf_", 34)),
    ("STRIPE_KEY", "{}", made("sk_live_", 24)),
    ("STRIPE_KEY", "{}", made("rk_live_", 24)),
    ("NPM_TOKEN", "//registry.example/:_authToken={}", made("npm_", 36)),
    ("PYPI_TOKEN", "{}", made("pypi-AgEIcHlwaS5vcmc", 150, URL64)),
    ("GROQ_KEY", "{}", made("gsk_", 52)),
    ("XAI_KEY", "{}", made("xai-", 80)),
    ("PERPLEXITY_KEY", "{}", made("pplx-", 48)),
    ("NVIDIA_KEY", "{}", made("nvapi-", 64, URL64)),
    ("CEREBRAS_KEY", "{}", made("csk-", 48, string.ascii_lowercase + string.digits)),
    ("JWT", "Cookie: session={}; x", JWT),
    ("JWT", "{}", ".".join((made("eyJ", 40), made("", 60), made("", 16), made("", 80), made("", 22)))),
    ("BEARER", "curl -H 'Authorization: Bearer {}'", made("", 40)),
    ("BEARER", "authorization: bearer {}", made("", 32, HEX) + "a1"),
    ("URL_PASSWORD", "postgres://app:{}@db.example:5432/app", PASSWORD),
    ("URL_PASSWORD", "redis://:{}@127.0.0.1", PASSWORD),
    ("URL_PASSWORD", "git clone https://ann:{}@example.org/r.git", "p%40ss:word"),
    ("URL_PASSWORD", "mongodb+srv://ann:{}@[::1]/x", PASSWORD),
    ("PRIVATE_KEY", "cat id_rsa\n{}\n$", PEM),
    ("PRIVATE_KEY", "{}", PEM.replace("RSA ", "")),
    (
        "PRIVATE_KEY",
        "{}",
        PEM.replace("KEY-----\n", "KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,0A1B\n\n", 1),
    ),
    ("PRIVATE_KEY", "{}", PEM.replace("RSA PRIVATE KEY", "PGP PRIVATE KEY BLOCK")),
    ("PRIVATE_KEY", "head id_rsa\n{}\n...", PEM.rpartition("\n")[0].rpartition("\n")[0]),
    ("PRIVATE_KEY", "{}", "\n".join(f"{n:6}\t{line}" for n, line in enumerate(PEM.split("\n"), 1)).strip(" 1\t")),
    ("API_KEY", "MISTRAL_API_KEY={}", made("", 32)),
    ("API_KEY", '{{"env": {{"COHERE_API_KEY": "{}"}}}}', made("", 40)),
    ("API_KEY", "TWITTER_ACCESS_TOKEN='{}'", made("", 50)),
]

LEFT_ALONE = [
    "sk-ant-api03-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    "sk-ant-api03-your-api-key-goes-here-please",
    "ANTHROPIC_API_KEY=sk-ant-...mnop [masked sha256:1a2b3c4d len:40]",
    "sk-proj-your-openai-key-goes-right-here",
    "export OPENAI_API_KEY=sk-your-key",
    "task-1234567890abcdef1234567890abcdef",
    made("disk-", 40),
    "class='sk-folding-cube sk-cube-grid'",
    "AKIA is how they begin, as in AKIAXXXXXXXXXXXXXXXX",
    made("XAKIA", 16, UPPER),
    made("AKIA", 40, UPPER),
    "ghp_" + "x" * 36,
    "hf_hub_download(repo_id='a', filename='b', local_dir_use_symlinks=False)",
    "npm_config_registry_and_some_more_words_of_a_long_name=1",
    "os.environ['MISTRAL_API_KEY'] or settings.MISTRAL_API_KEY=config.mistral.api_key.value",
    "OPENAI_API_KEY=${OPENAI_API_KEY} GEMINI_API_KEY: process.env.GEMINI_API_KEY_PRODUCTION",
    "CACHE_KEY=0123456789abcdef0123456789abcdef",
    "git commit 4b825dc642cb6eb9a060e54bf8d69288fbee4904 and sha256:" + made("", 64, HEX),
    "the bearer of responsibility-for-authentication is Bearer authentication-scheme-v2",
    "Authorization: Bearer $TOKEN, Bearer YOUR_API_KEY_GOES_HERE_1, Bearer <token>, Bearer ${API_KEY}",
    "https://example.com:8080/path@version and http://localhost:3000/@scope/pkg",
    "postgres://{user}:{password}@{host}/db postgres://u:${PASS}@h postgres://u:$PASS@h https://u:***@h https://u:%s@h",
    "ssh://git@github.com:22/a/b and mailto:ann@example.org and git@github.com:a/b",
    "https://medium.com/@ann/a:b@c",
    "-----BEGIN PRIVATE KEY----- is how such a block begins, and -----END PRIVATE KEY----- how it ends",
    "-----BEGIN CERTIFICATE-----\n" + made("", 64) + "\n-----END CERTIFICATE-----",
    "-----BEGIN PUBLIC KEY-----\n" + made("", 64) + "\n-----END PUBLIC KEY-----",
    "eyJhbGciOiJIUzI1NiJ9 is the head of one",
    "aws_secret_access_key = YOUR_SECRET_ACCESS_KEY",
    "secretAccessKey: process.env.AWS_SECRET_ACCESS_KEY ?? ''",
    "xoxb-your-bot-token-goes-here",
    "data:image/png;base64," + made("iVBORw0KGgo", 4000, ALPHANUMERIC + "+/"),
    str(list(range(2000))),
    "urn:uuid:123e4567-e89b-12d3-a456-426614174000 toolu_01A09q90qw90lq917835lq9 msg_01XFDUDYJgAACzvnptvVoYEL",
    "cursor-pointer text-sm hover:bg-blue-500/20 md:grid-cols-[repeat(auto-fill,minmax(0,1fr))]",
]


class Counting:
    """Numbers as the store gives them, kept here."""

    def __init__(self) -> None:
        self.known: dict[str, list[str]] = {}

    def __call__(self, kind: str, secret: str) -> int:
        of_kind = self.known.setdefault(kind, [])
        if secret not in of_kind:
            of_kind.append(secret)
        return of_kind.index(secret) + 1


def redactor(own: tuple[tuple[str, str], ...] = ()) -> Redactor:
    return Redactor(own, Counting())


# --- what is a secret


def test_a_history_that_was_looked_through_hides_nothing() -> None:
    """Only what is new in a request is searched, and what once held a secret is searched again."""
    one = redactor()
    key = "sk-ant-api03-" + "aB3dE6gH9jK2mN5pQ8sT1vW4xY7z"
    clean = [{"role": "user", "content": f"{number} nothing here " * 40} for number in range(8)]
    for separators in ((",", ":"), (", ", ": ")):
        told = json.dumps(clean, separators=separators)
        assert one.text(told) is told
        for place in (0, 4, 8):
            spoilt = [*clean[:place], {"role": "user", "content": f"my key is {key}"}, *clean[place:]]
            for _ in range(2):
                kept = one.text(json.dumps(spoilt, separators=separators))
                assert key not in kept and json.loads(kept)[place]["content"] == "my key is <ANTHROPIC_KEY#1>"


@pytest.mark.parametrize(("kind", "around", "secret"), FOUND, ids=[f"{n}-{case[0]}" for n, case in enumerate(FOUND)])
def test_a_secret_is_found_as_what_it_is(kind: str, around: str, secret: str) -> None:
    """In plain text, in JSON, and in JSON that is a string of JSON; what stands around it stays."""
    text = around.format(secret)
    expected = around.format(f"<{kind}#1>")
    assert redactor().text(text) == expected
    for ascii_only in (True, False):
        once = json.dumps({"content": f"\n{text}\té"}, ensure_ascii=ascii_only)
        twice = json.dumps([{"arguments": once}], ensure_ascii=ascii_only)
        assert json.loads(redactor().text(once)) == {"content": f"\n{expected}\té"}
        assert json.loads(json.loads(redactor().text(twice))[0]["arguments"]) == {"content": f"\n{expected}\té"}


@pytest.mark.parametrize("text", LEFT_ALONE)
def test_what_only_looks_like_a_secret_stays(text: str) -> None:
    """A record that says less than was said is worse than one exotic key."""
    assert redactor().text(text) == text
    body = json.dumps({"content": text})
    assert redactor().text(body) == body


def test_every_kind_is_in_the_table_above_and_in_the_documentation() -> None:
    """A shape that no test has seen is a guess."""
    kinds = {shape.kind for family in FAMILIES for shape in family.shapes}
    page = (Path(__file__).parent.parent / "docs/log-format.md").read_text()
    assert kinds == {kind for kind, _, _ in FOUND}
    assert not {kind for kind in kinds if f"`{kind}`" not in page}


def test_slashes_that_json_escapes_hide_nothing() -> None:
    """PHP and others write `\\/`; it is the same secret as without."""
    number = Counting()
    for text in (f"postgres://u:{PASSWORD}@h", rf"postgres:\/\/u:{PASSWORD}@h"):
        assert Redactor((), number).text(text).endswith("u:<URL_PASSWORD#1>@h")
    for text in (f"SecretAccessKey={SECRET}", "SecretAccessKey=" + SECRET.replace("/", r"\/")):
        assert Redactor((), number).text(text) == "SecretAccessKey=<AWS_SECRET#1>"


def test_a_letter_of_an_escape_is_not_taken_for_a_keys() -> None:
    """`\\npm_` is a line end and `pm_`; what is left must still be JSON."""
    body = json.dumps({"content": "\n" + made("pm_", 40)})
    assert redactor().text(body) == body


def test_the_same_secret_has_the_same_number_wherever_it_stands() -> None:
    """A key in its own lines, in JSON and twice in JSON is one; another is another."""
    number = Counting()
    texts = (PEM, json.dumps(PEM), json.dumps(json.dumps(PEM)), PEM.replace("\n", "\r\n"))
    assert [Redactor((), number).text(text).strip('"\\') for text in texts] == ["<PRIVATE_KEY#1>"] * 4
    assert Redactor((), number).text(PEM[:50] + "0123456789" + PEM[60:]) == "<PRIVATE_KEY#2>"


def test_a_long_body_is_searched_like_its_parts() -> None:
    """Cut where objects end, the first time and again, every secret is found where it stands."""
    said = [around.format(secret) for _, around, secret in FOUND] * 2
    kept = [around.format(f"<{kind}>") for kind, around, _ in FOUND] * 2
    for separators in ((", ", ": "), (",", ":")):
        body = json.dumps([{"content": text, "a": {"b": {}}} for text in said], separators=separators)
        unnumbered = Redactor((), lambda kind, secret: 0)
        for _ in range(2):
            assert [message["content"] for message in json.loads(unnumbered.text(body))] == kept


@budget(max_examples=300)
@given(
    st.recursive(
        st.text(max_size=20) | st.sampled_from([case[1].format(case[2]) for case in FOUND]),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.text(max_size=8), inner, max_size=4)
            | inner.map(lambda value: json.dumps(value))
            | inner.map(lambda value: json.dumps(value, ensure_ascii=False))
        ),
        max_leaves=12,
    ),
    st.booleans(),
)
def test_json_stays_json(value: Any, ascii_only: bool) -> None:
    """Whatever is taken out, a body that was JSON is JSON, with the same names and the same number of things."""

    def shape(value: Any) -> Any:
        if isinstance(value, dict):
            return [shape(one) for one in value.values()]
        return [shape(one) for one in value] if isinstance(value, list) else None

    body = json.dumps(value, ensure_ascii=ascii_only)
    kept = redactor((("OWN", "[0-9]{3}x?"),)).text(body)
    assert shape(json.loads(kept)) == shape(value)
    assert not [case for case in FOUND if case[2] in kept and "\n" not in case[2]]


@pytest.mark.parametrize(
    "word",
    [
        "-----BEGIN PRIVATE KEY-----\n",
        "eyJ",
        "-eyJ.",
        "eyJaaaaaaaaaaaaa.",
        "sk-",
        "a://b:",
        "\\",
        "Bearer ",
        "},",
        "x" * 99,
    ],
)
def test_no_text_takes_long(word: str) -> None:
    """Four times the text takes about four times the time, not sixteen times."""

    def seconds(size: int) -> float:
        text = word * (size // len(word))
        begun = time.process_time()
        redactor().text(text)
        return time.process_time() - begun

    assert seconds(800_000) < 10 * seconds(200_000) + 0.5


# --- entries


def stream(texts: list[str], event: Any) -> Entry:
    """The entry of a response that told `texts` one after the other."""
    chunks = []
    for text in texts:
        for line in (f"data: {json.dumps(event(text))}\n", "\n"):
            chunks.append({"ts": "t", "delta_ms": 1, "raw": line})
    return {"type": "response", "chunks": chunks}


def told(entry: Entry, pick: Any) -> list[str]:
    return [pick(json.loads(chunk["raw"][6:])) for chunk in entry["chunks"] if chunk["raw"].startswith("data: ")]


# How each API tells pieces: the event around a piece, and the piece in the event.
DELTAS = {
    "anthropic text": (
        lambda text: {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}},
        lambda event: event["delta"]["text"],
    ),
    "anthropic thinking": (
        lambda text: {"type": "content_block_delta", "index": 1, "delta": {"type": "thinking_delta", "thinking": text}},
        lambda event: event["delta"]["thinking"],
    ),
    "anthropic tool": (
        lambda text: {
            "type": "content_block_delta",
            "index": 1,
            "delta": {"type": "input_json_delta", "partial_json": text},
        },
        lambda event: event["delta"]["partial_json"],
    ),
    "chat": (
        lambda text: {"id": "c", "choices": [{"index": 0, "delta": {"content": text}}]},
        lambda event: event["choices"][0]["delta"]["content"],
    ),
    "chat tool": (
        lambda text: {
            "choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}}]
        },
        lambda event: event["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"],
    ),
    "responses": (
        lambda text: {"type": "response.output_text.delta", "item_id": "i", "output_index": 0, "delta": text},
        lambda event: event["delta"],
    ),
    "gemini": (
        lambda text: {"candidates": [{"content": {"role": "model", "parts": [{"text": text}]}, "index": 0}]},
        lambda event: event["candidates"][0]["content"]["parts"][0]["text"],
    ),
    "ollama": (
        lambda text: {"model": "m", "message": {"role": "assistant", "content": text}, "done": False},
        lambda event: event["message"]["content"],
    ),
}


@pytest.mark.parametrize("api", DELTAS)
@pytest.mark.parametrize("size", [1, 3, 20, 70])
@pytest.mark.parametrize("secret", [ANTHROPIC, PEM], ids=["key", "block"])
def test_a_secret_told_in_pieces_is_one_token(api: str, size: int, secret: str) -> None:
    """Joined, the pieces say what was said with one token in it; there are as many as before, with their times."""
    event, pick = DELTAS[api]
    said = f"It is {secret} and é."
    entry = stream([said[at : at + size] for at in range(0, len(said), size)], event)
    kept = redactor().entry(entry)
    kind = "ANTHROPIC_KEY" if secret == ANTHROPIC else "PRIVATE_KEY"
    assert "".join(told(kept, pick)) == f"It is <{kind}#1> and é."
    assert len(kept["chunks"]) == len(entry["chunks"]) and kept["redacted"] == {kind: 1}
    assert all(new | {"raw": ""} == old | {"raw": ""} for new, old in zip(kept["chunks"], entry["chunks"], strict=True))


IN_TURN: dict[str, Any] = {
    "choices": lambda number, text: {"choices": [{"index": number, "delta": {"content": text}}]},
    "candidates": lambda number, text: {"candidates": [{"content": {"parts": [{"text": text}]}, "index": number}]},
    "outputs": lambda number, text: {"type": "response.output_text.delta", "output_index": number, "delta": text},
    "kinds": lambda number, text: {"type": f"response.{'ab'[number]}.delta", "output_index": 0, "delta": text},
}


@pytest.mark.parametrize("api", IN_TURN)
@pytest.mark.parametrize("size", [1, 2, 7])
def test_texts_told_in_turn_hold_no_secret(api: str, size: int) -> None:
    """Pieces of two texts, one after the other: both secrets are found although neither stands there in a row."""
    keys = ANTHROPIC, made("sk-proj-", 60)
    events = [IN_TURN[api](number, keys[number][at : at + size]) for at in range(0, 110, size) for number in (0, 1)]
    kept = redactor().entry({"type": "response", "chunks": [{"raw": f"data: {json.dumps(one)}\n"} for one in events]})
    assert kept["redacted"] == {"ANTHROPIC_KEY": 1, "OPENAI_KEY": 1}


def test_two_texts_told_in_turn_are_not_mixed_up() -> None:
    """Two choices whose pieces come in turn: each has its own secret, in its own pieces."""
    keys = ANTHROPIC, made("sk-proj-", 60)
    chunks = []
    for at in range(0, 110, 7):
        for index, key in enumerate(keys):
            event = {"choices": [{"index": index, "delta": {"content": key[at : at + 7]}}]}
            chunks.append({"raw": f"data: {json.dumps(event)}\n"})
    whole = {"choices": [{"index": 0, "delta": {"content": f"{ANTHROPIC} and "}}]}
    kept = redactor().entry({"type": "response", "chunks": [{"raw": f"data: {json.dumps(whole)}\n"}, *chunks]})
    by_choice = {0: "", 1: ""}
    for chunk in kept["chunks"][1:]:
        choice = json.loads(chunk["raw"][6:])["choices"][0]
        by_choice[choice["index"]] += choice["delta"]["content"]
    assert by_choice == {0: "<ANTHROPIC_KEY#1>", 1: "<OPENAI_KEY#1>"}


def test_everything_else_of_a_line_stays_as_it_was_written() -> None:
    """Blanks, order, numbers, escapes: only the string that held a part of a secret is written anew."""
    half = len(ANTHROPIC) // 2
    lines = [
        '{"z": 1.50, "delta" : {"text":"caf\\u00e9 ' + ANTHROPIC[:half] + '"}, "n": [1e3, {"text": "\\/"}] }\r\n',
        '{"z": 1.50, "delta" : {"text":"' + ANTHROPIC[half:] + '"}, "text": "delta"}\r\n',
    ]
    kept = redactor().entry({"type": "response", "chunks": [{"raw": f"data: {line}"} for line in lines]})
    assert [chunk["raw"] for chunk in kept["chunks"]] == [
        'data: {"z": 1.50, "delta" : {"text":"caf\\u00e9 <ANTHROPIC_KEY#1>"}, "n": [1e3, {"text": "\\/"}] }\r\n',
        'data: {"z": 1.50, "delta" : {"text":""}, "text": "delta"}\r\n',
    ]


@pytest.mark.parametrize("form", ["lines", "array", "events"])
def test_streams_that_are_recorded_as_one_body(form: str) -> None:
    """Ollama's lines, Gemini's array, and events under another name."""
    event, pick = DELTAS["gemini" if form == "array" else "ollama"]
    events = [json.dumps(event(ANTHROPIC[at : at + 9])) for at in range(0, len(ANTHROPIC), 9)]
    body = {
        "lines": "\n".join(events),
        "array": "[" + ",\r\n".join(events) + "]",
        "events": "".join(f"data: {one}\n\n" for one in events),
    }[form]
    kept = redactor().entry({"type": "response", "body": body})["body"]
    documents = (
        json.loads(kept)
        if form == "array"
        else [json.loads(line.removeprefix("data: ")) for line in kept.split("\n") if line]
    )
    assert "".join(map(pick, documents)) == "<ANTHROPIC_KEY#1>" and len(documents) == len(events)


@pytest.mark.parametrize("wrapped", [False, True], ids=["converse", "invoke"])
def test_amazons_event_streams(wrapped: bool) -> None:
    """Frames are binary and recorded in base64: they are searched all the same, and stay whole frames."""
    name = b"\x0b:event-type\x07\x00\x05chunk"
    empty = eventstream.with_payload(struct.pack(">III", 16 + len(name), len(name), 0) + name + bytes(4), b"")
    said = f"It is {ANTHROPIC} and é."
    stream = b""
    for at in range(0, len(said), 9):
        event: Any = {"contentBlockIndex": 0, "delta": {"text": said[at : at + 9]}}
        if wrapped:
            inner = {
                "type": "content_block_delta",
                "index": 0,
                "delta": {"type": "text_delta", "text": said[at : at + 9]},
            }
            event = {"bytes": base64.b64encode(json.dumps(inner).encode()).decode(), "p": "abc"}
        stream += eventstream.with_payload(empty, json.dumps(event).encode())
    entry = {"type": "response", "body": base64.b64encode(stream + b"cut").decode(), "body_encoding": "base64"}
    kept = redactor().entry(entry)
    decoder = eventstream.FrameDecoder()
    frames = decoder.feed(base64.b64decode(kept["body"]))
    events = [json.loads(frame.payload) for frame in frames]
    texts = [json.loads(base64.b64decode(event["bytes"])) if wrapped else event for event in events]
    assert "".join(event["delta"]["text"] for event in texts) == "It is <ANTHROPIC_KEY#1> and é."
    assert not decoder.broken and decoder.pending == 3 and kept["redacted"] == {"ANTHROPIC_KEY": 1}
    assert {frame.text(":event-type") for frame in frames} == {"chunk"}
    assert redactor().entry(kept | {"redacted": None})["redacted"] is None


def test_messages_of_a_websocket() -> None:
    """Both sides are searched, each for itself: pieces of the server's, whole requests of the client's."""
    event, pick = DELTAS["responses"]
    messages: list[Entry] = [{"from": "client", "type": "text", "raw": json.dumps({"input": f"my {ANTHROPIC}"})}]
    for at in range(0, len(ANTHROPIC), 9):
        messages.append({"from": "server", "type": "text", "raw": json.dumps(event(ANTHROPIC[at : at + 9]))})
        messages.append({"from": "client", "type": "ping", "raw": ""})
    messages.append({"from": "server", "type": "binary", "base64": "AAAA"})
    kept = redactor().entry({"type": "response", "websocket": {"client_size": 3, "messages": messages}})
    texts = [json.loads(one["raw"]) for one in kept["websocket"]["messages"] if one["type"] == "text"]
    assert texts[0] == {"input": "my <ANTHROPIC_KEY#1>"}
    assert "".join(pick(one) for one in texts[1:]) == "<ANTHROPIC_KEY#1>"
    assert kept["redacted"] == {"ANTHROPIC_KEY": 2} and kept["websocket"]["client_size"] == 3


def test_an_entry_without_secrets_is_the_same_object() -> None:
    """Nothing is copied, nothing is said."""
    for entry in (
        {"type": "request", "body": json.dumps({"messages": ["hello"] * 99})},
        {"type": "request", "body": ANTHROPIC, "body_encoding": "base64"},
        {"type": "response", "status": None, "headers": None},
        stream(["a", "b"], DELTAS["chat"][0]),
    ):
        assert redactor().entry(entry) is entry


@pytest.mark.parametrize("name", names(""))
def test_recorded_answers_of_every_api_hold_no_secrets(name: str) -> None:
    """Ids, signatures and hashes of answers look random too."""
    one = golden(name)
    for text in (one.request.decode(), one.answer.decode("latin-1"), *(text.decode() for _, text in one.messages)):
        assert redactor().text(text) == text


# --- secrets of one's own

OWN = (("EMPLOYEE", "E-[0-9]{6}"), ("VAULT", "vault (?:token|key): ([^\\s]{8,99})"), ("QUOTE", 'say "(.)"'))


def test_own_expressions_see_what_a_string_says() -> None:
    """Not how JSON writes it; only the group is taken out where there is one, and JSON stays JSON."""
    said = 'E-123456 and vault token: "\\x\n, vault key: abc"def\\ say "\n" E-12'
    kept = '<EMPLOYEE#1> and vault token: "\\x\n, vault key: <VAULT#1> say "\n" E-12'
    body = json.dumps({"E-123456": [said, 1, "café"]}, ensure_ascii=False)
    assert json.loads(redactor(OWN).text(body)) == {"<EMPLOYEE#1>": [kept, 1, "café"]}
    assert redactor(OWN).text(said) == kept
    line = f"data: {json.dumps(said)}\n"
    assert json.loads(redactor(OWN).entry({"chunks": [{"raw": line}]})["chunks"][0]["raw"][6:]) == kept


def test_own_secrets_told_in_pieces() -> None:
    """As with the known ones."""
    event, pick = DELTAS["chat"]
    entry = redactor(OWN).entry(stream(list("I am E-123456."), event))
    assert "".join(told(entry, pick)) == "I am <EMPLOYEE#1>." and entry["redacted"] == {"EMPLOYEE": 1}


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"employee": "x"}, "named in capitals"),
        ({"A-B": "x"}, "named in capitals"),
        ({"OK": "x", "BAD": "("}, "redaction.patterns.BAD must be a regular expression"),
        ({"BAD": "x*"}, "matches no empty text"),
        ({"BAD": "x" * 501}, "at most 500"),
        ({"BAD": 7}, "got 7"),
        ({"BAD": "([a-z]+)*x"}, "repeats no repetition"),
        ({"BAD": "(?:a|(?:b{2,}c?)+d)+"}, "repeats no repetition"),
        ("nonsense", "a table of names"),
        ([1], "a table of names"),
    ],
)
def test_a_bad_expression_is_named_before_anything_starts(tmp_path: Path, table: Any, words: str) -> None:
    """The name, the rule and the value."""
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"redaction": {"patterns": table}}))
    with pytest.raises(ConfigError, match=words) as caught:
        settings.load({}, {}, str(path))
    assert "redaction.patterns" in str(caught.value)


def test_good_settings_of_redaction(tmp_path: Path) -> None:
    """From a file and from the environment."""
    path = tmp_path / "c.toml"
    path.write_text("[redaction]\noff_for = ['a', '~/oss/*']\n[redaction.patterns]\nID = '(?:E|F)-[0-9]{6}(?:x+)?'\n")
    found = settings.load({}, {"HOME": "/h", "LLM_PROXY_REDACTION_ENABLED": "no"}, str(path)).settings
    assert found.patterns == (("ID", "(?:E|F)-[0-9]{6}(?:x+)?"),) and not found.redact
    assert found.redact_off_for == ("a", os.path.expanduser("~/oss/*"))


# --- numbers


def test_numbers_are_kept_and_secrets_are_not(tmp_path: Path) -> None:
    """The same number after a restart and in another keeper; the file is nobody else's, and tells nothing."""
    first, second = Numbers(tmp_path / "state" / NUMBERS), Numbers(tmp_path / "state" / NUMBERS)
    assert [first.number("A", one) for one in ("x1", "x2", "x1")] == [1, 2, 1]
    assert [second.number(*one) for one in (("A", "x3"), ("A", "x2"), ("B", "x2"))] == [3, 2, 1]
    assert first.number("A", "x3") == 3
    assert Numbers(tmp_path / "state" / NUMBERS).number("A", "x3") == 3
    assert stat.S_IMODE((tmp_path / "state" / NUMBERS).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    first.number("PASSWORD", PASSWORD)
    assert not [file for file in (tmp_path / "state").iterdir() if PASSWORD.encode() in file.read_bytes()]
    elsewhere = Numbers(tmp_path / "other" / NUMBERS)
    assert elsewhere.digest("A", "x1") != first.digest("A", "x1")


def test_without_numbers_secrets_leave_all_the_same(tmp_path: Path) -> None:
    """A state that cannot be written costs the number, nothing else."""
    (tmp_path / NUMBERS).write_bytes(b"no database " * 1000)
    entry = Redaction(Options(), tmp_path).entry({"type": "request", "body": f"my {ANTHROPIC}"})
    assert entry["body"] == "my <ANTHROPIC_KEY>" and entry["redacted"] == {"ANTHROPIC_KEY": 1}
    (tmp_path / "no-folder").write_text("")
    entry = Redaction(Options(), tmp_path / "no-folder").entry({"type": "request", "body": f"my {ANTHROPIC}"})
    assert entry["body"] == "my <ANTHROPIC_KEY>"


# --- what the keeper asks for


def test_what_cannot_be_searched_is_left_out_and_said(tmp_path: Path) -> None:
    """Never in clear, never lost: who called, when and with what result still stands there."""
    redaction = Redaction(Options(), tmp_path)
    spoiled: Entry = {"type": "response", "status": 200, "size": 9, "chunks": [{"raw": ANTHROPIC}, "no chunk"]}
    assert redaction.entry(spoiled) == {"left_out": "redaction_failed", "size": 9, "status": 200, "type": "response"}
    assert redaction.failures == 1 and "redaction failed" in redaction.trouble
    assert ANTHROPIC not in redaction.trouble


@pytest.mark.parametrize(
    ("off_for", "client", "off"),
    [
        (("play",), Client(project="play"), True),
        (("play*",), Client(project="playground"), True),
        (("play",), Client(project="playground"), False),
        (("play",), Client(project="x", cwd="/play"), False),
        (("/home/ann/oss/*",), Client(project="x", cwd="/home/ann/oss/x"), True),
        (("/home/ann/oss/*",), Client(project="x", cwd="/home/ann/oss/x/deep/in"), True),
        (("/home/ann/oss/",), Client(cwd="/home/ann/oss/x/deep/in"), True),
        (("/home/ann/oss",), Client(cwd="/home/ann/oss-not"), False),
        (("/home/ann/oss/*",), Client(cwd="/tmp/worktree", root="/home/ann/oss/x"), True),
        (("/home/ann/oss/*",), Client(cwd="/home/ann"), False),
        (("*",), None, False),
        ((), Client(project="play"), False),
    ],
)
def test_projects_that_opted_out(tmp_path: Path, off_for: tuple[str, ...], client: Client | None, off: bool) -> None:
    """By name, by folder with all that lies in it; a call of which nothing is known is redacted."""
    entry = {"type": "request", "body": ANTHROPIC}
    kept = Redaction(Options(redact_off_for=off_for), tmp_path).entry(entry, client)
    assert (kept is entry) == off == (client is not None and is_off(off_for, client))


def test_redaction_can_be_switched_off(tmp_path: Path) -> None:
    """Then the record is what was said."""
    entry = {"type": "request", "body": ANTHROPIC}
    assert Redaction(Options(redact=False), tmp_path).entry(entry) is entry


def test_an_entry_without_content() -> None:
    """No word of what was said; heads, sizes, times and how the messages went stay."""
    messages = [
        {"from": "client", "type": "text", "ts": "t", "delta_ms": 1, "raw": "x"},
        {"type": "binary", "base64": "x"},
    ]
    facts = {"client_size": 1, "server_size": 2, "server_raw": "x", "server_error": "e", "messages": messages}
    entry: Entry = {
        "type": "response",
        "status": 200,
        "size": 1,
        "body": "x",
        "body_encoding": "base64",
        "websocket": facts,
    }
    assert without_content(entry | {"chunks": [{"raw": "x"}]}, "metadata_only") == {
        "left_out": "metadata_only",
        "size": 1,
        "status": 200,
        "type": "response",
        "websocket": {
            "client_size": 1,
            "server_size": 2,
            "server_error": "e",
            "messages": [{"from": "client", "type": "text", "ts": "t", "delta_ms": 1}, {"type": "binary"}],
        },
    }


# --- all of it


def post(url: str, body: bytes, headers: dict[str, str]) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=10) as answer:
        return bytes(answer.read())


async def test_the_wire_has_the_secret_and_the_record_has_not(daemon: Any, fake: Any) -> None:
    """The provider sees the very bytes; neither log, state nor index holds the key or the password afterwards."""
    daemon.wait_for_recording()
    text = f"my key is {ANTHROPIC} and the database postgres://u:{PASSWORD}@h/x"
    body = json.dumps({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": text}]}).encode()
    url = f"{daemon.url}/anthropic/127.0.0.1:{fake.port}/v1/messages"
    answer = await asyncio.to_thread(post, url, body, {"Content-Type": "application/json", "X-Fake": "echo"})
    assert fake.requests[-1].body == body and body in answer
    entries = daemon.entries(until=lambda entries: len(entries) == 3)
    asked, answered = entries[1:]
    expected = text.replace(ANTHROPIC, "<ANTHROPIC_KEY#1>").replace(PASSWORD, "<URL_PASSWORD#1>")
    assert json.loads(asked["body"])["messages"][0]["content"] == expected
    assert asked["redacted"] == answered["redacted"] == {"ANTHROPIC_KEY": 1, "URL_PASSWORD": 1}
    assert asked["size"] == len(body)
    assert daemon.stop() == 0
    held = [
        file
        for folder in (daemon.logs, daemon.state)
        for file in folder.rglob("*")
        if file.is_file() and (ANTHROPIC.encode() in file.read_bytes() or PASSWORD.encode() in file.read_bytes())
    ]
    assert held == []


async def test_a_record_without_any_word(start: Any, fake: Any) -> None:
    """`record.metadata_only`: the facts are there, and what was said is nowhere."""
    daemon = start("--port", "0", env={"LLM_PROXY_RECORD_METADATA_ONLY": "true"})
    daemon.wait_for_recording()
    body = json.dumps(
        {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "canary-7c1b"}]}
    ).encode()
    url = f"{daemon.url}/anthropic/127.0.0.1:{fake.port}/v1/messages"
    answer = json.loads(await asyncio.to_thread(post, url, body, {"Content-Type": "application/json"}))
    asked, answered = daemon.entries(until=lambda entries: len(entries) == 3)[1:]
    assert asked["left_out"] == answered["left_out"] == "metadata_only"
    assert "body" not in asked and "body" not in answered and asked["size"] == len(body)
    assert answered["digest"]["usage"]["output"] == answer["usage"]["output_tokens"]
    assert daemon.stop() == 0
    said = answer["content"][0]["text"].encode()
    for file in (*daemon.logs.rglob("*"), *daemon.state.rglob("*")):
        if file.is_file() and not file.is_relative_to(daemon.state / "journal"):
            assert b"canary-7c1b" not in file.read_bytes() and said not in file.read_bytes(), file
