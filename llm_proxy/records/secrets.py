"""What secrets look like: keys by their vendors' shapes, passwords and tokens by what stands before them.

Precise on purpose: what only might be a secret is none. A key is found in JSON inside JSON too, as long as it is
written there letter by letter. Linear in time, whatever the text. Leaves out what is done with a secret.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

# Words joined by hyphens and the like: a placeholder, a path, an expression.
_WORD = r"(?:[A-Za-z]{1,15}\d{0,3}|\d{1,4})"
_WORDS = re.compile(rf"{_WORD}(?:[-_.~/+=]+{_WORD})*[-_.~/+=]*")
_CERTAIN = 80  # characters: what is as long behind a vendor's prefix is a key, however dull


def _is_key(secret: str) -> bool:
    """Not a placeholder: `sk-ant-api03-xxxxxxxxxxxxxxxxxxxxxxxx`, `sk-proj-your-api-key-goes-here`."""
    return len(secret) >= _CERTAIN or (len(set(secret[-16:])) >= 6 and _WORDS.fullmatch(secret) is None)


def _is_random(secret: str) -> bool:
    """Stricter, where only what stands before it says that it is a secret."""
    return _is_key(secret) and any(map(str.isdigit, secret))


def _is_password(secret: str) -> bool:
    """Not what a template or a mask has in its place."""
    return re.fullmatch(r"(?:[${(\[]|%[s(]).*|[*.xX•]+", secret, re.DOTALL) is None


def _holds_key(block: str) -> bool:
    return re.search(r"[A-Za-z0-9+/]{32}", block) is not None


class Shape(NamedTuple):
    """A kind of secret: what `pattern` finds, or its group `secret` where it has one, if `check` agrees."""

    kind: str
    pattern: re.Pattern[str]
    check: Callable[[str], bool]


class Family(NamedTuple):
    """Shapes that are only looked for in texts of which `hint` is true."""

    hint: Callable[[str], object]
    shapes: tuple[Shape, ...]


# `<start>` behind the first two letters of a key: nothing that belongs to it stands before them, but the letter of an
# escape may, or a percent-encoded character.
_START = r"(?:(?<![A-Za-z0-9_-]..)|(?<=\\[nrtbf]..)|(?<=\\u[0-9a-fA-F]{4}..)|(?<=%[0-9a-fA-F]{2}..))"
# `<is>` between a name and its value: equals sign or colon, quotes, blanks, in JSON at any depth. Escapes stay whole.
_IS = r"""(?:\\+[nrt"']|[\s"']){0,8}[=:]>?(?:\\+[nrt"']|[\s"']){0,8}"""


def _shape(kind: str, pattern: str, check: Callable[[str], bool] = _is_key) -> Shape:
    return Shape(kind, re.compile(pattern.replace("<start>", _START).replace("<is>", _IS)), check)


def _in(clue: str, *shapes: Shape) -> Family:
    return Family(lambda text: clue in text, shapes)


def _like(hint: str, *shapes: Shape) -> Family:
    """A pattern that begins with a letter takes as long as two or three clues."""
    return Family(re.compile(hint).search, shapes)


_PEM = "(?:(?:RSA|DSA|EC|OPENSSH|ENCRYPTED|PGP|ANY) )?PRIVATE KEY(?: BLOCK)?-----"
_PEM_BODY = r"(?:[A-Za-z0-9+/=\s:,.()→|]|-(?!-)|\\+(?:[nrt/]|u[0-9a-fA-F]{4})){0,20000}"
# Of a block that was cut, its full lines; editors' and agents' line numbers may stand before them.
_PEM_LINES = r"(?:(?:\\+(?:[nrt]|u[0-9a-fA-F]{4})|[\s0-9→|]){1,40}(?:[A-Za-z0-9+/=]|\\+/){40,200}){1,400}"
_BASE64 = r"(?:[A-Za-z0-9+=]|\\*/)"
_SEGMENT = "[A-Za-z0-9_-]{10,}"
_PASSWORD = r"""[^\s:/@"'<>\\]{0,64}:(?P<secret>[^\s/@"'<>\\]{3,128})@[A-Za-z0-9\[]"""
_ASSIGNED = "|".join(
    f"(?<={name})"
    for name in ("API_KEY", "SECRET_KEY", "ACCESS_KEY", "API_TOKEN", "AUTH_TOKEN", "ACCESS_TOKEN", "API_SECRET")
)

# What has been found is not looked at again: shapes that know only what stands before a secret come last. The kinds are
# listed in docs/log-format.md.
FAMILIES = (
    _in(
        "PRIVATE KEY",
        _shape("PRIVATE_KEY", f"-----BEGIN {_PEM}(?:{_PEM_BODY}-----END {_PEM}|{_PEM_LINES})", _holds_key),
    ),
    _like(
        "sk[-_]",
        _shape("ANTHROPIC_KEY", "sk<start>-ant-[a-z]{2,8}[0-9]{2}-[A-Za-z0-9_-]{20,}"),
        _shape("OPENROUTER_KEY", "sk<start>-or-v1-[0-9a-f]{40,}"),
        _shape("OPENAI_KEY", "sk<start>-(?:(?:proj|svcacct|admin|None)-[A-Za-z0-9_-]{20,}|[A-Za-z0-9]{32,})"),
        _shape("GROQ_KEY", "gs<start>k_[A-Za-z0-9]{40,}"),
        _shape("CEREBRAS_KEY", "cs<start>k-[a-z0-9]{40,}"),
        _shape("STRIPE_KEY", "sk<start>_(?:live|test)_[A-Za-z0-9]{16,}"),
    ),
    _in("rk_live_", _shape("STRIPE_KEY", "rk<start>_live_[A-Za-z0-9]{16,}")),
    _like(
        r"A(?:Iza|[KS]IA|BSK|Q\.Ab)",
        _shape("AWS_KEY", "A[KS]<start>IA[A-Z0-9]{16}(?![A-Za-z0-9])"),
        _shape("AWS_BEDROCK_KEY", f"AB<start>SK{_BASE64}{{60,}}"),
        _shape("GOOGLE_KEY", "AI<start>za[A-Za-z0-9_-]{30,}"),
        _shape("GOOGLE_KEY", r"AQ<start>\.Ab[A-Za-z0-9_-]{40,}"),
    ),
    _in("IQoJb3JpZ2lu", _shape("AWS_TOKEN", f"IQ<start>oJb3JpZ2lu{_BASE64}{{80,}}")),
    _in("ya29.", _shape("GOOGLE_TOKEN", r"ya<start>29\.[A-Za-z0-9_-]{30,}")),
    _in("GOCSPX-", _shape("GOOGLE_SECRET", "GO<start>CSPX-[A-Za-z0-9_-]{24,}")),
    _like("gh[pousr]_", _shape("GITHUB_TOKEN", "gh<start>[pousr]_[A-Za-z0-9]{30,}")),
    _in("github_pat_", _shape("GITHUB_TOKEN", "gi<start>thub_pat_[A-Za-z0-9_]{40,}")),
    _like(
        "gl[a-z]{2,5}-",
        _shape("GITLAB_TOKEN", "gl<start>(?:pat|dt|rt|cbt|ptt|ft|imt|agent|soat|oas)-[A-Za-z0-9_-]{20,}"),
    ),
    _like(
        "x(?:ox[a-z]|ai-|app-)",
        _shape("SLACK_TOKEN", r"xo<start>x[abeoprs](?:\.xox[bp])?-[A-Za-z0-9-]{20,}", _is_random),
        _shape("SLACK_TOKEN", "xa<start>pp-[0-9]-[A-Za-z0-9-]{30,}"),
        _shape("XAI_KEY", "xa<start>i-[A-Za-z0-9]{40,}"),
    ),
    _in(
        "hooks.slack.com",
        _shape("SLACK_WEBHOOK", rf"hooks\.slack\.com(?:\\*/)services\\*/(?P<secret>{_BASE64}{{30,}})"),
    ),
    _in("hf_", _shape("HF_TOKEN", "hf<start>_[A-Za-z0-9]{30,}")),
    _in("npm_", _shape("NPM_TOKEN", "np<start>m_[A-Za-z0-9]{36,}")),
    _in("pypi-AgE", _shape("PYPI_TOKEN", "py<start>pi-AgE[A-Za-z0-9_-]{50,}")),
    _in("pplx-", _shape("PERPLEXITY_KEY", "pp<start>lx-[A-Za-z0-9]{40,}")),
    _in("nvapi-", _shape("NVIDIA_KEY", "nv<start>api-[A-Za-z0-9_-]{40,}")),
    _in(
        "eyJ",  # {" in base64
        _shape("JWT", rf"ey<start>J{_SEGMENT}(?:\.eyJ{_SEGMENT}\.{_SEGMENT}|(?:\.[A-Za-z0-9_-]+){{4}})"),
    ),
    *(
        _in(name, _shape("AWS_SECRET", rf"{name}(?:<is>|>)(?P<secret>(?:[A-Za-z0-9+]|\\*/){{40}})(?![A-Za-z0-9+/=])"))
        for name in ("ecretAccessKey", "ecret_access_key", "ECRET_ACCESS_KEY")
    ),
    _in("://", _shape("URL_PASSWORD", f"://(?<=[a-z0-9]://){_PASSWORD}", _is_password)),
    _in(r":\/\/", _shape("URL_PASSWORD", rf":(?<=[a-z0-9]:)(?:\\+/){{2}}{_PASSWORD}", _is_password)),
    _in("earer ", _shape("BEARER", rf"earer(?<=[Bb]earer) {{1,4}}(?P<secret>(?:[._~-]|{_BASE64}){{20,}})", _is_random)),
    _like(
        "_(?:KEY|TOKEN|SECRET)",
        _shape(
            "API_KEY",
            f"_(?:KEY|TOKEN|SECRET)(?:{_ASSIGNED})<is>(?P<secret>[A-Za-z0-9_.+/=-]{{20,}})",
            _is_random,
        ),
    ),
)


class Span(NamedTuple):
    """A secret in a text."""

    start: int
    end: int
    kind: str


def spans(text: str) -> list[Span]:
    """Where secrets of known shapes stand, in order; none overlaps another."""
    found: list[Span] = []
    for hint, shapes in FAMILIES:
        if not hint(text):
            continue
        for kind, pattern, check in shapes:
            more = [Span(*match.span(pattern.groups), kind) for match in pattern.finditer(text)]
            if more:
                found = merged(found, [one for one in more if check(text[one.start : one.end]) and _whole(text, one)])
    return found


def _whole(text: str, span: Span) -> bool:
    """Whether the first letter is not that of an escape, as in `\\npm_`."""
    start = span.start
    if not start or text[start - 1] != "\\" or text[start] not in "bfnrtu":
        return True
    first = start
    while first and text[first - 1] == "\\":
        first -= 1
    return (start - first) % 2 == 0


def merged(found: list[Span], more: Iterable[Span]) -> list[Span]:
    """`found`, and of `more` what overlaps none of it; both are in order."""
    kept = list(found)
    number = 0
    for span in more:
        while number < len(found) and found[number].end <= span.start:
            number += 1
        if number == len(found) or found[number].start >= span.end:
            kept.append(span)
    kept.sort()
    return kept
