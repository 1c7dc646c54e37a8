"""Which project a call is for, as its caller says: by our header, by OpenAI's, or in the body's `metadata`. Pure.

It tells usage apart and gives no right to anything, so what is no name is passed over instead of refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from llm_proxy.dialects.reading import read

LONGEST: Final = 255  # characters that are kept
_HEADERS: Final = ("x-llm-proxy-project", "openai-project")
_KEY: Final = b"project"


class _Metadata(msgspec.Struct):
    project: str = ""


_METADATA = msgspec.json.Decoder(_Metadata)


def of_headers(headers: Mapping[str, str]) -> str:
    """Empty where none names it; names of fields compare without case."""
    for name in _HEADERS:
        if (value := headers.get(name)) and (project := cleaned(value)):
            return project
    return ""


def of_metadata(metadata: bytes) -> str:
    """Of a body's field, as JSON; "" where there is none."""
    if _KEY not in metadata:
        return ""
    found = read(_METADATA, metadata)
    return "" if found is None else cleaned(found.project)


def cleaned(text: str) -> str:
    """In one line, without what is no character, and not too long."""
    whole = text.encode("utf-8", "replace").decode()
    plain = "".join(one if one.isprintable() else " " for one in whole[: 2 * LONGEST])
    return " ".join(plain.split())[:LONGEST]
