"""Who fails again and again is left alone for a while; a request that failed is tried where it may do better."""

import random
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_proxy.gateway import breaker
from llm_proxy.gateway.breaker import COOL, COOLEST, IN_A_ROW, PROBING, WINDOW, Breakers, State
from llm_proxy.gateway.retrying import LEAST, LONGEST, MOST, Failure, following, moves_on, of_model, stay_away


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def breakers(clock):
    return Breakers(clock)


def fail(breakers, times=IN_A_ROW, *target):
    for _ in range(times):
        breakers.failed(*(target or (1,)))


def open_for(breakers, clock, *target):
    """Seconds, by trying; the call that goes through is let go of."""
    started = clock.now
    while not breakers.allows(*(target or (1,))):
        clock.now += 0.5
    breakers.let_go(*(target or (1,)))
    return clock.now - started


def test_failures_in_a_row_open_it(breakers):
    """One less does not, and a success between them begins anew."""
    fail(breakers, IN_A_ROW - 1)
    assert breakers.allows(1)
    breakers.succeeded(1)
    fail(breakers, IN_A_ROW - 1)
    assert breakers.allows(1)
    breakers.failed(1)
    assert not breakers.allows(1) and breakers.states() == {(1, ""): State.OPEN}
    assert breakers.allows(2)


def test_half_of_the_calls_failing_opens_it(breakers, clock):
    """Never several in a row, but as many as all others, among enough calls within the window."""
    for _ in range(9):
        breakers.failed(1)
        breakers.succeeded(1)
        clock.now += 1
    assert breakers.allows(1)
    breakers.failed(1)
    assert breakers.allows(1)
    breakers.failed(1)
    assert not breakers.allows(1)


def test_failures_of_long_ago_count_no_more(breakers, clock):
    """The window moves on."""
    for _ in range(50):
        breakers.failed(1)
        breakers.succeeded(1)
        clock.now += WINDOW / 8
    assert breakers.allows(1)


def test_few_failures_among_many_calls_are_nothing(breakers, clock):
    """A busy provider that fails one call in five serves on."""
    for number in range(1000):
        (breakers.failed if number % 5 == 0 else breakers.succeeded)(1)
        clock.now += 0.01
    assert breakers.allows(1)


def test_one_call_probes_it_when_it_has_cooled_down(breakers, clock):
    """The others wait for what becomes of it; a success closes it."""
    fail(breakers)
    clock.now += COOL - 0.01
    assert not breakers.allows(1)
    assert 0 < breakers.wait(1) <= 0.02
    clock.now += 0.02
    assert breakers.states() == {(1, ""): State.HALF_OPEN}
    assert breakers.allows(1)
    assert not breakers.allows(1)
    breakers.succeeded(1)
    assert breakers.allows(1) and breakers.allows(1) and breakers.wait(1) == 0


def test_a_probe_that_fails_doubles_the_time(breakers, clock):
    """Up to five minutes."""
    fail(breakers)
    times = [open_for(breakers, clock)]
    for _ in range(9):
        assert breakers.allows(1)
        breakers.failed(1)
        times.append(open_for(breakers, clock))
    assert times[:4] == [COOL, 2 * COOL, 4 * COOL, 8 * COOL] and times[-1] == COOLEST == max(times)


def test_trouble_that_comes_back_at_once_goes_on_where_it_was(breakers, clock):
    """One probe that went well is no recovery; a quiet time is."""
    fail(breakers)
    clock.now += COOL
    assert breakers.allows(1)
    breakers.succeeded(1)
    fail(breakers)
    assert open_for(breakers, clock) == 2 * COOL
    assert breakers.allows(1)
    breakers.succeeded(1)
    clock.now += 2 * COOL + 1
    fail(breakers)
    assert open_for(breakers, clock) == COOL


def test_a_probe_of_which_nothing_is_heard_is_given_up(breakers, clock):
    """Or let go of, when its caller left: then the next one probes at once."""
    fail(breakers)
    clock.now += COOL
    assert breakers.allows(1) and not breakers.allows(1)
    assert breakers.wait(1) == PROBING
    breakers.let_go(1)
    assert breakers.allows(1) and not breakers.allows(1)
    clock.now += PROBING
    assert breakers.allows(1)


