"""A name becomes the places where it may be served, in the order they are tried."""

import random
import time
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_proxy.gateway.catalog import Catalog, chooses
from llm_proxy.gateway.facts import Alias, Provider, ProviderKey, Step
from llm_proxy.gateway.planning import DEEP, MOST, plan
from llm_proxy.gateway.refusals import Refusal
from llm_proxy.gateway.tokens import Prompt

SHORT = Prompt("chat", {"messages": [{"role": "user", "content": "hi"}]})


def prompt(words):
    return Prompt("chat", {"messages": [{"role": "user", "content": "word " * words}]})


def key(id, provider=Provider.OPENAI, **more):
    return ProviderKey(id, 1, provider, more.pop("label", ""), "sealed", **more)


def alias(id, name, model="m", provider_key_id=1, **more):
    return Alias(id, 1, name, model, provider_key_id, **more)


THREE = (key(1), key(2), key(3))


def catalog(*aliases, keys=THREE, models=None):
    return Catalog(
        1,
        aliases={one.alias: one for one in aliases},
        keys={one.id: one for one in keys},
        models={id: frozenset(ids) for id, ids in (models or {}).items()},
        by_id={one.id: one for one in aliases},
    )


def places(known, name, asked=SHORT, seed=0, raw=True):
    return [(one.key.id, one.model) for one in plan(known, name, asked, random.Random(seed), raw=raw)]


def refused(known, name, raw=True):
    with pytest.raises(Refusal) as caught:
        places(known, name, raw=raw)
    assert (caught.value.status, caught.value.code, caught.value.param) == (404, "model_not_found", "model")
    return caught.value.message


def test_an_alias_leads_to_its_target_then_its_chain_then_its_fallback():
    """The fallback with its own target and chain, and its own parameters; all under the name that was asked for."""
    known = catalog(
        alias(1, "a", "a0", chain=(Step(2, "a1", 1), Step(3, "a2", 2)), fallback_alias_id=2, parameters={"top_p": 1}),
        alias(2, "b", "b0", 2, chain=(Step(1, "b1", 1),), fallback_alias_id=3),
        alias(3, "c", "c0", 3),
    )
    assert places(known, "a") == [(1, "a0"), (2, "a1"), (3, "a2"), (2, "b0"), (1, "b1"), (3, "c0")]
    targets = plan(known, "a", SHORT, random.Random(0), raw=False)
    assert {one.alias for one in targets} == {"a"}
    assert [dict(one.parameters) for one in targets] == [{"top_p": 1}] * 3 + [{}] * 3


def test_only_plans_that_nothing_changes_are_remembered():
    """One catalog, asked again and again: prompts and chance still choose, also where only a fallback has the choice."""
    known = catalog(
        alias(1, "plain", "p0"),
        alias(2, "sized", "target", use_light_model=True, light_model="light", light_model_threshold=100),
        alias(3, "shared", "s0", weight=1, chain=(Step(2, "s1", 0, 1),)),
        alias(4, "behind", "b0", fallback_alias_id=2),
    )
    assert plan(known, "plain", SHORT, random.Random(0), raw=True) is plan(
        known, "plain", prompt(500), random.Random(1), raw=True
    )
    assert [places(known, "sized", asked) for asked in (SHORT, prompt(500), SHORT)] == [
        [(1, "light")],
        [(1, "target")],
        [(1, "light")],
    ]
    assert len({tuple(places(known, "shared", seed=seed)) for seed in range(50)}) == 2
    assert places(known, "behind") == [(1, "b0"), (1, "light")]
    assert places(known, "behind", prompt(500)) == [(1, "b0"), (1, "target")]


