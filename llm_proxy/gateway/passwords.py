"""Passwords: which are too weak, how they are kept, and that checking one costs the same whoever asks for whom.

They are kept as argon2id (RFC 9106), computed in two threads with a short queue, because each takes 19 MiB and some
50 ms. Hashes of bcrypt, which TokenTracer wrote, are checked too, and replaced at the next login. Leaves out accounts.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import argon2
import bcrypt

from llm_proxy.gateway.common_passwords import COMMON
from llm_proxy.gateway.refusals import Refusal

SHORTEST, LONGEST = 8, 128  # characters
AT_ONCE, WAITING = 2, 50

_ARGON2: Final = argon2.PasswordHasher(time_cost=3, memory_cost=19_456, parallelism=1)  # KiB
_OLD_COST: Final = 10  # of TokenTracer's bcrypt
_OLD_LONGEST: Final = 72  # bytes that bcrypt takes
_ENDINGS: Final = "0123456789!?.,:;#$%&*+-_=@ "

Given = TypeVar("Given")


class Passwords:
    """`close` it."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(AT_ONCE, "password")
        self._under_way = 0

    async def hash(self, password: str) -> str:
        """Raises Refusal 429 when too many wait."""
        return await self._computed(lambda: _ARGON2.hash(_bytes(password)))

    async def verify(self, password: str, stored: str | None, *, old: bool) -> bool:
        """Whether it is the one. `stored` is None for nobody's; `old` says whether the store has hashes of bcrypt.

        Raises Refusal 429 when too many wait.
        """
        return await self._computed(lambda: _verify(password, stored or "", old=old))

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _computed(self, work: Callable[[], Given]) -> Given:
        if self._under_way >= AT_ONCE + WAITING:
            words = "too many people sign in at once; try again in 2 s"
            raise Refusal(429, "busy", words, headers={"Retry-After": "2"})
        self._under_way += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._under_way -= 1


def outdated(stored: str) -> bool:
    """Whether it should be hashed anew, now that the password is at hand."""
    return not _is_argon2(stored) or _ARGON2.check_needs_rehash(stored)


def is_old(stored: str) -> bool:
    """Whether it is bcrypt's."""
    return stored.startswith(("$2a$", "$2b$", "$2y$"))


def check(password: str, email: str) -> None:
    """Raises Refusal 400 for one that is too easily guessed, or too long to be one."""
    if len(password) < SHORTEST:
        raise _weak(f"a password has at least {SHORTEST} characters, this one {len(password)}")
    if len(password) > LONGEST:
        raise _weak(f"a password has at most {LONGEST} characters, this one {len(password)}")
    plain = unicodedata.normalize("NFKC", password).casefold()
    if plain in COMMON or plain.rstrip(_ENDINGS) in COMMON:
        raise _weak("this password is among the first that are guessed; take another")
    if len(set(plain)) < 4:
        raise _weak("this password repeats the same few characters; take another")
    if plain.rstrip(_ENDINGS) in {email, email.partition("@")[0]}:
        raise _weak("this password is your e-mail address; take another")


def _weak(words: str) -> Refusal:
    return Refusal(400, "weak_password", words, param="password")


def _bytes(password: str) -> bytes:
    """The same characters may be typed in more than one encoding of them (NIST SP 800-63B 3.1.1.2)."""
    return unicodedata.normalize("NFKC", password).encode()


def _is_argon2(stored: str) -> bool:
    return stored.startswith("$argon2id$")


def _verify(password: str, stored: str, *, old: bool) -> bool:
    """One argon2 and, if there are `old` hashes, one bcrypt, whichever counts and whether or not any does."""
    modern = stored if _is_argon2(stored) else _NOBODYS
    good = _matches(modern, password) and modern is stored
    if old:
        former = stored if is_old(stored) else _NOBODYS_OLD
        good |= _old_matches(former, password) and former is stored
    return good


def _matches(stored: str, password: str) -> bool:
    try:
        return _ARGON2.verify(stored, _bytes(password))
    except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
        return False


def _old_matches(stored: str, password: str) -> bool:
    plain = password.encode()
    try:
        return bcrypt.checkpw(plain[:_OLD_LONGEST], stored.encode()) and len(plain) <= _OLD_LONGEST
    except ValueError:
        return False


def _nobodys() -> str:
    """A hash that no password has, and that costs what ours cost."""
    salt, hashed = (
        base64.b64encode(secrets.token_bytes(size)).decode().rstrip("=")
        for size in (_ARGON2.salt_len, _ARGON2.hash_len)
    )
    cost = f"m={_ARGON2.memory_cost},t={_ARGON2.time_cost},p={_ARGON2.parallelism}"
    return f"$argon2id$v=19${cost}${salt}${hashed}"


_NOBODYS: Final = _nobodys()
_NOBODYS_OLD: Final = f"$2a${_OLD_COST}$" + "." * 53
