"""Circuit breakers: who fails again and again is left alone for a while, then tried with one request.

One for each provider key, and for a model of it where failures told of the model alone. Time is asked for at each call,
so no task runs. Leaves out which failures count (`retrying`) and what is tried instead (`planning`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Final

from llm_proxy.wire.exposition import Sample, family

IN_A_ROW = 5  # failures that open a circuit
WINDOW, LEAST, SHARE = 60.0, 20, 0.5  # so many seconds, calls, and failures among them do too
COOL, COOLEST = 5.0, 300.0  # seconds a circuit stays open the first time; it doubles up to the other
PROBING = 120.0  # seconds after which a probe that nobody told the end of is given up
_REMEMBERED: Final = 100  # calls of a circuit
CIRCUITS: Final = 1_000  # of all; then the one that was made first is forgotten


class State(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class _Circuit:
    __slots__ = ("_calls", "_closed_at", "_cool", "_failures", "_in_a_row", "_open_until", "_probe_until")

    def __init__(self) -> None:
        self._calls: deque[tuple[float, bool]] = deque()  # when, and whether it failed
        self._failures = 0  # among them
        self._in_a_row = 0
        self._open_until: float | None = None  # None: closed
        self._probe_until = 0.0
        self._cool = 0.0  # how long it was open the last time
        self._closed_at = 0.0

    def state(self, now: float) -> State:
        if self._open_until is None:
            return State.CLOSED
        return State.OPEN if now < self._open_until else State.HALF_OPEN

    def wait(self, now: float) -> float:
        """Seconds until it lets a call through."""
        if self._open_until is None:
            return 0.0
        return max(0.0, self._open_until - now, self._probe_until - now)

    def probe(self, now: float) -> None:
        """A call goes through; half-open it is the only one."""
        if self._open_until is not None:
            self._probe_until = now + PROBING

    def let_go(self) -> None:
        self._probe_until = 0.0

    def succeeded(self, now: float) -> None:
        state = self.state(now)
        if state is State.OPEN:
            return  # a call from before
        if state is State.HALF_OPEN:
            self._open_until = None
            self._closed_at = now
            self._calls.clear()
            self._failures = 0
        self._in_a_row = 0
        self._note(now, failed=False)

    def failed(self, now: float) -> None:
        state = self.state(now)
        if state is State.OPEN:
            return
        self._in_a_row += 1
        self._note(now, failed=True)
        if state is State.HALF_OPEN or self._in_a_row >= IN_A_ROW or self._mostly_fails():
            self._open(now, again=state is State.HALF_OPEN)

    def forgettable(self, now: float) -> bool:
        """Whether it knows nothing that a new one would not."""
        self._expire(now)
        return self._open_until is None and not self._failures and now - self._closed_at > self._cool

    def _open(self, now: float, *, again: bool) -> None:
        # Trouble that comes back as soon as it was over goes on where it was.
        again = again or (self._cool > 0 and now - self._closed_at <= self._cool)
        self._cool = min(COOLEST, 2 * self._cool) if again else COOL
        self._open_until = now + self._cool
        self._probe_until = 0.0

    def _mostly_fails(self) -> bool:
        return len(self._calls) >= LEAST and self._failures >= SHARE * len(self._calls)

    def _note(self, now: float, *, failed: bool) -> None:
        self._calls.append((now, failed))
        self._failures += failed
        if len(self._calls) > _REMEMBERED:
            self._failures -= self._calls.popleft()[1]
        self._expire(now)

    def _expire(self, now: float) -> None:
        while self._calls and now - self._calls[0][0] > WINDOW:
            self._failures -= self._calls.popleft()[1]


class Breakers:
    """All circuits of a process. `clock` gives seconds and never goes back.

    Every call that was allowed is followed by one of `succeeded`, `failed` and `let_go`. Healthy providers cost a
    look into an empty dict.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._circuits: dict[tuple[int, str], _Circuit] = {}

    def allows(self, key_id: int, model: str = "") -> bool:
        """Whether a call may go there now. Of a circuit that has cooled down, one call at a time may."""
        if not self._circuits:
            return True
        now = self._clock()
        circuits = [circuit for _, circuit in self._of(key_id, model)]
        if any(circuit.wait(now) for circuit in circuits):
            return False
        for circuit in circuits:
            circuit.probe(now)
        return True

    def succeeded(self, key_id: int, model: str = "") -> None:
        """It answered; whether with what the caller wanted is no matter."""
        if not self._circuits:
            return
        now = self._clock()
        for name, circuit in list(self._of(key_id, model)):
            circuit.succeeded(now)
            if circuit.forgettable(now):
                del self._circuits[name]

    def failed(self, key_id: int, model: str = "") -> None:
        """It failed: as every call with that key would have or, with a `model`, only those for that one."""
        now = self._clock()
        whole = self._circuits.get((key_id, ""))
        if model and whole is not None:
            whole.succeeded(now)  # it answered
        elif not model:
            for (id, _), circuit in self._circuits.items():
                if id == key_id:
                    circuit.let_go()  # what a probe would have told of a model, it has not
        circuit = self._circuits.get((key_id, model)) or self._new((key_id, model))
        circuit.failed(now)

    def let_go(self, key_id: int, model: str = "") -> None:
        """A call ended without telling anything, as when the caller leaves."""
        for _, circuit in self._of(key_id, model):
            circuit.let_go()

    def wait(self, key_id: int, model: str = "") -> float:
        """Seconds until a call may go there, for Retry-After. 0: now."""
        now = self._clock()
        return max((circuit.wait(now) for _, circuit in self._of(key_id, model)), default=0.0)

    def states(self) -> dict[tuple[int, str], State]:
        """Of every circuit that is known, by key and model ("": all of the key's); for those who watch."""
        now = self._clock()
        return {name: circuit.state(now) for name, circuit in self._circuits.items()}

    def metrics(self) -> Iterator[str]:
        """Lines in Prometheus' text format."""
        known = self.states()
        yield from family(
            "llm_proxy_gateway_circuit_open",
            "gauge",
            "Provider keys, by their ids, and models of theirs that are left alone; 0: tried with one call at a time.",
            [
                Sample({"key": str(key_id), "model": model}, int(state is State.OPEN))
                for (key_id, model), state in sorted(known.items())
                if state is not State.CLOSED
            ],
        )

    def _new(self, name: tuple[int, str]) -> _Circuit:
        if len(self._circuits) >= CIRCUITS:
            del self._circuits[next(iter(self._circuits))]
        self._circuits[name] = circuit = _Circuit()
        return circuit

    def _of(self, key_id: int, model: str) -> Iterator[tuple[tuple[int, str], _Circuit]]:
        for name in ((key_id, ""), (key_id, model)) if model else ((key_id, ""),):
            circuit = self._circuits.get(name)
            if circuit is not None:
                yield name, circuit
