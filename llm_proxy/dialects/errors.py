"""A provider's error in the shapes that OpenAI, Google, Ollama and their imitators give it."""

from __future__ import annotations

from typing import Any

from llm_proxy.dialects.reading import error_of, mapping, sequence, text, written

_LONGEST = 10_000  # characters; some providers repeat the whole request


def provider_error(document: Any, status: int | None = None) -> tuple[str, str]:
    """An error's own type and words, both "" where `document` tells of none.

    With a failing `status` the document itself is the error where it has no field `error`.
    """
    fields = mapping(next(iter(sequence(document)), document))  # Gemini's streams put it into an array
    error = fields.get("error") or (fields if status is not None and status >= 400 else None)
    if not error:
        return "", ""
    kind, words = error_of(error)
    told = mapping(error)
    code = told.get("code")
    words = words or text(told.get("detail")) or written(error)
    return kind or (str(code) if type(code) is int else ""), words[:_LONGEST]
