"""The OTLP sink: a span per call, and histograms over all, to any OpenTelemetry backend by OTLP/HTTP.

Spans have the same ids whenever they are sent, so that what comes twice after a crash is the same span. Histograms are
cumulative, and their totals are remembered together with how far the lane is, so that every call is counted once. The
official exporter sends; trying again is the lane's, which knows no end. Leaves out what is told (`formats.otel`,
`formats.otel_metrics`) and the SDK (`otlp_http`).
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_proxy.formats.call import Call
from llm_proxy.formats.otel import Span, span_of
from llm_proxy.formats.otel_metrics import Key, Series, Totals
from llm_proxy.lanes.posting import retry_after
from llm_proxy.lanes.sink import Declined, Refused, Unusable

if TYPE_CHECKING:
    from llm_proxy.lanes.otlp_http import Answer, Point, Sender

PACKAGES = ("opentelemetry-sdk>=1.45,<2", "opentelemetry-exporter-otlp-proto-http>=1.45,<2")

# Statuses that speak of what was sent; with any other one the same may be taken another time.
_NEVER = frozenset({400, 413, 415, 422})
_BUSY = frozenset({408, 429})

_PORTION = 2 << 20  # characters of attributes sent at once: receivers take 4 MB at least
_LONGEST_WAIT = 300.0  # seconds that a receiver may ask for
_QUIET = 60 * 10**9  # nanoseconds


class Otlp:
    """`options`: those of `passing`: `endpoint`, `headers`, `traces`, `metrics`, `content`, `service_name`,
    `compression`, `timeout`, `certificate`, `instance`, `version`. What is empty is as the standard environment
    variables say. Raises Unusable, naming what is missing or wrong."""

    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        for name in ("opentelemetry", "urllib3"):  # what they say may hold the receiver's address
            logging.getLogger(name).addHandler(logging.NullHandler())
            logging.getLogger(name).propagate = False
        if not options.get("endpoint") and os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "").startswith("grpc"):
            raise Unusable("OTEL_EXPORTER_OTLP_PROTOCOL is grpc, and llm-proxy speaks OTLP/HTTP: set otlp.endpoint")
        self._sender = _sender(options)
        self._content = bool(options.get("content"))
        self._traces = bool(options.get("traces", True))
        self._metrics = bool(options.get("metrics", True))
        self._totals = Totals()
        self._before = self._totals  # without the last batch
        self._counted: frozenset[str] = frozenset()  # the calls of that batch
        self._taken: set[str] = set()  # calls whose spans were taken, but whose batch is not done
        self.counted = {"rejected_spans": 0, "rejected_points": 0}
        self.warning = ""

    @property
    def ledger(self) -> dict[str, Any]:
        return self._totals.to_json()

    def resume(self, ledger: Mapping[str, Any]) -> None:
        self._totals = self._before = Totals.from_json(ledger)

    def write(self, calls: Sequence[Call]) -> None:
        if calls[0].row.id in self._counted:  # the lane could not remember that it had passed that batch on
            self._totals = self._before
        spans = {call.row.id: span_of(call, with_content=self._content) for call in calls}
        if self._traces:
            for portion in _portions({id: span for id, span in spans.items() if id not in self._taken}):
                self._send_spans(portion.values())
                self._taken |= portion.keys()
        if self._metrics:
            self._count(spans.values())
        self._counted = frozenset(spans)
        self._taken -= spans.keys()

    def close(self) -> None:
        self._sender.close()

    def _send_spans(self, spans: Iterable[Span]) -> None:
        answer = self._sender.send_spans(list(spans))
        if not answer.sent:
            raise Declined("the exporter could not encode it")
        if answer.status in _NEVER:
            raise Declined(f"{self._sender.place} answered {answer.status} {answer.words}".strip())
        self._or_later(answer)
        # The protocol forbids to send them once more: nobody knows which ones were thrown away.
        self._note("spans", answer)

    def _count(self, spans: Iterable[Span]) -> None:
        """A batch counts once its totals have arrived. Those that nobody wants are no loss: the next bring them."""
        before, totals = self._totals, self._totals.plus(spans)
        self._before = before
        changed = totals.changed(before)
        if not changed:
            return
        now = max(time.time_ns(), *(totals.series[key].at_ns + 2 for key in changed))
        answer = self._sender.send_metrics(totals.start_ns, list(_points(before, totals, changed, now)))
        if not answer.sent or _for_good(answer):
            why = f"{answer.status} {answer.words}".strip() if answer.sent else "they cannot be encoded"
            self._warn(f"{self._sender.place} takes no metrics ({why}); otlp.metrics = false sends none")
        else:
            self._or_later(answer)
            self._note("points", answer)
        self._totals = totals.sent(changed, now)

    def _or_later(self, answer: Answer) -> None:
        """Raises Refused unless it was taken."""
        if answer.status is None:
            raise Refused(f"{self._sender.place} cannot be reached: {answer.words}")
        if not 200 <= answer.status < 300:
            after = min(retry_after(answer.retry_after), _LONGEST_WAIT)
            words = f"{self._sender.place} answered {answer.status} {answer.words}".strip()
            raise Refused(words, after=after, lasting=_for_good(answer))

    def _note(self, what: str, answer: Answer) -> None:
        """What was thrown away of something that was taken; a receiver may also only warn."""
        if answer.rejected or answer.words:
            self.counted[f"rejected_{what}"] += answer.rejected
            verb = f"threw away {answer.rejected} {what}" if answer.rejected else f"took the {what}, but says"
            self._warn(f"{self._sender.place} {verb}: {answer.words}")

    def _warn(self, words: str) -> None:
        """What cannot be mended by trying again; said once."""
        if words != self.warning:
            self.warning = words
            print(f"otlp: {words}", file=sys.stderr, flush=True)


def _sender(options: Mapping[str, Any]) -> Sender:
    try:
        from llm_proxy.lanes.otlp_http import Sender
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("llm_proxy"):
            raise
        wanted = " ".join(f"'{package}'" for package in PACKAGES)
        command = f"{sys.executable} -m pip install {wanted}"
        raise Unusable(f"OpenTelemetry is not installed (no module {error.name}): {command}") from None
    return Sender(options)


def _portions(spans: Mapping[str, Span]) -> Iterator[dict[str, Span]]:
    """As many at a time as a receiver takes."""
    portion: dict[str, Span] = {}
    size = 0
    for id, span in spans.items():
        length = sum(len(value) for value in span.attributes.values() if isinstance(value, str))
        if portion and size + length > _PORTION:
            yield portion
            portion, size = {}, 0
        portion[id] = span
        size += length
    if portion:
        yield portion


def _points(before: Totals, totals: Totals, changed: Iterable[Key], now: int) -> Iterator[Point]:
    """What changed, as it is now; and where nothing was told for a while also as it was until now: backends compute
    increases from two points, and usual senders repeat theirs every minute."""
    for key in changed:
        old = before.series.get(key) or Series((0,) * len(totals.series[key].buckets))
        if now - old.at_ns > _QUIET:
            yield key, old, now - 1
        yield key, totals.series[key], now


def _for_good(answer: Answer) -> bool:
    """Only a person can change it: a wrong address, a key that does not count."""
    return answer.status is not None and 300 <= answer.status < 500 and answer.status not in _BUSY