def test_calls_from_before_it_opened_change_nothing(breakers, clock):
    """Many were under way; that they fail too does not prolong it, that one succeeds does not end it."""
    fail(breakers)
    clock.now += 2
    fail(breakers, 50)
    breakers.succeeded(1)
    assert breakers.states() == {(1, ""): State.OPEN}
    assert open_for(breakers, clock) == COOL - 2


def test_trouble_of_a_model_leaves_the_others_alone(breakers):
    """Trouble of the key does not."""
    fail(breakers, IN_A_ROW, 1, "opus")
    assert not breakers.allows(1, "opus") and breakers.allows(1, "haiku") and breakers.allows(1)
    fail(breakers)
    assert not breakers.allows(1, "haiku") and not breakers.allows(1, "sonnet") and not breakers.allows(1)
    assert breakers.wait(1, "opus") > 0


def test_a_model_that_is_refused_shows_that_its_provider_answers(breakers, clock):
    """So a probe that meets a busy model closes the key's circuit, not the model's."""
    fail(breakers, IN_A_ROW - 1)
    breakers.failed(1, "opus")
    breakers.failed(1)
    assert breakers.allows(1)
    fail(breakers)
    clock.now += COOL
    assert breakers.allows(1, "opus")
    breakers.failed(1, "opus")
    assert breakers.allows(1, "haiku") and breakers.allows(1, "haiku")


def test_a_probe_of_both_takes_neither_in_vain(breakers, clock):
    """A call that one circuit holds back does not use up the other's probe; trouble of the key frees the model's."""
    fail(breakers, IN_A_ROW, 1, "opus")
    clock.now += COOL / 2
    fail(breakers)
    clock.now += COOL / 2
    assert not breakers.allows(1, "opus")  # the key's is open, the model's half-open
    clock.now += COOL / 2
    assert breakers.allows(1, "opus")
    breakers.failed(1)
    clock.now += 2 * COOL
    assert breakers.allows(1, "opus")


def test_healthy_providers_leave_nothing_behind(breakers, clock):
    """And those that recovered are forgotten."""
    for number in range(10_000):
        assert breakers.allows(number)
        breakers.succeeded(number, "m")
    assert breakers.states() == {}
    fail(breakers)
    clock.now += COOL
    assert breakers.allows(1)
    breakers.succeeded(1)
    clock.now += WINDOW + COOL
    breakers.succeeded(1)
    assert breakers.states() == {}


def test_circuits_have_an_end(breakers, monkeypatch):
    """Whatever models callers think of."""
    monkeypatch.setattr(breaker, "CIRCUITS", 100)
    for number in range(1000):
        breakers.failed(1, f"model-{number}")
    assert len(breakers.states()) == 100


@given(
    st.lists(
        st.tuples(st.sampled_from(["allows", "succeeded", "failed", "key_failed", "let_go"]), st.floats(0, 30)),
        max_size=150,
    )
)
@settings(max_examples=150, deadline=None)
def test_whatever_happens_a_call_is_allowed_again_in_time(steps):
    """No sequence closes somebody out for good, `wait` says when, and half-open lets one through."""
    clock = Clock()
    breakers = Breakers(clock)
    for step, seconds in steps:
        clock.now += seconds
        if step == "key_failed":
            breakers.failed(1)
        elif step == "allows":
            wait = breakers.wait(1, "m")
            assert breakers.allows(1, "m") == (wait == 0)
            if State.HALF_OPEN in breakers.states().values() and wait == 0:
                assert not breakers.allows(1, "m")
        else:
            getattr(breakers, step)(1, "m")
    wait = breakers.wait(1, "m")
    assert wait <= COOLEST
    clock.now += wait
    assert breakers.allows(1, "m")


# --- retrying


@pytest.mark.parametrize(
    ("status", "moves", "model"),
    [
        (None, True, False),
        (400, False, False),
        (401, False, False),
        (402, False, False),
        (403, False, False),
        (404, False, False),
        (408, True, True),
        (409, True, True),
        (413, False, False),
        (422, False, False),
        (429, True, True),
        (499, False, False),
        (500, True, True),
        (502, True, False),
        (503, True, True),
        (504, True, False),
        (529, True, True),
        (599, True, False),
        (200, False, False),
    ],
)
def test_what_moves_on(status, moves, model):
    """The request's own faults do not; some trouble is one model's."""
    assert (moves_on(status), of_model(status)) == (moves, model)


