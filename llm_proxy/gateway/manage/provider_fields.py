"""What may be said of a provider key: each field's rule, and words of others without the key in them. Pure.

A key that breaks a rule is never repeated in the refusal. Leaves out routes and the store (`providers`), and where a
base URL may lead (`base_urls`).
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from llm_proxy.gateway.base_urls import BadBaseUrl, checked
from llm_proxy.gateway.facts import Provider
from llm_proxy.gateway.options import Options
from llm_proxy.gateway.refusals import Refusal
from llm_proxy.wire import aws_regions

_LONGEST_KEY = 8192  # characters; AWS's session tokens are the longest
_LONGEST_LABEL = 255
_HINTED = 20  # characters from which on a key's last four give nothing away
_PART = 8  # characters of a key that stand in no error
_READ = 5000  # characters of a provider's words that are looked at,
_LONGEST_WORDS = 300  # and that are passed on
_SPELLINGS: Final = {"google": Provider.GEMINI, "claude": Provider.ANTHROPIC}
_NAMES: Final = ", ".join(Provider)

# A key that begins so is whose, and what it is. At a base URL of its own a key may look like anything.
_SHAPES: Final = (
    ("sk-ant-", Provider.ANTHROPIC, "a key of Anthropic"),
    ("sk-proj-", Provider.OPENAI, "a key of OpenAI"),
    ("sk-svcacct-", Provider.OPENAI, "a key of OpenAI"),
    ("sk-admin-", Provider.OPENAI, "a key of OpenAI"),
    ("AIza", Provider.GEMINI, "a key of Google"),
    ("ABSK", Provider.BEDROCK, "a key of Bedrock"),
    ("AKIA", None, "the id of an AWS access key alone, which bedrock takes with its secret, as JSON"),
    ("ASIA", None, "the id of an AWS access key alone, which bedrock takes with its secret and session token, as JSON"),
    ("sk-or-", Provider.COMPATIBLE, "a key of OpenRouter"),
    ("gsk_", Provider.COMPATIBLE, "a key of Groq"),
    ("xai-", Provider.COMPATIBLE, "a key of xAI"),
    ("pplx-", Provider.COMPATIBLE, "a key of Perplexity"),
)
_OURS: Final = "llmp_"
_ACCESS_KEY = re.compile(r"[A-Z0-9]{16,128}")
_SECRET_KEY = re.compile(r"[A-Za-z0-9/+=]{16,128}")


class Aws(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """AWS's credentials, as Bedrock's `api_key`."""

    access_key_id: str
    secret_access_key: str
    session_token: str = ""

    def __repr__(self) -> str:
        return "Aws(…)"


def wrong(param: str, words: str) -> Refusal:
    return Refusal(400, "invalid_request", f"{param}: {words}", param=param)


def provider(name: str) -> Provider:
    """Raises Refusal, as all that follow."""
    try:
        return _SPELLINGS.get(name.lower()) or Provider(name.lower())
    except ValueError:
        raise wrong("provider", f"one of {_NAMES} is wanted, not {name[:40]!r}") from None


def label(text: str) -> str:
    if len(text) > _LONGEST_LABEL:
        raise wrong("label", f"at most {_LONGEST_LABEL} characters, not {len(text)}")
    if not text.isprintable():
        raise wrong("label", "no control characters or line breaks")
    return text.strip()


def base_url(options: Options, of: Provider, text: str) -> str:
    """As it is kept: "" for the provider's own host."""
    if not text:
        if of is Provider.COMPATIBLE:
            raise wrong("base_url", f"{of} needs one, as https://api.example.com/v1")
        return ""
    try:
        return str(checked(text, of, allow=options.allow, ourselves=options.public_url))
    except BadBaseUrl as error:
        raise wrong("base_url", str(error)) from None


def region(of: Provider, text: str, base_url: str) -> str:
    """One that is newer than our table is taken beside a base URL."""
    if of is not Provider.BEDROCK:
        if text:
            raise wrong("region", f"only bedrock has regions, {of} has none")
        return ""
    if text in aws_regions.REGIONS or (base_url and aws_regions.WELL_FORMED.fullmatch(text)):
        return text
    if not text:
        raise wrong("region", "bedrock needs one, as us-east-1")
    near = aws_regions.nearest(text[:40])
    raise wrong("region", f"Bedrock is known in no region {text[:40]!r} of AWS; the nearest name is {near}")


def key(of: Provider, given: str | Aws, base_url: str) -> str:
    """The key as it is kept."""
    if isinstance(given, Aws) or given.lstrip().startswith("{"):
        return _aws(of, given)
    if not given.strip():
        raise wrong("api_key", "it is empty")
    if not _is_token(given):
        words = f"a key is printable ASCII of at most {_LONGEST_KEY} characters, without spaces and line breaks"
        raise wrong("api_key", words)
    if given.startswith(_OURS):
        raise wrong("api_key", "this is a key of this gateway, not of a provider")
    for beginning, whose, what in _SHAPES:
        if given.startswith(beginning) and whose is not of and not base_url:
            raise wrong("api_key", f"this is none of {of}: it looks like {what}")
    return given


def _aws(of: Provider, given: str | Aws) -> str:
    if of is not Provider.BEDROCK:
        raise wrong("api_key", f"{of} takes a text, no object: only bedrock takes AWS's credentials")
    if isinstance(given, str):
        try:
            given = msgspec.json.decode(given, type=Aws)
        except (msgspec.DecodeError, UnicodeError):
            wanted = '{"access_key_id", "secret_access_key", "session_token"?}'
            raise wrong("api_key", f"AWS's credentials are a JSON object {wanted}, all texts") from None
    rules = (
        ("access_key_id", _ACCESS_KEY.fullmatch(given.access_key_id), "16 to 128 capital letters and digits"),
        ("secret_access_key", _SECRET_KEY.fullmatch(given.secret_access_key), "16 to 128 characters of base64"),
        ("session_token", _is_token(given.session_token), "printable ASCII without spaces"),
    )
    for name, good, words in rules:
        if not good:
            raise wrong("api_key", f"{name} is {words}")
    return msgspec.json.encode(given).decode()


def _is_token(text: str) -> bool:
    return len(text) <= _LONGEST_KEY and text.isascii() and text.isprintable() and " " not in text


def hint(text: str) -> str:
    """The end of a key; of AWS's credentials that of the access key's id, which is no secret."""
    if text.startswith("{"):
        try:
            text = msgspec.json.decode(text, type=Aws).access_key_id
        except msgspec.DecodeError:
            return ""
    return text[-4:] if len(text) >= _HINTED else ""


def without_key(said: str, text: str) -> str:
    """A provider's words on one line, without the key and without parts of it."""
    size = min(_PART, len(text))
    said = "".join(sign if sign.isprintable() else " " for sign in said[:_READ])
    parts = _parts(text, size)
    words = (word if parts.isdisjoint(_parts(word, size)) else "(the key)" for word in said.split())
    return " ".join(words)[:_LONGEST_WORDS]


def _parts(text: str, size: int) -> set[str]:
    return {text[at : at + size] for at in range(len(text) - size + 1)}
