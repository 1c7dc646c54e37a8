"""Credentials in heads, taken out before the first byte reaches a disk: field values and request targets.

A credential becomes `[masked sha256:8hex len:N]`, so that two uses of one key can still be told to be the same;
`sk-` keys keep their kind and last four characters, as in the log format. First rule: what a secret name carries is
masked whatever it looks like. Second rule: what looks like a vendor's key is masked wherever it stands. Leaves out
bodies. Standard library only: the proxy process imports this.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from hashlib import sha256

# --- the shape of what is written instead

_SK_KEY = re.compile(rb"sk-[A-Za-z0-9_-]*")
_SK_KINDS = ((b"sk-ant-", b"sk-ant-"), (b"sk-proj-", b"sk-proj-"), (b"sk-", b"sk-"))
_MASK = rb"\[masked sha256:[0-9a-f]{8} len:[0-9]+\]|sk-(?:ant-|proj-)?\.\.\.(?:[A-Za-z0-9_-]{4})?"

# The scheme words of Authorization that may stay; any other first word might itself be the secret.
_SCHEMES = (
    rb"(?i:basic|bearer|digest|dpop|negotiate|ntlm|token|apikey|api-key|key|hmac|hawk|mutual|signature|gnap|oauth"
    rb"|aws4-hmac-sha256|aws4-ecdsa-p256-sha256|goog4-rsa-sha256|goog4-hmac-sha256)"
)
_CREDENTIAL = re.compile(rb"(?:(" + _SCHEMES + rb"[ \t]+))?(.*)", re.DOTALL)
_MASKED = re.compile(rb"(?:" + _SCHEMES + rb"[ \t]+)?(?:" + _MASK + rb")")


def _instead(secret: bytes) -> bytes:
    """What stands for one secret. An empty one stays empty."""
    if not secret:
        return secret
    if _SK_KEY.fullmatch(secret):
        shown = next(shown for prefix, shown in _SK_KINDS if secret.startswith(prefix))
        return shown + b"..." + (secret[-4:] if len(secret) > len(shown) + 8 else b"")
    return b"[masked sha256:%b len:%d]" % (sha256(secret).hexdigest()[:8].encode(), len(secret))


def masked_credential(value: bytes) -> bytes:
    """A value for the record that is a credential whatever its field is called; printable ASCII."""
    return _UNPRINTABLE.sub(lambda match: b"\\x%02x" % match[0][0], _credential(value))


def _credential(value: bytes) -> bytes:
    """A whole credential, its scheme word kept."""
    if _MASKED.fullmatch(value):
        return value
    match = _CREDENTIAL.fullmatch(value)
    assert match is not None  # it matches anything
    return (match[1] or b"") + _instead(match[2])


# --- names

# Searched in a name whose words are joined by "-". Plural tokens are what models are billed for, not credentials.
_SECRET_NAME = re.compile(
    rb"token(?!s|iz|-?count|-?type|-?limit|-?usage|-?budget)|secret|passw|passphrase|passcode|credential|signature"
    rb"|api-?key|access-?key|private-?key|jwt|authorization|cookie|assertion|(?:^|-)(?:key|auth|pwd|pass)$"
)
# In a query also the short names: `sig` signs a URL, `code` is OAuth's one-time credential (RFC 6749 §4.1.2).
_SECRET_PARAMETER = re.compile(_SECRET_NAME.pattern + rb"|^(?:sig|code)$")
# Taken out of a name before the search: they name no credential.
_HARMLESS = re.compile(
    rb"(?:idempotency|websocket|cache|surrogate|partition|routing)-?key$|(?:page|continuation)-?token"
    rb"|access-control-allow-credentials"
)

_PERCENT = re.compile(rb"%([0-9A-Fa-f]{2})")
_HUMP = re.compile(rb"(?<=[a-z0-9])(?=[A-Z])")
_BETWEEN_WORDS = re.compile(rb"[^a-z0-9]+")


def _is_secret(name: bytes, names: re.Pattern[bytes]) -> bool:
    words = _BETWEEN_WORDS.sub(b"-", _HUMP.sub(b"-", name).lower()).strip(b"-")
    return names.search(_HARMLESS.sub(b"", words)) is not None


def _unquoted(name: bytes) -> bytes:
    """Percent-decoded three times at most: a URL inside a query is encoded once more."""
    for _ in range(3):
        if b"%" not in name:
            break
        name = _PERCENT.sub(lambda match: bytes((int(match[1], 16),)), name)
    return name


# --- keys by their shape

_VENDOR_KEY = re.compile(
    rb"(?:(?<![A-Za-z0-9])|(?<=%[0-9A-Fa-f]{2}))(?:"
    rb"(?P<scheme>(?i:bearer|basic)[ \t]+)(?!\w+=[\"\w])(?P<credential>[\w.~+/=%-]{8,})"  # no challenge's `realm="..."`
    rb"|sk-[\w-]{8,}"
    rb"|eyJ[\w-]{4,}\.[\w.~+/=-]*"  # JWT and JWE: all of it, however many parts
    rb"|AIza[\w-]{20,}"  # Google
    rb"|ya29\.[\w.-]{8,}"
    rb"|A(?:KIA|SIA|BIA|CCA)[A-Z0-9]{12,}"  # AWS, and a Bedrock API key
    rb"|ABSK[A-Za-z0-9+/=]{20,}"
    rb"|gh[pousr]_\w{20,}|github_pat_\w{20,}|hf_\w{16,}|gsk_\w{16,}|xai-[\w-]{16,}|pplx-\w{16,}|nvapi-[\w-]{16,}"
    rb"|sess-\w{16,}|GOCSPX-[\w-]{16,}"
    rb")",
    re.ASCII,
)


def _key_instead(match: re.Match[bytes]) -> bytes:
    if match["scheme"]:
        return match["scheme"] + _credential(match["credential"])
    return _instead(match[0])


def without_keys(text: bytes) -> bytes:
    """`text` with everything that has the shape of a vendor's key masked; the rest byte-identical."""
    return _VENDOR_KEY.sub(_key_instead, text)