@pytest.mark.parametrize(
    ("words", "model"),
    [(1, "light"), (80, "light"), (120, "target"), (900, "target"), (1100, "long"), (50_000, "long")],
)
def test_the_length_of_the_prompt_chooses_the_model(words, model):
    """Light below one threshold, long from another on; at the same key."""
    known = catalog(
        alias(
            1,
            "a",
            "target",
            use_light_model=True,
            light_model="light",
            long_model="long",
            long_model_threshold=1000,
        )
    )
    assert places(known, "a", prompt(words)) == [(1, model)]


def test_thresholds_are_the_first_number_that_does_not_count_as_light_or_does_as_long():
    """Below is light, equal is not; from on is long."""
    asked = prompt(200)
    tokens = asked.tokens("gpt-4o")
    light = alias(1, "a", "gpt-4o", use_light_model=True, light_model="light")
    long = alias(1, "a", "gpt-4o", long_model="long")
    for threshold, model in ((tokens, "gpt-4o"), (tokens + 1, "light")):
        assert places(catalog(replace(light, light_model_threshold=threshold)), "a", asked) == [(1, model)]
    for threshold, model in ((tokens, "long"), (tokens + 1, "gpt-4o")):
        assert places(catalog(replace(long, long_model_threshold=threshold)), "a", asked) == [(1, model)]


def test_an_alias_that_does_not_choose_counts_nothing():
    """A prompt that cannot be counted is planned for all the same."""
    spoiled = object()
    for one in (
        alias(1, "a"),
        alias(1, "a", light_model="light"),
        alias(1, "a", use_light_model=True),
        alias(1, "a", long_model="long"),
    ):
        assert not chooses(one)
        assert places(catalog(one), "a", spoiled) == [(1, "m")]


def test_weights_share_calls_out():
    """Among steps of one rank, the target one of them; whoever is not chosen comes next."""
    known = catalog(alias(1, "a", "x", weight=6, chain=(Step(2, "y", 0, 3), Step(3, "z", 0, 1), Step(1, "last", 1))))
    orders = Counter(tuple(model for _, model in places(known, "a", seed=seed)) for seed in range(2000))
    assert {order[-1] for order in orders} == {"last"} and len(orders) == 6
    first = Counter()
    for order, times in orders.items():
        first[order[0]] += times
    assert 1100 < first["x"] < 1300 and 500 < first["y"] < 700 and 140 < first["z"] < 260


def test_weight_0_is_a_reserve():
    """It serves where all others of its rank have failed, before the next rank."""
    known = catalog(alias(1, "a", "x", weight=0, chain=(Step(2, "y", 0, 1), Step(3, "z", 0, 5), Step(1, "last", 1))))
    for seed in range(50):
        order = [model for _, model in places(known, "a", seed=seed)]
        assert order[2:] == ["x", "last"]


def test_no_place_comes_twice():
    """The first mention counts; the same model at another key is another place."""
    known = catalog(
        alias(1, "a", "m", chain=(Step(2, "m", 1), Step(1, "m", 2)), fallback_alias_id=2), alias(2, "b", "m", 2)
    )
    assert places(known, "a") == [(1, "m"), (2, "m")]


def test_keys_that_are_gone_are_passed_over():
    """An alias whose keys all are is a miss that says so."""
    known = catalog(alias(1, "a", "m", 9, chain=(Step(2, "n", 1),)), alias(2, "b", "m", 9), keys=(key(2),))
    assert places(known, "a") == [(2, "n")]
    assert "'b' leads to no provider key" in refused(known, "b")


def test_a_loop_in_the_store_ends():
    """It was refused when it was made; an import or another hand may have made it."""
    known = catalog(alias(1, "a", "x", fallback_alias_id=2), alias(2, "b", "y", fallback_alias_id=1))
    assert places(known, "a") == [(1, "x"), (1, "y")]
    assert places(catalog(alias(1, "a", "x", fallback_alias_id=1)), "a") == [(1, "x")]


