"""Code with colours: classes only, no styles, from Pygments. What is long stays plain. Pure.

Only a few kinds of tokens have a colour, so only they become elements.
"""

from __future__ import annotations

import re
from functools import lru_cache
from html import escape
from typing import Any

from markupsafe import Markup
from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name, get_lexer_for_filename
from pygments.token import Comment, Keyword, Name, Number, String
from pygments.util import ClassNotFound

LONGEST = 200_000  # characters

# Classes in style.css.
_CLASSES = (
    (Comment, "c"),
    (Keyword, "k"),
    (String, "s"),
    (Number, "mi"),
    (Name.Function, "f"),
    (Name.Class, "f"),
    (Name.Tag, "f"),
    (Name.Decorator, "f"),
    (Name.Builtin, "f"),
)


# Control characters as their pictures (U+2400), and what would turn the direction of the text behind it as its number.
_VISIBLE: dict[int, int | str] = {sign: 0x2400 + sign for sign in range(32) if sign not in (9, 10, 13)}
_VISIBLE |= {sign: f"[U+{sign:04X}]" for sign in (0x7F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def visible(text: str) -> str:
    """Text in which nothing is hidden: what has no sign of its own, or would move others, is spelled out."""
    return text.translate(_VISIBLE) if _HIDDEN.search(text) else text


_HIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069]")


def highlighted(code: str, language: str = "", path: str = "") -> Markup:
    """`code` escaped, with colours where the language (by name, else by the path's ending) is known."""
    code = visible(code)
    lexer = _lexer(language, path) if len(code) <= LONGEST else None
    if lexer is None or _is_odd(code):
        return Markup(escape(code, quote=False))
    return Markup(_coloured(code, lexer))


def _is_odd(code: str) -> bool:
    """Very long lines are no code that anybody reads, and some lexers take their time over them."""
    return any(len(line) > 4000 for line in code.split("\n"))


@lru_cache(64)
def _coloured(code: str, lexer: Lexer) -> str:
    told: list[str] = []
    run: list[str] = []
    open_ = ""
    for kind, text in lexer.get_tokens(code):
        name = _class(kind)
        if name != open_ and run:
            told.append(_element(open_, "".join(run)))
            run = []
        open_ = name
        run.append(text)
    told.append(_element(open_, "".join(run)))
    return "".join(told).rstrip("\n") if not code.endswith("\n") else "".join(told)


def _element(name: str, text: str) -> str:
    return f'<span class="{name}">{escape(text, quote=False)}</span>' if name else escape(text, quote=False)


@lru_cache(256)
def _class(kind: Any) -> str:
    return next((name for within, name in _CLASSES if kind in within), "")


@lru_cache(128)
def _lexer(language: str, path: str) -> Lexer | None:
    try:
        if language:
            return get_lexer_by_name(language[:40].lower(), stripnl=False, ensurenl=False)
        if path:
            return get_lexer_for_filename(path.rpartition("/")[2][-120:], stripnl=False, ensurenl=False)
    except (ClassNotFound, ValueError):
        pass
    return None