# --- URLs

# A parameter's name, in a query or in a URL that is itself a parameter's value (its "?", "&" and "=" encoded).
_PARAMETER = re.compile(
    rb"(?i:[?&;#]|%(?:25)*(?:3f|26|3b|23))"
    rb"((?i:[^=&;?#%\s]|%(?!(?:25)*(?:3d|3f|26|3b|23)))+)"
    rb"(?i:=|%(?:25)*3d)"
)
_END_IN_URL = re.compile(rb"[&#]|\Z")
_END_IN_TEXT = re.compile(rb"[&#\"<>]|\Z")
_USERINFO = re.compile(
    rb"(?P<before>(?:(?<=:)|^)//)(?P<plain>[^/?#\s\"<>]+)@|(?P<quoted>%3[Aa]%2[Ff]%2[Ff])(?P<inner>[^/?#&\s\"<>]{1,512}?)%40"
)
_URL_FIELDS = frozenset({b"location", b"content-location", b"referer"})


def _parameters_masked(text: bytes, end: re.Pattern[bytes]) -> bytes:
    kept: list[bytes] = []
    done = 0
    for match in _PARAMETER.finditer(text):
        start = match.end()
        if start < done or not _is_secret(_unquoted(match[1]), _SECRET_PARAMETER):
            continue
        stop = end.search(text, start)
        assert stop is not None  # the end of the text is one
        kept += text[done:start], _credential(text[start : stop.start()])
        done = stop.start()
    return b"".join((*kept, text[done:]))


def _userinfo_instead(match: re.Match[bytes]) -> bytes:
    if match["before"]:
        return match["before"] + _instead(match["plain"]) + b"@"
    return match["quoted"] + _instead(match["inner"]) + b"%40"


def _url_masked(text: bytes, end: re.Pattern[bytes]) -> bytes:
    return without_keys(_USERINFO.sub(_userinfo_instead, _parameters_masked(text, end)))


# --- WebSocket subprotocols

# `openai-insecure-api-key.KEY` and the like; or the key is the item after one of these words alone.
_KEY_ITEM = re.compile(
    rb"(?i)((?:base64url\.)?[^.]{0,64}(?:api[-_]?key|bearer|token|secret|authorization|jwt|password)[^.]{0,64}\.)(.+)"
)
_KEY_FOLLOWS = frozenset({b"token", b"bearer", b"authorization", b"api-key", b"apikey", b"access_token", b"jwt"})


def _subprotocols_masked(value: bytes) -> bytes:
    items, follows = [], False
    for raw in value.split(b","):
        item = raw.strip(b" \t")
        match = _KEY_ITEM.fullmatch(item)
        if follows:
            masked = _credential(item)
        elif match:
            masked = match[1] + _credential(match[2])
        else:
            masked = without_keys(item)
        items.append(raw.replace(item, masked) if item else raw)
        follows = item.lower() in _KEY_FOLLOWS
    return b",".join(items)


# --- the two entrances

_UNPRINTABLE = re.compile(rb"[^\x20-\x7e]")
_SPECIAL: dict[bytes, Callable[[bytes], bytes]] = {b"sec-websocket-protocol": _subprotocols_masked}


# Fields whose values are the protocol's or the server's own words, and differ in every message: not worth a search.
_NEVER_SECRET = frozenset(
    b"date content-length content-type content-encoding transfer-encoding connection server host age expires "
    b"last-modified etag vary request-id x-request-id cf-ray cf-cache-status x-envoy-upstream-service-time "
    b"openai-processing-ms anthropic-organization-id retry-after strict-transport-security".split()
)


def masked_value(name: bytes, value: bytes) -> bytes | None:
    """What to record instead of a field's value; None where nothing is to be masked.

    `name` is lower-case, `value` without surrounding white space. The result is printable ASCII: a byte beyond it
    that stood beside the secret becomes `\\xNN`.
    """
    if name in _NEVER_SECRET:
        return None
    special = _SPECIAL.get(name)
    if special is not None:
        masked = special(value)
    elif _is_secret(name, _SECRET_NAME):
        masked = _credential(value)
    else:
        masked = _url_masked(value, _END_IN_URL if name in _URL_FIELDS else _END_IN_TEXT)
    if masked == value:
        return None
    return _UNPRINTABLE.sub(lambda match: b"\\x%02x" % match[0][0], masked)


def masked_target(target: bytes) -> bytes:
    """A request target for the record: userinfo and the query's secret values masked, all else byte-identical.

    A masked target can hold spaces: in a recorded request line the method ends at the first one, the target at the
    last one.
    """
    path, mark, query = target.partition(b"?")
    if b"@" in path:
        path = _USERINFO.sub(_userinfo_instead, path)
    return path + _url_masked(mark + query, _END_IN_URL) if mark else path