def test_a_plan_has_an_end():
    """However long chains and rows of fallbacks are."""
    row = [alias(id, f"a{id}", f"m{id}", fallback_alias_id=id + 1) for id in range(1, 40)]
    assert len(places(catalog(*row), "a1")) == DEEP
    wide = tuple(Step(2, f"m{number}", number + 1) for number in range(60))
    assert len(places(catalog(alias(1, "a", chain=wide)), "a")) == MOST


@st.composite
def catalogs(draw):
    ids = st.integers(1, 6)
    steps = st.builds(Step, ids, st.sampled_from("xyz"), st.integers(0, 3), st.integers(0, 3))
    aliases = [
        alias(
            id,
            f"a{id}",
            draw(st.sampled_from("xyz")),
            draw(ids),
            fallback_alias_id=draw(st.none() | ids),
            use_light_model=draw(st.booleans()),
            light_model=draw(st.sampled_from(("", "light"))),
            weight=draw(st.integers(0, 3)),
            chain=tuple(draw(st.lists(steps, max_size=5))),
        )
        for id in range(1, 6)
    ]
    return catalog(*aliases, keys=[key(id) for id in draw(st.lists(ids, unique=True))])


@given(known=catalogs(), seed=st.integers(0, 100))
@settings(max_examples=200, deadline=None)
def test_any_catalog_gives_a_plan_or_a_miss(known, seed):
    """Each place once, at keys that are there, those of the alias itself by rank before those of its fallback."""
    try:
        targets = plan(known, "a1", SHORT, random.Random(seed), raw=True)
    except Refusal as refusal:
        assert refusal.status == 404
        return
    found = [(one.key.id, one.model) for one in targets]
    assert len(set(found)) == len(found) <= MOST and {id for id, _ in found} <= known.keys.keys()
    first = known.aliases["a1"]
    ranks = {(step.provider_key_id, step.model): step.rank for step in reversed(first.chain)}
    own = [ranks[place] for place in found if place in ranks][: len({*ranks} & {*found})]
    assert targets == plan(known, "a1", SHORT, random.Random(seed), raw=True)
    if first.fallback_alias_id is None and not chooses(first):
        ranks[first.provider_key_id, first.target_model] = 0
        own = [min(rank for s, rank in _steps(first) if s == place) for place in found]
        assert own == sorted(own)


def _steps(one):
    yield (one.provider_key_id, one.target_model), 0
    yield from (((step.provider_key_id, step.model), step.rank) for step in one.chain)


# --- raw names

EVERY = (
    key(1, Provider.OPENAI),
    key(2, Provider.ANTHROPIC),
    key(3, Provider.GEMINI),
    key(4, Provider.BEDROCK, region="us-east-1"),
    key(5, Provider.COMPATIBLE, label="Groq", base_url="https://api.groq.com/openai/v1"),
    key(6, Provider.COMPATIBLE, label="local", base_url="http://192.168.1.5:8000/v1"),
)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("gpt-4o", (1, "gpt-4o")),
        ("gpt-5.2-pro", (1, "gpt-5.2-pro")),
        ("o3", (1, "o3")),
        ("o4-mini", (1, "o4-mini")),
        ("chatgpt-4o-latest", (1, "chatgpt-4o-latest")),
        ("text-embedding-3-small", (1, "text-embedding-3-small")),
        ("claude-opus-4-5", (2, "claude-opus-4-5")),
        ("gemini-3-pro", (3, "gemini-3-pro")),
        ("models/gemini-3-pro", (3, "models/gemini-3-pro")),
        ("anthropic.claude-3-haiku-20240307-v1:0", (4, "anthropic.claude-3-haiku-20240307-v1:0")),
        ("us.anthropic.claude-sonnet-4-5-v1:0", (4, "us.anthropic.claude-sonnet-4-5-v1:0")),
        ("global.anthropic.claude-x", (4, "global.anthropic.claude-x")),
        ("amazon.nova-pro-v1:0", (4, "amazon.nova-pro-v1:0")),
        (
            "arn:aws:bedrock:us-east-1:123456789012:inference-profile/x",
            (4, "arn:aws:bedrock:us-east-1:123456789012:inference-profile/x"),
        ),
        ("openai/gpt-4o", (1, "gpt-4o")),
        ("OpenAI/o3", (1, "o3")),
        ("anthropic/claude-sonnet-4-5", (2, "claude-sonnet-4-5")),
        ("claude/claude-sonnet-4-5", (2, "claude-sonnet-4-5")),
        ("google/gemini-3-pro", (3, "gemini-3-pro")),
        ("bedrock/us.anthropic.claude-x", (4, "us.anthropic.claude-x")),
        ("openai-compatible/llama", (5, "llama")),
        ("groq/llama-4/scout", (5, "llama-4/scout")),
        ("local/qwen3", (6, "qwen3")),
        ("known-to-5", (5, "known-to-5")),
        ("openai/known-to-6", (6, "openai/known-to-6")),
    ],
)
def test_raw_names_find_their_provider(name, place):
    """By the lists of models that keys have, by a prefix, by their shape: in this order."""
    known = catalog(keys=EVERY, models={5: ["known-to-5"], 6: ["openai/known-to-6"]})
    assert places(known, name)[0] == place


