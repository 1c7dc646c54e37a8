"""AWS Signature Version 4 in header form: from a request's parts to the fields that prove who sent it.

Paths and queries are taken as they stand on the wire: the canonical path is the sent path encoded once more, so that
a model id's `:`, sent as `%3A`, is signed as `%253A`. Leaves out S3's own rules, presigned URLs and chunk signatures.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote_from_bytes

ALGORITHM = "AWS4-HMAC-SHA256"
_SPACES = re.compile(rb" +")

NameValue = tuple[bytes, bytes]  # the name lower-case


@dataclass(frozen=True, slots=True)
class Key:
    """Credentials. `token` is that of temporary ones, else empty."""

    access: str
    secret: str = field(repr=False)
    token: str = field(repr=False, default="")


class Scope(NamedTuple):
    """For what a signature counts."""

    region: str
    service: str


class Signature(NamedTuple):
    """Fields to send beside the signed ones, in this order; `canonical` is the text that was hashed, for tests."""

    fields: tuple[tuple[bytes, bytes], ...]
    canonical: bytes


def canonical_path(path: bytes) -> bytes:
    """The path as sent (without query), encoded once more; `/` stays."""
    return quote_from_bytes(path, safe="/-_.~").encode() or b"/"


def canonical_query(query: bytes) -> bytes:
    """The query as sent, sorted by name and value; names and values are taken as encoded already."""
    pairs = (part.partition(b"=") for part in query.split(b"&") if part)
    return b"&".join(name + b"=" + value for name, _, value in sorted(pairs))


def sign(
    key: Key,
    scope: Scope,
    now: float,
    *,
    method: bytes,
    target: bytes,
    fields: Iterable[NameValue],
    body_sha256: str,
) -> Signature:
    """Sign a request: `fields` are those to be signed, `host` among them, `now` is `time.time()`.

    The date and the session token are signed too, and returned with the Authorization.
    """
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    added = [(b"x-amz-date", stamp.encode())]
    if key.token:
        added.append((b"x-amz-security-token", key.token.encode()))
    values: dict[bytes, list[bytes]] = {}
    for name, value in (*fields, *added):
        values.setdefault(name, []).append(_SPACES.sub(b" ", value.strip(b" \t")))
    names = b";".join(sorted(values))
    path, _, query = target.partition(b"?")
    canonical = b"\n".join(
        (
            method,
            canonical_path(path),
            canonical_query(query),
            *(name + b":" + b",".join(values[name]) for name in sorted(values)),
            b"",
            names,
            body_sha256.encode(),
        )
    )
    place = f"{stamp[:8]}/{scope.region}/{scope.service}/aws4_request"
    text = f"{ALGORITHM}\n{stamp}\n{place}\n{hashlib.sha256(canonical).hexdigest()}"
    signing = _signing_key(key.secret, stamp[:8], *scope)
    signature = hmac.digest(signing, text.encode(), "sha256").hex()
    proof = f"{ALGORITHM} Credential={key.access}/{place}, SignedHeaders={names.decode()}, Signature={signature}"
    return Signature((*added, (b"authorization", proof.encode())), canonical)


@lru_cache(maxsize=4)
def _signing_key(secret: str, day: str, region: str, service: str) -> bytes:
    """It changes once a day and with the credentials."""
    key = f"AWS4{secret}".encode()
    for part in (day, region, service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key
