"""How limits are told: the headers of an answer, the refusal of a call too many, the warning before it. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final

from llm_proxy.gateway.limiting.meters import MINUTE, Meter, Span, Standing, Subject, Verdict, Want, What, left_of
from llm_proxy.gateway.refusals import Refusal
from llm_proxy.gateway.store.schema import NANO

WARNS: Final = 0.8  # of a limit
WARNING: Final = "x-llm-proxy-warning"
_WHOSE: Final = {
    Subject.EVERYBODY: "everybody together",
    Subject.TEAM: "your team",
    Subject.USER: "you",
    Subject.KEY: "the API key",
    Subject.ALIAS: "the model alias",
}
_PER: Final = {Span.MINUTE: "in a minute", Span.DAY: "in a day", Span.MONTH: "in a month", Span.NOW: "at once"}
_VERBS: Final = {What.REQUESTS: "make", What.TOKENS: "use", What.STREAMS: "have", What.SPEND: "spend"}
_TOLD: Final = (What.REQUESTS, What.TOKENS)  # that have headers of their own
_NAMES: Final = {what: [f"x-ratelimit-{part}-{what}" for part in ("limit", "remaining", "reset")] for what in _TOLD}


def headers(wants: Sequence[Want], verdict: Verdict, dialect: str) -> dict[str, str]:
    """As OpenAI calls them, of the limit that is nearest: `reset` is until nothing counts any more. Callers of
    Anthropic's API get its names too, with the moment.
    """
    told: dict[str, str] = {}
    for what in _TOLD:
        nearest: tuple[int, Meter] | None = None
        for want, standing in zip(wants, verdict.standings, strict=True):
            if want.meter.kind.what is what:
                left = max(want.meter.most - standing.taken, 0)
                if nearest is None or left < nearest[0]:
                    nearest = left, want.meter
        if nearest is not None:
            left, meter = nearest
            told |= _of(what, meter.most, left, left_of(meter.kind.span, verdict.at), verdict.at, dialect)
    return told


def _of(what: What, most: int, left: int, reset: float, at: float, dialect: str) -> dict[str, str]:
    told = dict(zip(_NAMES[what], (str(most), str(left), duration(reset)), strict=True))
    if dialect == "anthropic":
        moment = datetime.fromtimestamp(math.ceil(at + reset), UTC)
        told |= {
            f"anthropic-ratelimit-{what}-limit": str(most),
            f"anthropic-ratelimit-{what}-remaining": str(left),
            f"anthropic-ratelimit-{what}-reset": f"{moment:%Y-%m-%dT%H:%M:%SZ}",
        }
    return told


def refusal(wants: Sequence[Want], verdict: Verdict, dialect: str) -> tuple[Refusal, Meter]:
    """Of the limit that takes longest to have room, and which that is."""
    pairs = [(want, one) for want, one in zip(wants, verdict.standings, strict=True) if one.wait > 0]
    want, standing = max(pairs, key=lambda pair: pair[1].wait)
    meter = want.meter
    kind = meter.kind
    seconds = max(math.ceil(standing.wait), 1)
    told = headers(wants, verdict, dialect)
    if kind.what in _TOLD:
        reset = MINUTE if kind.span is Span.MINUTE else standing.wait
        left = max(meter.most - standing.taken, 0)
        told |= _of(kind.what, meter.most, left, reset, verdict.at, dialect)
    told["Retry-After"] = str(seconds)
    if kind.span.is_calendar:
        told["x-should-retry"] = "false"  # OpenAI's and Anthropic's SDKs would try again within seconds
    words = f"{whose(meter)} may {_VERBS[kind.what]} {amount(kind.what, meter.most)} {_PER[kind.span]}, and "
    words += _state(want, standing)
    if kind.span is not Span.NOW:
        words += f"; try again in {duration(seconds)}"
    code = "budget_exceeded" if kind.what is What.SPEND else "rate_limit_exceeded"
    return Refusal(429, code, words, headers=told), meter


def _state(want: Want, standing: Standing) -> str:
    what = want.meter.kind.what
    has = "have" if want.meter.subject in (Subject.USER, Subject.EVERYBODY) else "has"
    if standing.taken >= want.meter.most:
        return has
    taken = f"{has} {'spent' if what is What.SPEND else 'used'} {amount(what, standing.taken)}"
    return f"{taken}, calls under way included; this one may take {amount(what, want.need)}"


def whose(meter: Meter) -> str:
    return f"{_WHOSE[meter.subject]} {meter.name!r}" if meter.name else _WHOSE[meter.subject]


def near(wants: Iterable[Want], standings: Iterable[Standing]) -> list[tuple[Meter, Standing]]:
    """The limits of which most is used."""
    return [
        (want.meter, standing)
        for want, standing in zip(wants, standings, strict=True)
        if want.meter.most and standing.taken >= WARNS * want.meter.most
    ]


def warning(found: Iterable[tuple[Meter, Standing]]) -> str:
    """For a header: without what no header can hold."""
    told = (
        f"{whose(meter)}: {amount(meter.kind.what, standing.taken, meter.most)} {_PER[meter.kind.span]}"
        for meter, standing in found
    )
    return "; ".join(told).encode("ascii", "replace").decode()


def amount(what: What, number: int, of: int | None = None) -> str:
    """`100 requests`, `5.00 USD`; `80 of 100 requests`."""
    shown = dollars(number) if what is What.SPEND else str(number)
    if of is not None:
        shown += f" of {dollars(of) if what is What.SPEND else of}"
    return f"{shown} USD" if what is What.SPEND else f"{shown} {what}"


def dollars(nano: int) -> str:
    """To the millionth, with two digits of cents at least."""
    whole, rest = divmod(nano // 1000, NANO // 1000)
    return f"{whole}.{f'{rest:06d}'.rstrip('0'):0<2}"


def duration(seconds: float) -> str:
    """As OpenAI writes it, in whole seconds: `6m0s`."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
