"""Code with colours: classes only, no styles, from Pygments. What is long stays plain. Pure.

Only a few kinds of tokens have a colour, so only they become elements.
"""

from __future__ import annotations

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


def highlighted(code: str, language: str = "", path: str = "") -> Markup:
    """`code` escaped, with colours where the language (by name, else by the path's ending) is known."""
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
