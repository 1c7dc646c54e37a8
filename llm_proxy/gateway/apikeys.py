"""The tokens we give out: API keys `llmp_…` and invitations `llmi_…`, and how a mistyped one is told without the store.

A token is a prefix, 43 random characters of base 62 (256 bits) and six of checksum: the CRC-32 of all before it, in
base 62. Whoever holds the store holds SHA-256 of tokens, never one of them; 256 random bits need no slower hash.

Leaves out rows (`manage.auth`, `identity`).
"""

from __future__ import annotations

import secrets
from hashlib import sha256
from typing import Final
from zlib import crc32

KEY: Final = "llmp_"
INVITATION: Final = "llmi_"
LENGTH: Final = 5 + 43 + 6

_BASE62: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_RANDOM, _CHECK = 43, 6
_SHOWN: Final = 12


def new(prefix: str) -> str:
    """A token that nobody can guess."""
    start = prefix + "".join(secrets.choice(_BASE62) for _ in range(_RANDOM))
    return start + _checksum(start)


def genuine(token: str, prefix: str) -> bool:
    """Whether it may be one of ours: its form and its checksum are right."""
    if len(token) != LENGTH or not token.startswith(prefix) or not token.isascii() or not token[5:].isalnum():
        return False
    return _checksum(token[:-_CHECK]) == token[-_CHECK:]


def digest(token: str) -> str:
    """What the store knows it by: SHA-256, hexadecimal."""
    return sha256(token.encode()).hexdigest()


def shown(token: str) -> str:
    """How it is called in lists: its beginning, which opens nothing."""
    return token[:_SHOWN]


def _checksum(text: str) -> str:
    left, digits = crc32(text.encode()), ""
    for _ in range(_CHECK):
        left, digit = divmod(left, 62)
        digits = _BASE62[digit] + digits
    return digits
