"""A provider's error in the shapes that OpenAI, Google, Ollama and their imitators give it."""

from __future__ import annotations

from typing import Any

from llm_proxy.dialects.reading import mapping, sequence, text, written

_LONGEST = 10_000  # characters; some providers repeat the whole request

_TYPES = ("type", "status", "code")  # the first that is there names the error


def error_of(value: Any, status: int | None = None) -> tuple[str, str]:
    """The provider's words and its name for the error; both "" where `value` is none.

    An answer with a failing `status` is an error even where it has no field `error`.
    """
    document = mapping(next(iter(sequence(value)), value))  # Gemini's streams put it into an array
    error = document.get("error") or (document if status is not None and status >= 400 else None)
    if not error:
        return "", ""
    told = mapping(error)
    said = text(error) or text(told.get("message")) or text(told.get("detail")) or written(error)
    names = (_name(told.get(field)) for field in _TYPES)
    return said[:_LONGEST], next((name for name in names if name), "")


def _name(value: Any) -> str:
    return str(value) if type(value) is int else text(value)
