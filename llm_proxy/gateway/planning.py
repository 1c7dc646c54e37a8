"""From the name of a model, as a caller gave it, to where it may be served: targets in the order they are tried.

Pure: chance comes in, and the prompt's tokens are asked for only where an alias chooses by them. Leaves out trying
(`retrying`), and who has which aliases (`catalog`).
"""

from __future__ import annotations

import difflib
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from typing import Final

from llm_proxy.gateway.catalog import Catalog, chooses
from llm_proxy.gateway.facts import Alias, Provider, ProviderKey, Step, Target
from llm_proxy.gateway.refusals import Refusal
from llm_proxy.gateway.tokens import Prompt

MOST = 32  # targets of one plan
DEEP = 16  # aliases that fall back on one another
_NEAREST = 3  # names that a miss offers
_COMPARED = 2_000  # names that are looked at for it
_SHOWN = 100  # characters of a name in an error

# How providers' own names of models begin.
_SHAPES: Final = (
    (re.compile(r"gpt-|o\d(?:-|$)|chatgpt|codex-|text-embedding-|davinci|babbage"), Provider.OPENAI),
    (re.compile(r"claude-"), Provider.ANTHROPIC),
    (re.compile(r"(?:models/)?(?:gemini-|gemma-|text-embedding-00|embedding-00)"), Provider.GEMINI),
    (
        re.compile(
            r"(?:(?:us|eu|apac|jp|au|ca|us-gov|global)\.)?"
            r"(?:anthropic|amazon|meta|mistral|cohere|ai21|deepseek|stability|openai|qwen|writer|luma|twelvelabs)\."
            r"|arn:aws"
        ),
        Provider.BEDROCK,
    ),
)
_PREFIXES: Final = {**{str(one): one for one in Provider}, "claude": Provider.ANTHROPIC, "google": Provider.GEMINI}


def plan(catalog: Catalog, name: str, prompt: Prompt, rng: random.Random, *, raw: bool) -> tuple[Target, ...]:
    """Where a call for `name` is tried, best first, no place twice. An alias goes before a model of the same name.

    `raw`: whether models may be called by their providers' names. Raises Refusal 404 `model_not_found`.
    """
    known = catalog.planned.get(name)
    if known is not None:
        return known
    alias = catalog.aliases.get(name)
    if alias is not None:
        targets = tuple(islice(_distinct(_of_alias(catalog, alias, prompt, rng)), MOST))
        if not targets:
            raise _miss(f"the model alias {_shown(name)} leads to no provider key that you may use")
        if not any(one.chain or chooses(one) for one in _with_fallbacks(catalog, alias)):
            catalog.planned[name] = targets
        return targets
    keys, model = _of_raw(catalog, name) if raw else ((), "")
    if not keys:
        raise _unknown(catalog, name, raw)
    return tuple(Target(key, model) for key in keys[:MOST])


def _of_alias(catalog: Catalog, first: Alias, prompt: Prompt, rng: random.Random) -> Iterator[Target]:
    for alias in _with_fallbacks(catalog, first):
        steps = (Step(alias.provider_key_id, _model(alias, prompt), 0, alias.weight), *alias.chain)
        for step in _ordered(steps, rng):
            key = catalog.keys.get(step.provider_key_id)
            if key is not None:
                yield Target(key, step.model, first.alias, alias.parameters)


def _with_fallbacks(catalog: Catalog, alias: Alias) -> Iterator[Alias]:
    """It, and those it falls back on. Loops are refused where aliases are written; one that is there ends here."""
    seen: set[int] = set()
    left: Alias | None = alias
    while left is not None and left.id not in seen and len(seen) < DEEP:
        yield left
        seen.add(left.id)
        left = catalog.by_id.get(left.fallback_alias_id or 0)


def _model(alias: Alias, prompt: Prompt) -> str:
    target = alias.target_model
    if alias.use_light_model and alias.light_model and not prompt.reaches(target, alias.light_model_threshold):
        return alias.light_model
    if alias.long_model and alias.long_model_threshold and prompt.reaches(target, alias.long_model_threshold):
        return alias.long_model
    return target


def _ordered(steps: Sequence[Step], rng: random.Random) -> Iterator[Step]:
    """By rank; within one at random, by weight. Those of weight 0 come last of theirs, as they stand."""
    for _, group in groupby(sorted(steps, key=lambda step: step.rank), key=lambda step: step.rank):
        left = list(group)
        while len(left) > 1 and any(step.weight for step in left):
            (chosen,) = rng.choices(range(len(left)), [step.weight for step in left])
            yield left.pop(chosen)
        yield from left


def _distinct(targets: Iterable[Target]) -> Iterator[Target]:
    seen: set[tuple[int, str]] = set()
    for target in targets:
        place = (target.key.id, target.model)
        if place not in seen:
            seen.add(place)
            yield target


def _of_raw(catalog: Catalog, name: str) -> tuple[Sequence[ProviderKey], str]:
    """The keys that serve a model under that name, own ones first, and its name there.

    A call goes on to another key of the same provider, never to another provider by itself.
    """
    known = [key for id, key in catalog.keys.items() if name in catalog.models.get(id, ())]
    if known:
        return [key for key in known if (key.provider, key.base_url) == (known[0].provider, known[0].base_url)], name
    prefix, _, model = name.partition("/")
    if prefix and model:
        provider = _PREFIXES.get(prefix.lower())
        keys = [
            key
            for key in catalog.keys.values()
            if key.provider is provider or (provider is None and key.label.lower() == prefix.lower())
        ]
        if keys:
            return keys, model
    shape = next((provider for pattern, provider in _SHAPES if pattern.match(name)), None)
    return [key for key in catalog.keys.values() if key.provider is shape], name


def _unknown(catalog: Catalog, name: str, raw: bool) -> Refusal:
    words = f"there is no model alias {_shown(name)}"
    if raw:
        words = f"there is no model or alias {_shown(name)}, and no provider key of yours that would serve it"
    elif any(name in ids for ids in catalog.models.values()):
        words += ", and models are called by aliases only here"
    candidates: Iterable[str] = catalog.aliases
    if raw:
        candidates = (*catalog.aliases, *(id for ids in catalog.models.values() for id in sorted(ids)))
    near = difflib.get_close_matches(name[:_SHOWN], islice(candidates, _COMPARED), _NEAREST)
    if near:
        words += f"; the nearest: {', '.join(dict.fromkeys(near))}"
    return _miss(words)


def _miss(words: str) -> Refusal:
    return Refusal(404, "model_not_found", words, param="model")


def _shown(name: str) -> str:
    return repr(name if len(name) <= _SHOWN else name[: _SHOWN - 3] + "...")
