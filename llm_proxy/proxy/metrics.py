"""The proxy's own counters and times, for `/metrics`. What others know comes in as gauges; leaves out the format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from llm_proxy.records.exchange import Ending
from llm_proxy.wire.exposition import Histogram, Sample, family, histograms
from llm_proxy.wire.head import ResponseHead

_WAITS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)  # seconds
_LATENCIES = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
_ADDED = (1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.1, 1.0)


class Traffic:
    """Of one provider: payload bytes towards it and from it, and how long exchanges took."""

    __slots__ = ("latency", "received", "sent")

    def __init__(self) -> None:
        self.sent = self.received = 0
        self.latency = Histogram(_LATENCIES)


class Metrics:
    """Plain integers, touched on the hot path. Times are nanoseconds."""

    def __init__(self) -> None:
        self.exchanges: Counter[tuple[str, int, int]] = Counter()  # (provider, ending, status)
        self.answers: Counter[str] = Counter()  # our own error answers, by code
        self.connects = 0
        self.retries = 0
        self.faults = 0
        self.accepted = 0
        self._traffic: dict[str, Traffic] = {}
        self._heads = Histogram(_WAITS)
        self._added_to_requests = Histogram(_ADDED)
        self.request_out = self._added_to_requests.observe  # from a head's last byte to its way upstream
        self._added_to_responses = Histogram(_ADDED)

    def count_exchange(
        self, provider: str, ending: int, head: ResponseHead | None, took: int, sent: int, received: int
    ) -> None:
        """One is over. `sent` and `received` are bytes of payload."""
        self.exchanges[provider, ending, head.status if head is not None else 0] += 1
        traffic = self._traffic.get(provider)
        if traffic is None:
            traffic = self._traffic[provider] = Traffic()
        traffic.sent += sent
        traffic.received += received
        traffic.latency.observe(took)

    def count_answer(self, code: str) -> None:
        self.answers[code] += 1

    def head_out(self, waited: int, took: int) -> None:
        """A response's head has come `waited` after the request, and was on its way to the client `took` later."""
        self._heads.observe(waited)
        self._added_to_responses.observe(took)

    def text(self, gauges: Mapping[str, tuple[str, Iterable[Sample]]]) -> str:
        """Everything, with the numbers that others know: name -> (help, samples)."""
        return "\n".join(self._lines(gauges)) + "\n"

    def _lines(self, gauges: Mapping[str, tuple[str, Iterable[Sample]]]) -> Iterator[str]:
        yield from family(
            "llm_proxy_exchanges_total",
            "counter",
            "Exchanges by provider, ending and upstream status (0: none came).",
            (
                Sample({"provider": provider, "ending": Ending(ending).label, "status": str(status)}, count)
                for (provider, ending, status), count in sorted(self.exchanges.items())
            ),
        )
        yield from family(
            "llm_proxy_answers_total",
            "counter",
            "Error answers of the proxy itself, by code.",
            (Sample({"code": code}, count) for code, count in sorted(self.answers.items())),
        )
        for name, value, text in (
            ("connections_accepted", self.accepted, "Client connections accepted."),
            ("upstream_connects", self.connects, "Upstream connections opened."),
            ("upstream_retries", self.retries, "Requests sent again because a reused connection had died."),
            ("faults", self.faults, "Internal errors; each is a defect."),
        ):
            yield from family(f"llm_proxy_{name}_total", "counter", text, [Sample({}, value)])
        traffic = sorted(self._traffic.items())
        yield from family(
            "llm_proxy_body_bytes_total",
            "counter",
            "Payload bytes of exchanges that are over, by direction.",
            (
                Sample({"provider": provider, "direction": direction}, size)
                for provider, one in traffic
                for direction, size in (("request", one.sent), ("response", one.received))
            ),
        )
        yield from histograms(
            "llm_proxy_exchange_seconds",
            "From the request's arrival to the end of the exchange.",
            (({"provider": provider}, one.latency) for provider, one in traffic),
        )
        yield from histograms(
            "llm_proxy_time_to_head_seconds",
            "From the request's arrival to the response's head.",
            [({}, self._heads)],
        )
        yield from histograms(
            "llm_proxy_added_seconds",
            "What the proxy itself added: from a request's head to its way upstream on a connection that stood ready, "
            "and from a response's first bytes to their way to the client.",
            [
                ({"direction": "request"}, self._added_to_requests),
                ({"direction": "response"}, self._added_to_responses),
            ],
        )
        for name, (text, samples) in gauges.items():
            yield from family(name, "counter" if name.endswith("_total") else "gauge", text, samples)
