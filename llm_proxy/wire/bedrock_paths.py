"""The requests of Amazon Bedrock that may be signed, and no others: a strict grammar of methods, paths and queries.

What was accepted is written anew in one way, so what was judged is what is sent. Ids may come percent-encoded or not,
as clients differ. Leaves out where it is sent.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import quote_from_bytes, unquote_to_bytes

MAX_ID = 2048  # AWS's own limit

OPERATIONS = ("invoke", "invoke-with-response-stream", "converse", "converse-stream", "count-tokens")
_CALL = re.compile(rb"/model/(?P<id>.+)/(?P<operation>" + "|".join(OPERATIONS).encode() + rb")", re.DOTALL)
_LISTING = re.compile(rb"/(?P<what>inference-profiles|foundation-models)(?:/(?P<id>.+))?", re.DOTALL)

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_SUFFIXED = rf"{_NAME}(?::[A-Za-z0-9][A-Za-z0-9.-]*){{0,3}}"  # anthropic.claude-3-haiku-20240307-v1:0:200k
_KINDS = (
    "foundation-model|inference-profile|application-inference-profile|provisioned-model|imported-model"
    "|custom-model-deployment|prompt|prompt-router|default-prompt-router"
)
_ARN = (
    r"arn:aws(?:-[a-z]{1,10}){0,2}:(?:"
    rf"bedrock:[a-z0-9-]{{1,20}}:(?:[0-9]{{12}})?:(?:(?:{_KINDS})/{_SUFFIXED}|custom-model/{_SUFFIXED}/[a-z0-9]+)"
    r"|sagemaker:[a-z0-9-]{1,20}:[0-9]{12}:endpoint/[A-Za-z0-9-]+)"
)
_ID = re.compile(rf"(?:{_SUFFIXED}|{_ARN})", re.ASCII)
_ESCAPES = re.compile(rb"(?:[^%]|%[0-9A-Fa-f]{2})*", re.DOTALL)
_UNRESERVED = "-_.~"


class NotSigned(Exception):
    """A request that is none of those; `status` and words for the caller."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Wanted(NamedTuple):
    """A request that may be signed: the target to send, and whether it is for the service that lists models."""

    target: bytes
    control: bool


def begins_here(target: bytes) -> bool:
    """Whether a target is meant for Bedrock at all, rightly written or not."""
    return target.startswith((b"/model/", b"/inference-profiles", b"/foundation-models"))


def read(method: bytes, target: bytes) -> Wanted:
    """The request to sign for an origin-form target. Raises NotSigned."""
    path, _, query = target.partition(b"?")
    call, listing = _CALL.fullmatch(path), _LISTING.fullmatch(path)
    if call is not None:
        new = b"/model/%b/%b" % (_id(call["id"]), call["operation"])
        wanted, allowed = Wanted(new, False), b"POST"
    elif listing is not None:
        new = b"/" + listing["what"] + (b"/" + _id(listing["id"]) if listing["id"] else b"")
        wanted, allowed = Wanted(new, True), b"GET"
    else:
        served = f"/model/{{id}}/{{operation}} with {', '.join(OPERATIONS)}"
        raise NotSigned(404, f"{served} is served here, and GET of /inference-profiles and /foundation-models")
    if method != allowed:
        raise NotSigned(405, f"this is {allowed.decode()} only, got {method.decode('latin-1')}")
    return wanted._replace(target=wanted.target + b"?" + _query(query)) if query else wanted


def _id(raw: bytes) -> bytes:
    """An id, decoded once, judged, and encoded as AWS's own clients do."""
    plain = _decoded(raw, "model id")
    text = plain.decode("latin-1")
    if len(text) > MAX_ID or _ID.fullmatch(text) is None:
        shown = text if len(text) <= 100 else text[:97] + "..."
        raise NotSigned(400, f"the model id must be a name, an inference profile or an ARN of Bedrock, got {shown!r}")
    return quote_from_bytes(plain, safe=_UNRESERVED).encode()


def _query(query: bytes) -> bytes:
    """A query in AWS's canonical form, which leaves one way to read it."""
    pairs = []
    for part in query.split(b"&"):
        if not part:
            continue
        name, _, value = (_decoded(text, "query") for text in part.partition(b"="))
        if name.lower().startswith(b"x-amz-"):
            raise NotSigned(400, "a signature in the query is not taken: the request is signed here")
        pairs.append((quote_from_bytes(name, safe=_UNRESERVED), quote_from_bytes(value, safe=_UNRESERVED)))
    return "&".join(f"{name}={value}" for name, value in sorted(pairs)).encode()


def _decoded(text: bytes, what: str) -> bytes:
    if _ESCAPES.fullmatch(text) is None:
        raise NotSigned(400, f"the {what} has a % that begins no escape")
    return unquote_to_bytes(text)
