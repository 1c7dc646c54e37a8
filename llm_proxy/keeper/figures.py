"""What calls meant and cost, counted since this keeper started: the part of `/metrics` that takes understanding.

Models, errors and quotas are told by strangers, so each name is cut and their number bounded: a model gets a label of
its own with its first good answer, at most `MODELS` do, the rest is `other`. Leaves out what the proxy counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import Any

from llm_proxy.dialects.digest import TOKEN_CLASSES, Digest
from llm_proxy.keeper.quotas import Quotas
from llm_proxy.records.exchange import Ending, Exchange
from llm_proxy.records.first_token import first_token_ms
from llm_proxy.wire.exposition import Histogram, Sample, family, histograms

MODELS, ERRORS, SERIES = 100, 50, 2000
LONGEST = 100  # characters of a name
OTHER = "other"
_FIRST_TOKEN = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 20.0, 30.0, 60.0, 120.0)  # seconds
# Classes that do not overlap: their sum is what went in and came out. The others lie within these.
_WHOLE = ("input", "cache_read", "cache_write_5m", "cache_write_1h", "output")
_WITHIN = tuple(name for name in TOKEN_CLASSES if name not in _WHOLE)
_STATUSES = frozenset(str(status.value) for status in HTTPStatus) | {"0", "499", "520", "522", "524", "529"}


class Figures:
    """Counters. `text` is what the proxy passes on."""

    def __init__(self) -> None:
        self.changed = True
        self._models: set[str] = set()
        self._kinds: set[str] = set()
        self._calls: Counter[tuple[str, str, str, str]] = Counter()  # provider, model, status, ending
        self._errors: Counter[tuple[str, str]] = Counter()  # provider, kind
        self._tokens: Counter[tuple[str, str, str]] = Counter()  # provider, model, class
        self._usd: Counter[tuple[str, str, str]] = Counter()  # provider, model, basis
        self._unpriced: Counter[tuple[str, str]] = Counter()  # provider, model
        self._withheld = Counter(deleted=0, privacy=0)  # why
        self._first_tokens: dict[str, Histogram] = {}
        self._quotas = Quotas()
        self._due = 0.0

    def take(self, exchange: Exchange, digest: Digest, response: Mapping[str, Any]) -> None:
        """A call that is over: what it means, and its response entry."""
        self.changed = True
        provider, status = exchange.provider, exchange.status or 0
        ending = str(response.get("ending") or exchange.ending.label)
        model = self._model(digest.model, good=0 < status < 400)
        call = provider, model, _status(status), ending
        if call not in self._calls and len(self._calls) >= SERIES:
            call = provider, OTHER, OTHER, ending
        self._calls[call] += 1
        if kind := self._kind(digest, status, ending):
            self._errors[provider, kind] += 1
        usage = digest.usage
        if usage is not None:
            for name in TOKEN_CLASSES:
                if count := getattr(usage, name):
                    self._tokens[provider, model, name] += count
        self._charge(provider, model, response.get("price"))
        if (waited := first_token_ms(response)) is not None:
            self._first_tokens.setdefault(provider, Histogram(_FIRST_TOKEN)).observe(waited * 1_000_000)
        if digest.limits:
            self._quotas.take(provider, model, digest.limits, (exchange.opened + exchange.first_byte) / 1e9)

    def withhold(self, why: str) -> None:
        """A call is over of which nothing is kept."""
        self.changed = True
        self._withheld[why] += 1

    def due(self, now: float) -> bool:
        """Whether `text` is another than the last time."""
        return self.changed or now >= self._due

    def text(self, now: float) -> str:
        """In Prometheus' format; `now` is the wall time in seconds."""
        self.changed = False
        self._due = self._quotas.next_reset(now)
        return "\n".join((*self._lines(), *self._quotas.lines(now))) + "\n"

    def _lines(self) -> Iterator[str]:
        named = "provider", "model"
        yield from family(
            "llm_proxy_requests_total",
            "counter",
            "Calls in the record, by what was asked and what came of it.",
            _samples(self._calls, (*named, "status", "ending")),
        )
        yield from family(
            "llm_proxy_errors_total",
            "counter",
            "Calls that failed, by the provider's word for it, else the status or the ending.",
            _samples(self._errors, ("provider", "kind")),
        )
        for name, classes, text in (
            ("llm_proxy_tokens_total", _WHOLE, "Tokens as counted by the provider; the classes do not overlap."),
            ("llm_proxy_tokens_within_total", _WITHIN, "Of these, those that lie within another class."),
        ):
            of_these = {key: count for key, count in self._tokens.items() if key[2] in classes}
            yield from family(name, "counter", text, _samples(of_these, (*named, "class")))
        yield from family(
            "llm_proxy_cost_usd_total",
            "counter",
            "What calls cost; with basis subscription, what they would have cost by the list.",
            _samples(self._usd, (*named, "basis")),
        )
        yield from family(
            "llm_proxy_unpriced_calls_total",
            "counter",
            "Calls whose cost is not known.",
            _samples(self._unpriced, named),
        )
        yield from family(
            "llm_proxy_withheld_calls_total",
            "counter",
            "Calls of which nothing is recorded, because a user of the gateway wants it so or has had them deleted.",
            _samples({(why,): count for why, count in self._withheld.items()}, ("why",)),
        )
        yield from histograms(
            "llm_proxy_first_token_seconds",
            "From the request's arrival to the first token of a streamed answer.",
            (({"provider": provider}, one) for provider, one in sorted(self._first_tokens.items())),
        )

    def _model(self, name: str, *, good: bool) -> str:
        """The label of a model; empty where a call has none."""
        label = _clean(name)
        if good and label and label not in self._models and len(self._models) < MODELS:
            self._models.add(label)
        return label if not label or label in self._models else OTHER

    def _kind(self, digest: Digest, status: int, ending: str) -> str:
        """What kind of failure; empty where it is none, or only the client's leaving."""
        last = digest.last
        if last.error_type or last.error:
            return self._known_kind(_clean(last.error_type) or "error")
        if status >= 400:
            return f"http_{_status(status)}"
        return "" if ending in (Ending.COMPLETE.label, Ending.CLIENT_GONE.label) else ending

    def _known_kind(self, kind: str) -> str:
        if kind not in self._kinds and len(self._kinds) >= ERRORS:
            return OTHER
        self._kinds.add(kind)
        return kind

    def _charge(self, provider: str, model: str, price: Any) -> None:
        if not isinstance(price, dict):
            return
        usd = price.get("usd")
        if usd is None:
            self._unpriced[provider, model] += 1
        else:
            self._usd[provider, model, str(price.get("basis"))] += usd


def _samples(counts: Mapping[Any, float], names: Iterable[str]) -> Iterator[Sample]:
    names = tuple(names)
    for key, count in sorted(counts.items()):
        yield Sample(dict(zip(names, key, strict=True)), count)


def _clean(name: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in name[:LONGEST])


def _status(status: int) -> str:
    """Statuses that nobody knows share a label by their class."""
    text = str(status)
    return text if text in _STATUSES else f"{status // 100}xx"
