"""Recognises conversations whose client gives them no id: by the messages a request repeats, or the answer it names.

Every answered call leaves a `Turn`, found again by a key over all messages up to its answer, system prompts left out,
and over its provider and upstream. A request that repeats them continues that turn; where another had continued it and
was answered before this one began, it is a fork. Requests that share no answer have nothing in common, however alike
they begin. Decides only; leaves out where turns are kept (`store`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from itertools import islice
from typing import NamedTuple

from llm_proxy.dialects.digest import Answer, Asked, Digest
from llm_proxy.keeper.store import Turn
from llm_proxy.records.exchange import Exchange

# A failed request that comes again later than this many nanoseconds is a new one.
RETRIED_WITHIN = 3600 * 1_000_000_000
# Answers in a request that are looked up, the last first; mostly the very last one is known.
_FIRST_LOOK, _DEEPEST = 2, 1000

_CREDENTIALS = ("authorization", "x-api-key", "api-key", "x-goog-api-key")
# The API's own words for fetching or cancelling an answer, and for fetching a batch's.
_FETCHED = re.compile(r".*/responses/([^/]+)(?:/cancel)?/?", re.DOTALL)
_RESULTS = re.compile(r".*/messages/batches/([^/]+)/results/?", re.DOTALL)


class Client(NamedTuple):
    """Who calls, as far as it can be told without anybody's help. `process` is 0 where it is not known."""

    who: bytes
    process: int


class Track(NamedTuple):
    """Keys of a request: of the answers it builds upon, the last first; of itself, should it fail; of its messages."""

    back: tuple[bytes, ...]
    retry: bytes
    messages: bytes


def client(exchange: Exchange, process: int) -> Client:
    """By masked credential and user agent; AWS signatures, which differ from call to call, left out."""
    fields = {name.lower(): value for name, value in exchange.request_headers}
    credentials = () if "x-amz-date" in fields else _CREDENTIALS
    told = "\0".join(fields.get(name, "") for name in (*credentials, "user-agent"))
    return Client(blake2b(told.encode("utf-8", "surrogatepass"), digest_size=8).digest(), process)


def scope(logs: str, exchange: Exchange) -> bytes:
    """Where keys mean the same; what the gateway's users say is for each of them alone."""
    whose = exchange.gateway
    user = () if whose is None else (whose.account or whose.user,)
    parts = (logs, exchange.provider, exchange.upstream, *user)
    return _key(b"", "\0".join(parts).encode("utf-8", "surrogatepass"))


def track(where: bytes, who: Client, asked: Asked) -> Track:
    key = where
    answers = []
    for message in asked.messages:
        if message.role != "system":
            key = _key(key, message.key)
            if message.role == "assistant":
                answers.append(key)
    if asked.previous_response:
        answers = [response_key(where, asked.previous_response)]
        key = _key(answers[0], key)
    settings = f"{asked.model}\0{asked.system}".encode("utf-8", "surrogatepass")
    return Track(tuple(islice(reversed(answers), _DEEPEST)), _key(key, b"failed" + who.who + settings), key)


def response_key(where: bytes, id: str) -> bytes:
    return _key(where, b"answer\0" + id.encode("utf-8", "surrogatepass"))


def named_answers(where: bytes, digest: Digest) -> list[bytes]:
    """Keys of the answers that a later request may name by their id."""
    if digest.asked.api != "openai.responses":
        return []
    return [response_key(where, answer.response_id) for answer in digest.answers if answer.response_id]


def said_answers(track: Track, digest: Digest) -> list[bytes]:
    """Keys of the answers that a later request may repeat, behind the messages that they answer."""
    return [_key(track.messages, answer.message.key) for answer in digest.answers if answer.message is not None]


def fetched(api: str, path: str) -> str:
    """The id of an answer that was given before and is only fetched by this call, "" for any other call."""
    pattern = {"openai.responses": _FETCHED, "anthropic.batches": _RESULTS}.get(api)
    match = pattern.fullmatch(path) if pattern is not None else None
    return match[1] if match else ""


def has_failed(digest: Digest) -> bool:
    """Whether the client may well send the same again."""
    return not digest.answers or any(map(_is_bad, digest.answers))


def _is_bad(answer: Answer) -> bool:
    return bool(answer.error or answer.error_type or answer.partial)


def _key(before: bytes, what: bytes) -> bytes:
    return blake2b(before + what, digest_size=16).digest()


class Turns:
    """What is known while a group of calls is looked at: the store's turns, and those that the group adds itself.

    The same turn is the same object. `read` gives what the store has for some keys.
    """

    def __init__(self, read: Callable[[Sequence[bytes]], list[Turn]]) -> None:
        self._read = read
        self._known: dict[bytes, dict[str, Turn]] = {}

    def at(self, *keys: bytes) -> list[Turn]:
        """All turns with one of these keys."""
        missing = [key for key in keys if key not in self._known]
        if missing:
            self._known |= {key: {} for key in missing}
            for turn in self._read(missing):
                self._known[turn.key][turn.session] = turn
        return [turn for key in keys for turn in self._known[key].values()]

    def put(self, turn: Turn) -> Turn:
        """That turn, or the one known by its key in its session already, which is then not so recent any more."""
        self.at(turn.key)
        known = self._known[turn.key].setdefault(turn.session, turn)
        known.at = turn.at
        return known

    def remove(self, turns: Iterable[Turn]) -> None:
        for turn in turns:
            self._known[turn.key].pop(turn.session, None)

    def failed(self, track: Track, now: int) -> list[Turn]:
        """Calls that failed with the very same request, not long ago."""
        found = self.at(track.retry, *track.back[:_FIRST_LOOK])  # the others will be asked for next
        return [turn for turn in found if turn.key == track.retry and abs(now - turn.at) <= RETRIED_WITHIN]

    def built_upon(self, track: Track) -> list[Turn]:
        """The turns with the longest history that the request repeats."""
        for keys in (track.back[:_FIRST_LOOK], track.back[_FIRST_LOOK:]):
            found = self.at(*keys)
            for key in keys if found else ():
                if self._known[key]:
                    return list(self._known[key].values())
        return []


def choose(turns: Iterable[Turn], who: Client, when: int) -> Turn | None:
    """The one that most likely is meant: the same client's, then one that was not continued yet, then the last one.

    `when` is the moment of the request (ns): what went on at the same time has not gone on before.
    """

    def likeness(turn: Turn) -> tuple[bool, int, bool, int]:
        alike = 1 if not (turn.process and who.process) else 2 * (turn.process == who.process)
        return turn.who == who.who, alike, not turn.continued_before(when), turn.at

    return max(turns, key=likeness, default=None)
