"""Texts without what names a person: secrets, e-mail addresses, and the owners of home folders.

Leaves out what a secret looks like (`records.secrets`). What a person writes about themselves in words stays.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from llm_proxy.records.redaction import Redactor

_HOME = re.compile(r"(?P<before>/(?:home|Users)/|[A-Za-z]:(?:\\+|/)Users(?:\\+|/))(?P<name>[^\s/\\\"'<>:|`),;]+)")
_MAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,8}(?![\w-])")


def cleaner(own: Iterable[tuple[str, str]] = ()) -> Callable[[str], str]:
    """What takes them out of a text, plain or JSON; `own` are patterns of the user's, as the settings have them."""
    redactor = Redactor(own, lambda kind, secret: 0)

    def clean(text: str) -> str:
        if not text:
            return text
        text = redactor.text(text)
        if "@" in text:
            text = _MAIL.sub("<EMAIL>", text)
        return _HOME.sub(lambda match: f"{match['before']}user", text)

    return clean
