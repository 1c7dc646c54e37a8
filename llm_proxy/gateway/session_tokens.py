"""What a session is proved by: a short token for each request, a longer one to renew it, or a browser's cookie, which
holds as long as the session. All are JWTs of ours alone.

HS256 is the only algorithm, said here and not by the token: its head must be ours to the letter, so `kid`, `jku` and
`jwk` lead nowhere. The kinds have keys of their own, derived from the secret, besides their audiences; so none
passes for another, nor does a token that TokenTracer signed with the secret itself. Leaves out whether the session
still is (`identity`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import uuid4

import jwt
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

LIFETIME: Final = timedelta(minutes=15)  # of the short one
SESSION: Final = timedelta(days=30)  # of the longer one, renewed or not
LONGEST: Final = 4096  # characters of any token that is looked at

_ALGORITHM: Final = "HS256"
_HEAD: Final = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9."  # {"alg":"HS256","typ":"JWT"}
_ISSUER: Final = "llm-proxy"
# audiences, and what keys are derived for
_ACCESS, _REFRESH, _BROWSER = "llm-proxy gateway", "llm-proxy gateway refresh", "llm-proxy gateway browser"
_LEEWAY: Final = 10  # seconds that the clocks of two machines may differ
_LATEST: Final = 1 << 36  # seconds after 1970, which a datetime can say
_BLOCK: Final = 64  # bytes of SHA-256's input


class BadToken(Exception):
    """It proves nothing. `expired` is one that did."""

    def __init__(self, words: str, *, expired: bool = False) -> None:
        super().__init__(words)
        self.expired = expired


@dataclass(frozen=True, slots=True)
class Claims:
    user_id: int
    session_id: str
    expires_at: datetime


class SessionTokens:
    """Makes and reads them. Raises BadToken where there is nothing to read."""

    def __init__(self, secret: str) -> None:
        self._keys = {purpose: _derived(secret, purpose) for purpose in (_ACCESS, _REFRESH, _BROWSER)}
        # RFC 2104: a short key is filled up with zeros in any case; so it is not short by the library's measure
        self._plain = secret.encode().ljust(_BLOCK, b"\0")

    def access(self, user_id: int, session_id: str, at: datetime) -> str:
        return self._made(_ACCESS, user_id, session_id, at, at + LIFETIME)

    def refresh(self, user_id: int, session_id: str, at: datetime, until: datetime) -> str:
        return self._made(_REFRESH, user_id, session_id, at, until)

    def browser(self, user_id: int, session_id: str, at: datetime) -> str:
        return self._made(_BROWSER, user_id, session_id, at, at + SESSION)

    def of_browser(self, token: str) -> Claims:
        return self._read(_BROWSER, token, SESSION)

    def of_access(self, token: str) -> Claims:
        return self._read(_ACCESS, token, LIFETIME)

    def of_refresh(self, token: str) -> Claims:
        return self._read(_REFRESH, token, SESSION)

    def of_old_key(self, token: str) -> datetime:
        """Until when an API key of TokenTracer's holds, if the store has it too."""
        claims = _decoded(token, self._plain, ("exp", "iat", "sub"), verify_sub=False, verify_aud=False)
        if claims.get("scope") != "api_key":
            raise BadToken("it is not an API key")
        return datetime.fromtimestamp(claims["exp"], UTC)

    def _made(self, purpose: str, user_id: int, session_id: str, at: datetime, until: datetime) -> str:
        claims = {
            "iss": _ISSUER,
            "aud": purpose,
            "sub": str(user_id),
            "sid": session_id,
            "jti": uuid4().hex,
            "iat": int(at.timestamp()),
            "exp": int(until.timestamp()),
        }
        return jwt.encode(claims, self._keys[purpose], _ALGORITHM)

    def _read(self, purpose: str, token: str, longest: timedelta) -> Claims:
        key = self._keys[purpose]
        required = ("exp", "iat", "sub", "jti", "sid", "iss", "aud")
        claims = _decoded(token, key, required, audience=purpose, issuer=_ISSUER, strict_aud=True)
        # A signed token that we would write otherwise (claims twice, other spelling of base 64) is not one of ours.
        if jwt.encode(claims, key, _ALGORITHM) != token:
            raise BadToken("it is not spelt as ours are")
        user, session = claims["sub"], claims["sid"]
        if not (user.isascii() and user.isdigit() and len(user) <= 18 and isinstance(session, str)):
            raise BadToken("it names nobody")
        if claims["exp"] - claims["iat"] > longest.total_seconds():
            raise BadToken("it holds for longer than ours do")
        return Claims(int(user), session, datetime.fromtimestamp(claims["exp"], UTC))


def _derived(secret: str, purpose: str) -> bytes:
    return HKDF(SHA256(), 32, salt=None, info=purpose.encode()).derive(secret.encode())


def _decoded(
    token: str,
    key: bytes,
    required: tuple[str, ...],
    *,
    audience: str | None = None,
    issuer: str | None = None,
    **checks: bool,
) -> dict[str, Any]:
    if len(token) > LONGEST or not token.startswith(_HEAD):
        raise BadToken("it is no token of ours")
    options: Any = {"require": list(required), **checks}
    try:
        claims = jwt.decode(
            token, key, algorithms=[_ALGORITHM], audience=audience, issuer=issuer, leeway=_LEEWAY, options=options
        )
    except jwt.ExpiredSignatureError:
        raise BadToken("it has expired", expired=True) from None
    except (jwt.InvalidTokenError, ValueError, RecursionError) as error:
        raise BadToken(str(error)) from None
    if not all(isinstance(claims[name], int) and claims[name] < _LATEST for name in ("exp", "iat")):
        raise BadToken("its times are none")
    return claims