@pytest.mark.parametrize("name", ["nonsense", "ollama", "o", "oops-3", "/x", "openai/", "", "unknown/gpt-4o", "a.b"])
def test_names_of_no_shape_are_missed(name):
    """Nothing is guessed."""
    assert "no model or alias" in refused(catalog(keys=EVERY), name)


def test_ones_own_keys_come_before_shared_ones_and_no_other_provider_after_them():
    """A second key of the same provider stands by; another provider serves by an alias only."""
    keys = (key(7), key(2, shared=True), key(3, Provider.COMPATIBLE, base_url="https://x.example"))
    known = catalog(keys=keys, models={7: ["gpt-4o"], 2: ["gpt-4o"], 3: ["gpt-4o"]})
    for name in ("gpt-4o", "openai/gpt-4o", "gpt-9"):
        assert [id for id, _ in places(known, name)] == [7, 2]
    assert places(replace(known, models={3: frozenset(["gpt-4o"])}), "gpt-4o") == [(3, "gpt-4o")]


def test_an_alias_goes_before_a_model_of_its_name():
    """So a team can send a well-known name elsewhere."""
    known = catalog(alias(1, "gpt-4o", "claude-x", 2), keys=EVERY)
    assert places(known, "gpt-4o") == [(2, "claude-x")]


def test_raw_names_are_missed_where_policy_forbids_them():
    """And the miss says so where the model is known."""
    known = catalog(alias(1, "fast"), keys=EVERY, models={1: ["gpt-4o"]})
    assert "by aliases only" in refused(known, "gpt-4o", raw=False)
    assert "aliases only" not in refused(known, "gpt-5", raw=False)
    assert places(known, "fast", raw=False) == [(1, "m")]


def test_a_miss_names_what_is_nearest():
    """Aliases, and models where they may be called; never one that the caller cannot see."""
    known = catalog(alias(1, "sonnet-fast"), alias(2, "cheap"), models={1: ["gpt-4o-mini", "o3"]})
    assert refused(known, "sonet-fast").endswith("; the nearest: sonnet-fast")
    assert "gpt-4o-mini" in refused(replace(known, keys={}), "gpt-4o-mni")
    assert "gpt-4o-mini" not in refused(known, "gpt_4o_mni", raw=False)
    assert "nearest" not in refused(known, "quite another thing")


def test_a_miss_is_short_and_quick():
    """However long the name is and however many models there are."""
    many = catalog(models={1: [f"vendor/model-{number}" for number in range(20_000)]})
    name = "vendor/model-" + "9" * 10_000_000
    started = time.perf_counter()
    assert len(refused(many, name)) < 500
    assert time.perf_counter() - started < 5
