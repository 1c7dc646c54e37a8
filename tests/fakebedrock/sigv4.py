"""Signature Version 4 from the service's side: what was signed is computed again from what arrived.

Written from AWS's description ("Create a signed AWS API request"), for services other than S3.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

Fields = tuple[tuple[bytes, bytes], ...]

SKEW = timedelta(minutes=5)
_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/,\s]+)/(\d{8})/([^/,\s]+)/([^/,\s]+)/aws4_request, ?"
    r"SignedHeaders=([a-z0-9;._-]+), ?Signature=([0-9a-f]{64})"
)


class Refused(Exception):
    """`kind` and words of AWS's error."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        self.message = message


@dataclass(slots=True)
class Account:
    """Keys that are known: access key -> (secret, session token or ""); `expired` ones are known to be over."""

    keys: dict[str, tuple[str, str]]
    region: str = "us-west-2"
    service: str = "bedrock"
    expired: set[str] = field(default_factory=set)


def verify(
    account: Account, method: str, target: str, headers: Fields, body: bytes, now: datetime | None = None
) -> str:
    """The access key that signed the request. Raises Refused."""
    found = _values(headers)
    if "authorization" not in found:
        raise Refused("MissingAuthenticationTokenException", "Missing Authentication Token")
    match = _AUTHORIZATION.fullmatch(found["authorization"])
    if match is None:
        raise Refused("IncompleteSignatureException", f"not a signature: {found['authorization'][:80]}")
    key, day, region, service, names, signature = match.groups()
    if key not in account.keys:
        raise Refused("UnrecognizedClientException", "The security token included in the request is invalid.")
    secret, token = account.keys[key]
    if found.get("x-amz-security-token", "") != token:
        raise Refused("UnrecognizedClientException", "The security token included in the request is invalid.")
    _check_scope(account, found, day, region, service, now or datetime.now(UTC))
    signed = names.split(";")
    _check_names(headers, signed)
    digest = hashlib.sha256(body).hexdigest()
    if found.get("x-amz-content-sha256", digest) != digest:
        raise Refused("InvalidSignatureException", "The provided x-amz-content-sha256 does not match the body.")
    asked = "\n".join(
        [
            method,
            _path(target.partition("?")[0]),
            _query(target.partition("?")[2]),
            *(f"{name}:{found[name]}" for name in signed),
            "",
            names,
            digest,
        ]
    )
    scope = f"{day}/{region}/{service}/aws4_request"
    said = "\n".join(("AWS4-HMAC-SHA256", found["x-amz-date"], scope, hashlib.sha256(asked.encode()).hexdigest()))
    derived = f"AWS4{secret}".encode()
    for part in (day, region, service, "aws4_request", said):
        derived = hmac.digest(derived, part.encode(), "sha256")
    if derived.hex() != signature:
        raise Refused(
            "InvalidSignatureException",
            f"The request signature we calculated does not match the signature you provided. Canonical: {asked!r}",
        )
    if key in account.expired:
        raise Refused("ExpiredTokenException", "The security token included in the request is expired")
    return key


def _values(headers: Fields) -> dict[str, str]:
    """By lower-case name: values of one name joined by commas, runs of blanks as one."""
    found: dict[str, str] = {}
    for raw_name, raw_value in headers:
        name, value = raw_name.decode("latin-1").lower(), re.sub(" +", " ", raw_value.decode("latin-1").strip())
        found[name] = f"{found[name]},{value}" if name in found else value
    return found


def _check_scope(account: Account, found: dict[str, str], day: str, region: str, service: str, now: datetime) -> None:
    if (region, service) != (account.region, account.service):
        words = f"Credential should be scoped to a valid region and service, got {region}/{service}"
        raise Refused("InvalidSignatureException", words)
    date = found.get("x-amz-date", "")
    if re.fullmatch(r"\d{8}T\d{6}Z", date) is None or not date.startswith(day):
        raise Refused("IncompleteSignatureException", f"Date must be in x-amz-date and in the scope, got {date!r}")
    signed_at = datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    if abs(now - signed_at) > SKEW:
        raise Refused("InvalidSignatureException", f"Signature expired: {date} is not near {now:%Y%m%dT%H%M%SZ}")


def _check_names(headers: Fields, signed: list[str]) -> None:
    """`host` and all that AWS itself reads must be signed, and be there once."""
    present = [name.decode("latin-1").lower() for name, _ in headers]
    if signed != sorted(set(signed)):
        raise Refused("IncompleteSignatureException", f"SignedHeaders are not sorted: {signed}")
    must = {"host"} | {name for name in present if name.startswith("x-amz-")}
    if missing := must - set(signed):
        raise Refused("InvalidSignatureException", f"not signed: {', '.join(sorted(missing))}")
    if absent := set(signed) - set(present):
        raise Refused("InvalidSignatureException", f"signed but not sent: {', '.join(sorted(absent))}")
    for name in ("host", "authorization", "x-amz-date", "x-amz-security-token", "content-length"):
        if present.count(name) > 1:
            raise Refused("InvalidSignatureException", f"{name} came {present.count(name)} times")


def _path(sent: str) -> str:
    """The path as it was sent, encoded once more: what came as %3A is %253A, what came as : is %3A."""
    return quote(sent, safe="/-_.~")


def _query(sent: str) -> str:
    pairs = (part.partition("=") for part in sent.split("&") if part)
    return "&".join(sorted(f"{name}={value}" for name, _, value in pairs))