def tried(targets, *given, seed=0):
    """The targets and waits, in order, where each attempt fails as given; the last of them for all that follow."""
    failures, steps = [], []
    rng = random.Random(seed)
    while (step := following(targets, failures, rng)) is not None:
        steps.append(step)
        how = given[min(len(failures), len(given) - 1)] if given else {}
        failures.append(Failure(step.index, **how))
    return steps


@pytest.mark.parametrize(
    ("targets", "given", "indexes"),
    [
        (0, [{}], []),
        (1, [{}], [0, 0, 0]),
        (2, [{"status": 500}], [0, 1, 0]),
        (3, [{"status": 429}], [0, 1, 2]),
        (5, [{}], [0, 1, 2, 3, 4]),
        (50, [{}], list(range(MOST))),
        (2, [{"status": 400}], [0]),
        (3, [{"status": 529}, {"status": 401}], [0, 1]),
        (1, [{"timed_out": True}], [0]),
        (2, [{"timed_out": True}, {"status": 503}], [0, 1, 1]),
        (1, [{"status": 429, "stay_away": LONGEST + 1}], [0]),
        (2, [{"status": 429, "stay_away": 60}, {"status": 500}], [0, 1, 1]),
        (2, [{"skipped": True}], [0, 1]),
        (2, [{"skipped": True}, {"status": 500}], [0, 1, 1, 1]),
        (3, [{"skipped": True}, {"skipped": True}, {"status": 500}], [0, 1, 2, 2, 2]),
        (12, [{"skipped": True}], list(range(12))),
    ],
)
def test_the_order_of_attempts(targets, given, indexes):
    """Every target once, then again those that may do better, until there were enough."""
    assert [step.index for step in tried(targets, *given)] == indexes


def test_other_targets_are_tried_at_once_and_the_same_ones_after_a_wait():
    """With full jitter: anything from nothing to a bound that doubles."""
    first, second, third = zip(*(tried(1, {}, seed=seed) for seed in range(400)), strict=True)
    assert {step.wait for step in first} == {0}
    assert 0 < min(step.wait for step in second) < 0.02 and 0.48 < max(step.wait for step in second) <= 0.5
    assert 0 < min(step.wait for step in third) < 0.04 and 0.96 < max(step.wait for step in third) <= 1.0
    assert [step.wait for step in tried(4, {})] == [0] * 4


def test_what_a_provider_says_to_wait_is_waited():
    """And a little more, so that not all come back at once."""
    waits = [step.wait for seed in range(50) for step in tried(1, {"status": 429, "stay_away": 3.0}, seed=seed)[1:]]
    assert min(waits) > 3.0 and max(waits) <= 3.5 and len(set(waits)) > 50


@given(
    st.integers(0, 14),
    st.lists(
        st.fixed_dictionaries(
            {
                "status": st.sampled_from([None, 400, 404, 408, 429, 500, 529]),
                "stay_away": st.none() | st.floats(0, 100),
                "timed_out": st.booleans(),
                "skipped": st.booleans(),
            }
        ),
        min_size=1,
    ),
    st.integers(0, 9),
)
@settings(max_examples=300, deadline=None)
def test_attempts_always_end(targets, given_, seed):
    """After so many, with bounded waits, and none after an error of the caller's own."""
    steps = tried(targets, *given_, seed=seed)
    made = [given_[min(number, len(given_) - 1)] for number in range(len(steps))]
    assert sum(not one["skipped"] for one in made) <= min(max(LEAST, targets), MOST)
    assert all(0 <= step.wait <= LONGEST + 0.5 for step in steps)
    assert all(one["skipped"] or moves_on(one["status"]) for one in made[:-1])
    assert [step.index for step in steps[:targets]] == list(range(min(targets, len(steps))))


AT = datetime(2026, 3, 14, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0"}, 0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after": "Sat, 14 Mar 2026 12:00:30 GMT"}, 30),
        ({"retry-after": "Sat, 14 Mar 2026 11:00:00 GMT"}, 0),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "Sat, 99 Mar 99999 12:00:30 GMT"}, None),
        ({"retry-after-ms": "x", "retry-after": "2"}, 2),
        ({"retry-after": "9" * 400}, None),
    ],
)
def test_what_retry_after_says(headers, seconds):
    """Seconds, a date, or OpenAI's milliseconds; nonsense says nothing."""
    assert stay_away(headers, AT) == seconds
