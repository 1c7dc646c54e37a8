"""From an exchange to what is written of it: its entries, without secrets, and what they mean and cost.

Nothing here can hold up the record: whatever fails is left out, counted and named. Leaves out to which session the call
belongs and under which number (`settle`).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from llm_proxy.dialects.digest import Asked, Digest
from llm_proxy.dialects.hints import Hint, client_session
from llm_proxy.keeper.options import Options
from llm_proxy.keeper.projects import Client, Projects
from llm_proxy.keeper.redact import Redaction
from llm_proxy.records import privacy, understood
from llm_proxy.records.exchange import Exchange
from llm_proxy.records.first_token import first_token_ms
from llm_proxy.records.pricing import PriceBook, to_entry
from llm_proxy.records.redaction import without_content
from llm_proxy.sinks import session_jsonl
from llm_proxy.sinks.session_jsonl import Entry

# Bytes of requests of open calls that are remembered as understood; beyond that they are understood once more.
OPEN_BYTES = 32 << 20
_LONGEST = 500  # characters of a trouble


@dataclass(slots=True)
class Troubles:
    """What could not be done for some call since this keeper started, by what was to be done."""

    counts: Counter[str] = field(default_factory=Counter)
    last: str = ""

    def take(self, what: str, why: object) -> None:
        self.counts[what] += 1
        self.last = f"{what}: {why}"[:_LONGEST]


@dataclass(slots=True)
class Told:
    """What there is to say of an exchange. The entries have no session and no number yet.

    `whole`: the request entry has its body; it was written before where it has none. `response` is None as long as the
    call is open. `level` says how much of it may be kept. Mutable: whether its usage counts is found out later.
    """

    client: Client | None
    hint: Hint | None
    request: Entry
    whole: bool
    response: Entry | None
    digest: Digest
    level: str = privacy.FULL


class _Open(NamedTuple):
    """What is remembered of an open call's request; the entry has no body any more."""

    client: Client | None
    hint: Hint | None
    request: Entry
    asked: Asked
    size: int


