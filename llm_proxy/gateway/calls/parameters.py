"""An alias' parameters laid over a request. Leaves out which ones an alias may have (`manage.aliases`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

# One limit by the names that APIs have for it; what each calls it comes first.
_LIMITS: Final[Mapping[str, tuple[str, ...]]] = {
    "chat": ("max_completion_tokens", "max_tokens", "max_output_tokens"),
    "completions": ("max_tokens", "max_completion_tokens", "max_output_tokens"),
    "responses": ("max_output_tokens", "max_completion_tokens", "max_tokens"),
    "anthropic": ("max_tokens", "max_completion_tokens", "max_output_tokens"),
}
# What parameters go by the names of chat completions are in other APIs: `a.b` is the field b of a; "" has no place.
# What is not here goes by its own name.
_NONE: Final = dict.fromkeys(("seed", "frequency_penalty", "presence_penalty", "logprobs", "response_format"), "")
_CALLED: Final[Mapping[str, Mapping[str, str]]] = {
    "responses": {
        **_NONE,
        "stop": "",
        "top_k": "",
        "thinking": "",
        "reasoning_effort": "reasoning.effort",
        "verbosity": "text.verbosity",
    },
    "anthropic": {
        **_NONE,
        "stop": "stop_sequences",
        "reasoning": "",
        "reasoning_effort": "output_config.effort",
        "verbosity": "",
        "parallel_tool_calls": "",
        "tool_choice": "",
        "user": "metadata.user_id",
    },
}


def laid_over(api: str, body: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The request in `api` with these in the place of its own; one that is None goes."""
    laid = dict(body)
    limits = _LIMITS.get(api, ())
    called = _CALLED.get(api, {})
    for given, value in parameters.items():
        name = called.get(given, given)
        if given in limits:
            name = given if api == "chat" and given == "max_tokens" else limits[0]  # older hosts know no other
            for other in limits:
                laid.pop(other, None)
        elif name == "stop_sequences" and isinstance(value, str):
            value = [value]
        outer, _, inner = name.partition(".")
        if inner:
            held = laid.get(outer)
            laid[outer] = _with(held if isinstance(held, dict) else {}, inner, value)
        elif outer:
            laid = _with(laid, outer, value)
    return laid


def _with(fields: Mapping[str, Any], name: str, value: Any) -> dict[str, Any]:
    rest = {key: one for key, one in fields.items() if key != name}
    return rest if value is None else rest | {name: value}
