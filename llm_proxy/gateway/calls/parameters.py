"""An alias' parameters laid over a request. Leaves out which ones an alias may have (`manage.aliases`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

# One wish by the names that APIs have for it. What it is called in each comes first.
_LIMITS: Final[Mapping[str, tuple[str, ...]]] = {
    "chat": ("max_completion_tokens", "max_tokens", "max_output_tokens"),
    "completions": ("max_tokens", "max_completion_tokens", "max_output_tokens"),
    "responses": ("max_output_tokens", "max_completion_tokens", "max_tokens"),
    "anthropic": ("max_tokens", "max_completion_tokens", "max_output_tokens"),
}


def laid_over(api: str, body: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The request in `api` with these in the place of its own; one that is None goes.

    Limits of tokens and texts to stop at are said by the caller's API's own names.
    """
    laid = dict(body)
    limits = _LIMITS.get(api, ())
    for given, value in parameters.items():
        name = given
        if given in limits:
            name = given if api == "chat" and given == "max_tokens" else limits[0]  # older hosts know no other
            for other in limits:
                laid.pop(other, None)
        elif given == "stop" and api == "anthropic":
            name, value = "stop_sequences", [value] if isinstance(value, str) else value
        if value is None:
            laid.pop(name, None)
        else:
            laid[name] = value
    return laid