class Teller:
    """Tells exchanges; those of open calls first without their response."""

    def __init__(self, machine: str, options: Options, state: Path, troubles: Troubles) -> None:
        self._machine = machine
        self._troubles = troubles
        self._metadata_only = options.metadata_only
        self._ceiling = options.gateway_privacy
        self._projects = Projects() if options.projects else None
        self._redaction = Redaction(options, state)
        self._prices = PriceBook({model: dict(prices) for model, prices in options.prices}, options.price_data)
        self._open: OrderedDict[UUID, _Open] = OrderedDict()
        self._open_bytes = 0

    def open(self, exchange: Exchange) -> Told:
        """A call whose request has arrived."""
        client, level = self._client(exchange), self._level(exchange)
        raw = self._entry(session_jsonl.request_entry, exchange, "request")
        hint = self._private(_hint(exchange, raw, None), level)
        request = self._redacted(raw, client, exchange, level)
        asked = understood.understand(request, None)
        told = Told(client, hint, self._shown(request, exchange, level), True, None, asked, level)
        self._remember(exchange, told)
        return told

    def over(self, exchange: Exchange) -> Told:
        known = self._recall(exchange.id)
        raw = self._entry(session_jsonl.response_entry, exchange, "response")
        level = self._level(exchange)
        if known is not None:
            response = self._redacted(raw, known.client, exchange, level)
            digest = understood.understand(known.request, response, known.asked)
            shown = self._shown(response, exchange, level)
            return Told(known.client, known.hint, known.request, False, shown, digest, level)
        client = self._client(exchange)
        asked = self._entry(session_jsonl.request_entry, exchange, "request")
        hint = self._private(_hint(exchange, asked, raw), level)
        request, response = (self._redacted(entry, client, exchange, level) for entry in (asked, raw))
        digest = understood.understand(request, response)
        request, response = (self._shown(entry, exchange, level) for entry in (request, response))
        return Told(client, hint, request, True, response, digest, level)

    def request(self, exchange: Exchange, client: Client | None) -> Entry:
        """The request entry once more."""
        raw, level = self._entry(session_jsonl.request_entry, exchange, "request"), self._level(exchange)
        return self._shown(self._redacted(raw, client, exchange, level), exchange, level)

    def indexed(self, told: Told) -> Digest:
        """What may be searched for."""
        digest = told.digest
        if told.level == privacy.METADATA:
            return privacy.digest_without_words(digest)
        if not self._metadata_only:
            return digest
        answers = (replace(answer, message=None, error="") for answer in digest.answers)
        return replace(digest, asked=replace(digest.asked, system="", messages=()), answers=tuple(answers))

    def answered(self, exchange: Exchange, told: Told) -> Entry:
        """The response entry, with what it means and what it cost."""
        entry = told.response or {}
        silent = told.level == privacy.METADATA
        if trouble := told.digest.last.trouble or told.digest.asked.trouble:
            self._troubles.take("understand", "a call of which no content is kept" if silent else trouble)
        if entry.get("bad_frames"):
            self._troubles.take("decode", entry.get("decode_error"))
        try:
            digest = privacy.digest_without_words(told.digest) if silent else told.digest
            facts = understood.facts(digest)
            price = self._prices.of(told.request, exchange.provider, digest) if facts else None
        except Exception as error:  # a bug of ours, or of the price list's
            self._troubles.take("price", repr(error))
        else:
            entry |= {"digest": facts} if facts else {}
            if (waited := first_token_ms(entry)) is not None:
                entry["timing"] = entry["timing"] | {"first_token_ms": waited}
            entry |= {"price": to_entry(price)} if price is not None else {}
        return dict(sorted(entry.items()))

    def _entry(self, make: Callable[[Exchange, str, int, str], Entry], exchange: Exchange, kind: str) -> Entry:
        try:
            return make(exchange, "", 0, self._machine)
        except Exception as error:  # a bug of ours must not hold up everybody else's record for ever
            self._troubles.take("tell", repr(error))
            return session_jsonl.bare_entry(exchange, "", 0, self._machine, kind, repr(error))

    def _client(self, exchange: Exchange) -> Client | None:
        return self._projects.client(exchange.client_port, exchange.opened) if self._projects else None

    def _level(self, exchange: Exchange) -> str:
        """At most. What is not to be kept at all is told without a word, should somebody ask for it."""
        level = privacy.level(exchange.gateway, self._ceiling)
        return privacy.METADATA if level == privacy.NONE else level

    def _private(self, hint: Hint | None, level: str) -> Hint | None:
        if level == privacy.METADATA:
            return privacy.hint_without_words(hint)
        return privacy.hint_redacted(hint, self._redaction.personal) if level == privacy.REDACTED else hint

    def _redacted(self, entry: Entry, client: Client | None, exchange: Exchange, level: str) -> Entry:
        failures = self._redaction.failures
        if level == privacy.REDACTED:
            body = privacy.body_of(exchange, entry)
            personal = partial(privacy.redacted, redactor=self._redaction.personal, body=body)
            entry = self._redaction.by(personal, entry)
        else:
            entry = self._redaction.entry(entry, client)
        if self._redaction.failures > failures:
            self._troubles.take("redact", self._redaction.trouble)
        return entry

    def _shown(self, entry: Entry, exchange: Exchange, level: str) -> Entry:
        if level == privacy.METADATA:
            return privacy.without_words(entry, privacy.body_of(exchange, entry))
        return without_content(entry, "metadata_only") if self._metadata_only else entry

    def _remember(self, exchange: Exchange, told: Told) -> None:
        bare = {name: value for name, value in told.request.items() if name != "body"}
        known = self._open[exchange.id] = _Open(told.client, told.hint, bare, told.digest.asked, exchange.request.size)
        self._open_bytes += known.size
        while self._open_bytes > OPEN_BYTES:
            self._open_bytes -= self._open.popitem(last=False)[1].size

    def _recall(self, id: UUID) -> _Open | None:
        known = self._open.pop(id, None)
        if known is not None:
            self._open_bytes -= known.size
        return known


def _hint(exchange: Exchange, request: Entry, response: Entry | None) -> Hint | None:
    """Over a WebSocket the body is what the client says first."""
    headers = {name.lower(): value for name, value in exchange.request_headers}
    if not exchange.websocket:
        body = understood.body_of(request)
    else:
        said = understood.messages_of(response or {})
        body = next((data for side, data in said if side == "client"), b"")
    return client_session(exchange.provider, exchange.path, headers, body)
