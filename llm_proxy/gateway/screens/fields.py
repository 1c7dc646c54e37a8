"""Forms as browsers send them, read into the managing API's bodies. Pure.

Only what a text cannot say by itself is judged here: whether it is a number, whether it is nothing. Every other rule is
the API's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import msgspec

from llm_proxy.gateway.refusals import Refusal, not_found

Reads = Callable[[str, str], Any]  # (its name for people, what was written) -> what the API takes

_LONGEST: Final = 15  # digits


class Form(Protocol):
    """`page.Form`, as far as it is needed."""

    def get(self, name: str, default: str = "") -> str: ...

    def all(self, name: str) -> list[str]: ...


def text(name: str, written: str) -> str:
    return written.strip()


def secret(name: str, written: str) -> str:
    """As it was pasted, but for the line's end that came along."""
    return written.strip("\r\n\t ")


def perhaps(name: str, written: str) -> str | None:
    """Nothing is null."""
    return written.strip() or None


def switch(name: str, written: str) -> bool:
    """A box that is not ticked is not sent."""
    return bool(written)


def number(name: str, written: str) -> int | None:
    """A whole one; nothing is null. Raises Refusal."""
    plain = written.strip().replace(",", "").replace("\N{NO-BREAK SPACE}", "")
    if not plain:
        return None
    if not plain.isascii() or not plain.isdigit() or len(plain) > _LONGEST:
        raise Refusal(400, "invalid_request", f"{name}: a whole number is wanted, not {written.strip()[:40]!r}")
    return int(plain)


def json_object(name: str, written: str) -> dict[str, Any]:
    """Nothing is an empty one. Raises Refusal."""
    if not written.strip():
        return {}
    try:
        return msgspec.json.decode(written, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeError):
        raise Refusal(400, "invalid_request", f'{name}: a JSON object is wanted, like {{"temperature": 0.2}}') from None


def dollars(name: str, written: str) -> float | None:
    """`20`, `$20`, `1,000.50`; nothing is null. Raises Refusal."""
    plain = written.strip().removeprefix("$").replace(",", "").strip()
    if not plain:
        return None
    whole, _, part = plain.partition(".")
    if not (whole + part).isascii() or not (whole + part).isdigit() or len(plain) > _LONGEST:
        words = f"{name}: an amount in US dollars is wanted, not {written.strip()[:40]!r}"
        raise Refusal(400, "invalid_request", words)
    return float(plain)


def identity(name: str, written: str) -> int:
    """An id in a path or a hidden field. Raises Refusal 404: what is no number is nobody's."""
    if not written.isascii() or not written.isdigit() or len(written) > _LONGEST:
        raise not_found(f"{name} {written[:40]!r}")
    return int(written)


def body(form: Form, fields: Mapping[str, tuple[str, Reads]]) -> dict[str, Any]:
    """What a form says in these `fields`, by the API's names. Raises Refusal, naming the field as people see it."""
    return {name: read(shown, form.get(name, "")) for name, (shown, read) in fields.items()}
