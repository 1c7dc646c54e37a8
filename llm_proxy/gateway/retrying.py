"""What is tried after a failure, and when: first the other targets at once, then the same ones again after a wait.

Pure: `following` tells the next step from what has failed so far. Leaves out sending, and whose failures are remembered
from one request to the next (`breaker`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

LEAST, MOST = 3, 10  # attempts in all: fewer targets than LEAST are tried again, of more than MOST the last ones never
LONGEST = 10.0  # seconds; a provider that says to stay away longer is not asked again for this request
_BASE, _CAP = 0.5, 8.0  # seconds

# Another target may do better: a wait that was cut off, a conflict, too many requests, trouble of the provider's own
# (529: Anthropic is overloaded). Every other 4xx says something of the request or the key, and stays.
_ELSEWHERE: Final = frozenset({408, 409, 429})
# Of one model rather than of all that the key opens. (500: odd content of one caller can bring that about.)
_OF_MODEL: Final = frozenset({408, 409, 429, 500, 503, 529})


@dataclass(frozen=True, slots=True)
class Failure:
    """Of the target at `index`. `status` None: no answer came. `stay_away` is what its Retry-After says, in seconds.

    `skipped`: it was not tried at all, because its breaker is open.
    """

    index: int
    status: int | None = None
    stay_away: float | None = None
    timed_out: bool = False
    skipped: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """Wait so many seconds, then try the target at `index`."""

    index: int
    wait: float


def moves_on(status: int | None) -> bool:
    """Whether the next target is tried after such an answer; None stands for no answer, or none in time."""
    return status is None or status >= 500 or status in _ELSEWHERE


def of_model(status: int | None) -> bool:
    """Whether such a failure tells of the one model, not of everything behind its key."""
    return status in _OF_MODEL


def following(targets: int, failures: Sequence[Failure], rng: random.Random) -> Step | None:
    """What to try next, or None if that was all. `failures` are those of this request so far, in their order.

    Every target is tried once, without a wait. Then they are tried again, those that may soon do better, in rounds:
    before each wait is full jitter below an exponentially growing bound, or what the provider's Retry-After says.
    """
    if not failures:
        return Step(0, 0.0) if targets else None
    if not failures[-1].skipped and not moves_on(failures[-1].status):
        return None
    tried = sum(not failure.skipped for failure in failures)
    if tried >= min(max(LEAST, targets), MOST):
        return None
    if len(failures) < targets:
        return Step(len(failures), 0.0)
    last = {failure.index: failure for failure in failures}  # keeps the order of the first round
    again = [one for one in last.values() if _may_do_better(one)]
    if not again:
        return None
    times = {one.index: sum(failure.index == one.index for failure in failures) for one in again}
    chosen = min(again, key=lambda one: times[one.index])
    return Step(chosen.index, _wait(times[chosen.index], chosen.stay_away, rng))


def stay_away(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """The seconds that a provider's answer says to wait, None where it says nothing (RFC 9110 §10.2.3).

    `headers` are by lower-case names. `retry-after-ms` is OpenAI's, and says it closer.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    said = headers.get("retry-after")
    seconds = _number(said)
    if seconds is not None or said is None:
        return seconds
    try:
        at = parsedate_to_datetime(said)
    except (ValueError, OverflowError):
        return None
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - (now or datetime.now(UTC))).total_seconds())


def _may_do_better(failure: Failure) -> bool:
    # Who took all the time there is once would take it again.
    return not (failure.skipped or failure.timed_out or (failure.stay_away or 0) > LONGEST)


def _wait(times: int, said: float | None, rng: random.Random) -> float:
    """Seconds before a target is tried that has failed so many `times`."""
    jitter = rng.uniform(0, min(_CAP, _BASE * 2 ** (times - 1)))
    return jitter if said is None else said + min(jitter, _BASE)


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if value >= 0 and math.isfinite(value) else None
