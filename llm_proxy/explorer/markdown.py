"""Markdown of models and people as HTML that does nothing by itself.

No HTML passes through, links are made of nothing but Markdown's own links, images become cards with their address, and
what is rendered is cut down to a list of harmless elements once more. Leaves out mathematics: it stays as it was typed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from html import escape
from typing import Any
from urllib.parse import urlsplit

import nh3
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from markupsafe import Markup

from llm_proxy.explorer.highlight import highlighted, visible

LONGEST = 200_000  # characters; what is longer is not rendered
_ELEMENTS = (
    *("p", "br", "hr", "em", "strong", "s", "code", "pre", "blockquote", "ul", "ol", "li", "a", "span", "div"),
    *("table", "thead", "tbody", "tr", "th", "td"),
)
_ATTRIBUTES = {
    "a": {"href", "title"},
    "span": {"class"},
    "div": {"class", "tabindex", "role", "aria-label"},
    "pre": {"tabindex", "aria-label", "role"},
    "ol": {"start"},
    "p": {"class"},
    "td": {"class"},
    "th": {"class"},
}
_SCHEMES = {"http", "https", "mailto"}


class _Renderer(RendererHTML):
    """Headings of a message are none of the page's, code has colours, links say where they lead."""

    def heading_open(self, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
        return f'<p class="{"big" if tokens[at].tag in ("h1", "h2") else "mid"}">'

    def heading_close(self, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
        return "</p>"

    def fence(self, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
        words = tokens[at].info.split()
        return _code(tokens[at].content, words[0] if words else "")

    def code_block(self, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
        return _code(tokens[at].content, "")

    def image(self, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
        token = tokens[at]
        words = escape(token.content or "image")
        return (
            f'<span class="imgref">image: {words} <code>{escape(str(token.attrGet("src") or "")[:500])}</code></span>'
        )

    def link_close(self, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
        """The host behind the words, unless they say it themselves."""
        start = at
        while tokens[start].type != "link_open":
            start -= 1
        href = str(tokens[start].attrGet("href") or "")
        words = "".join(token.content for token in tokens[start:at])
        host = _host(href)
        where = f' <span class="host">{escape(host)}</span>' if host and host not in words else ""
        return f"</a>{where}"

    def table_open(self, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
        return '<div class="scroll" tabindex="0" role="group" aria-label="Table"><table>'

    def table_close(self, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
        return "</table></div>"

    def th_open(self, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
        return f"<th{_aligned(tokens[at])}>"

    def td_open(self, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
        return f"<td{_aligned(tokens[at])}>"


def _aligned(token: Token) -> str:
    return ' class="r"' if "right" in str(token.attrGet("style") or "") else ""


def _code(code: str, language: str) -> str:
    label = f"Code, {escape(language[:40])}" if language else "Code"
    return f'<pre tabindex="0" role="group" aria-label="{label}">{highlighted(code, language)}</pre>\n'


def _host(href: str) -> str:
    try:
        return urlsplit(href).netloc
    except ValueError:
        return ""


# Between these, signs are mathematics and no emphasis. A price is followed by a digit, or stands alone.
_FORMULA = re.compile(
    r"\$\$.+?\$\$|\$(?=\S)[^$\n]{1,400}?(?<=\S)\$(?!\d)|\\\(.{1,400}?\\\)|\\\[.{1,2000}?\\\]", re.DOTALL
)


def _formula(state: StateInline, silent: bool) -> bool:
    match = _FORMULA.match(state.src, state.pos, state.posMax)
    if match is None:
        return False
    if not silent:
        state.push("text", "", 0).content = match[0]
    state.pos = match.end()
    return True


_MARKDOWN = MarkdownIt("commonmark", {"html": False, "linkify": False}, renderer_cls=_Renderer)
_MARKDOWN.enable(["table", "strikethrough"])
_MARKDOWN.inline.ruler.before("escape", "formula", _formula)


def rendered(text: str, marked: Iterable[str] = ()) -> Markup:
    """`text` as HTML, with the words of `marked` in <mark>; a very long one as it is, in lines."""
    text = visible(text)
    if len(text) > LONGEST:
        return Markup('<div class="plain">{}</div>').format(mark(text, marked))
    html = _rendered(text)
    return Markup(_mark_html(html, marked) if marked else html)


@lru_cache(256)
def _rendered(text: str) -> str:
    try:
        html = _MARKDOWN.render(text)
    except (RecursionError, IndexError, ValueError):  # nested beyond all measure
        html = f"<p>{escape(text)}</p>"
    return nh3.clean(
        html,
        tags=set(_ELEMENTS),
        attributes=_ATTRIBUTES,
        url_schemes=_SCHEMES,
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
    )


# --- marks

_TAG = re.compile(r'(<[^<>"]*(?:"[^"]*"[^<>"]*)*>)')


def words_of(query: str) -> tuple[str, ...]:
    """The words and phrases of a search that are to be marked: filters and what is not wanted left out."""
    found = (match[1] or match[2] for match in re.finditer(r'(?<!\S)(?!-)(?:"([^"]+)"?|([^\s":]+\*?)(?!\S))', query))
    return tuple(dict.fromkeys(word for word in found if word.strip("*")))[:16]


@lru_cache(16)
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    """Whole words as the search knows them (an underscore ends one); `begin*` is any that begins so."""
    spelled = (_spelled(word) for word in sorted(words, key=len, reverse=True))
    return re.compile("|".join(spelled), re.IGNORECASE)


def _wanted(words: Iterable[str]) -> tuple[str, ...]:
    """Those in which there is something to look for."""
    return tuple(word for word in words if word.strip("*").split())


def _spelled(word: str) -> str:
    pieces = word.rstrip("*").split()
    one = r"\s+".join(map(re.escape, pieces))
    before = r"(?<![^\W_])" if pieces[0][0].isalnum() else ""
    after = r"(?![^\W_])" if pieces[-1][-1].isalnum() else ""
    return before + one + (r"\w*" if word.endswith("*") else after)


def mark(text: str, words: Iterable[str]) -> Markup:
    """Plain text, escaped, with the words in <mark>."""
    text, wanted = visible(text), _wanted(words)
    if not wanted:
        return Markup(escape(text, quote=False))
    told, at = [], 0
    for match in _pattern(wanted).finditer(text):
        told += [escape(text[at : match.start()], quote=False), f"<mark>{escape(match[0], quote=False)}</mark>"]
        at = match.end()
    return Markup("".join((*told, escape(text[at:], quote=False))))


def _mark_html(html: str, words: Iterable[str]) -> str:
    """The sanitiser's output is well-formed: what stands between its tags is text."""
    wanted = tuple(escape(word, quote=False) for word in _wanted(words))
    if not wanted:
        return html
    # What is written as a reference is one sign, and none of its letters a word.
    pattern = re.compile(f"(&[a-zA-Z0-9#]+;)|{_pattern(wanted).pattern}", re.IGNORECASE)
    pieces = _TAG.split(html)
    pieces[::2] = [
        pattern.sub(lambda match: match[0] if match[1] else f"<mark>{match[0]}</mark>", text) for text in pieces[::2]
    ]
    return "".join(pieces)


def mark_in(html: Markup, words: Iterable[str]) -> Markup:
    """Markup of ours with the words in its text marked."""
    return Markup(_mark_html(str(html), tuple(words)))


def holds(text: str, words: Iterable[str]) -> bool:
    """Whether one of the words is in a text."""
    wanted = _wanted(words)
    return bool(wanted) and _pattern(wanted).search(text) is not None
