"""Provider keys at rest: AES-256-GCM, every row under a key of its own and bound to its place in the store.

The row's key is derived from the encryption key (HKDF-SHA256, RFC 5869) for one purpose and place, and the place is
authenticated too, so a ciphertext that is moved to another row, column, table or user does not open. Rows that
TokenTracer wrote (`TOKENTRACER`) are read, never written. Leaves out writing rows and rotation (`rotating`).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy import select

from llm_proxy.gateway.facts import ProviderKey
from llm_proxy.gateway.store.schema import facts, provider_keys

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from llm_proxy.gateway.options import Secrets
    from llm_proxy.gateway.store.database import Store

TOKENTRACER, OURS = 0, 1  # `key_version`
CANARY: Final = "canary"  # its name among the facts
REMEMBERED = 4096  # opened keys, in memory
_NONCE, _TAG = 12, 16  # bytes; NIST SP 800-38D: 96 bits, at random
_LABEL: Final = b"llm-proxy gateway"
_SINGS: Final = "this store belongs to this encryption key"


class Unreadable(Exception):
    """A sealed text opens with none of the keys. The row is as it was."""


class WrongKey(Exception):
    """The encryption key is not the one the store was written with. Nothing was read or changed."""


class Sealed(NamedTuple):
    """What a row keeps: the text in base64, by which scheme, and which encryption key, by its digest's beginning."""

    text: str
    version: int
    key_id: str


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a sealed text stands, and for whom."""

    table: str
    column: str
    user: int
    row: int

    def bound(self, version: int) -> bytes:
        return _said(self.table, self.column, self.user, self.row, version)

    def info(self, purpose: str) -> bytes:
        return _said(purpose, self.table, self.column, self.row)


_OF_CANARY: Final = _Place("facts", "value", 0, 0)


def _of_key(row: int, user: int) -> _Place:
    return _Place("provider_keys", "encrypted_key", user, row)


def _said(*parts: str | int) -> bytes:
    return "\0".join(str(part) for part in parts).encode()


class _Key:
    """One encryption key: any text, best one that nobody can guess."""

    def __init__(self, secret: str) -> None:
        if not secret.strip():
            raise WrongKey("the encryption key is empty; set ENCRYPTION_KEY")
        self._secret = secret.encode("utf-8", "surrogateescape")
        self._of_tokentracer = AESGCM(hashlib.sha256(self._secret).digest())
        self.id = self._derived(b"key id", 8).hex()

    def _derived(self, info: bytes, length: int = 32) -> bytes:
        return HKDF(SHA256(), length, _LABEL, info).derive(self._secret)

    def _cipher(self, place: _Place) -> AESGCM:
        return AESGCM(self._derived(place.info("seal")))

    def seal(self, text: str, place: _Place) -> Sealed:
        nonce = os.urandom(_NONCE)
        closed = self._cipher(place).encrypt(nonce, text.encode(), place.bound(OURS))
        return Sealed(base64.b64encode(nonce + closed).decode(), OURS, self.id)

    def open(self, data: bytes, place: _Place, version: int) -> str:
        """Raises InvalidTag."""
        if version == OURS:
            cipher, bound = self._cipher(place), place.bound(version)
        else:
            cipher, bound = self._of_tokentracer, None
        return cipher.decrypt(data[:_NONCE], data[_NONCE:], bound).decode()


@dataclass(slots=True)
class Sealer:
    """Seals under the encryption key, opens what that one or an older one has sealed.

    `others` gives the keys there are by now, the current one first: a rotation goes on while this process runs.
    """

    secrets: Secrets = field(repr=False)
    others: Callable[[], Sequence[str]] = tuple
    failures: int = field(init=False, default=0)  # how often a key was wanted that does not open
    _keys: tuple[_Key, ...] = field(init=False, repr=False)
    _opened: dict[tuple[int, int, int, str], str] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._keys = tuple(map(_Key, (self.secrets.encryption_key, *self.secrets.old_encryption_keys)))

    @property
    def key_id(self) -> str:
        """That of what is sealed now."""
        return self._keys[0].id

    @property
    def key_ids(self) -> frozenset[str]:
        """Those of all that can be opened."""
        return frozenset(key.id for key in self._keys)

    def seal(self, text: str, *, row: int, user: int) -> Sealed:
        """A provider's key for `provider_keys.encrypted_key` of one row, whose owner is `user`."""
        return self._keys[0].seal(text, _of_key(row, user))

    def open(self, key: ProviderKey) -> str:
        """The provider's key in clear. Raises Unreadable."""
        try:
            return self.unsealed(key.sealed, row=key.id, user=key.user_id, version=key.key_version)
        except Unreadable:
            self.failures += 1
            raise

    def unsealed(self, text: str, *, row: int, user: int, version: int) -> str:
        """What `seal` was given for this place. Raises Unreadable."""
        known = (row, user, version, text)
        opened = self._opened.get(known)
        if opened is None:
            opened, _ = self._open(text, _of_key(row, user), version)
            if len(self._opened) >= REMEMBERED:
                self._opened.clear()
            self._opened[known] = opened
        return opened

    def canary(self) -> str:
        """A text that opens under this encryption key only."""
        return self._keys[0].seal(_SINGS, _OF_CANARY).text

    def check_canary(self, text: str) -> str:
        """The id of the key, of ours, that it was sealed with. Raises WrongKey."""
        try:
            return self._open(text, _OF_CANARY, OURS)[1]
        except Unreadable:
            raise WrongKey(
                "the store was written with another encryption key: set ENCRYPTION_KEY to that one, or, where it is "
                "being replaced, OLD_ENCRYPTION_KEYS beside the new one"
            ) from None

    def _open(self, sealed: str, place: _Place, version: int) -> tuple[str, str]:
        """The text, and the id of the key that opened it. Raises Unreadable."""
        if version not in (TOKENTRACER, OURS):
            raise Unreadable(f"it was encrypted in a way (version {version}) that this program does not know")
        data = _decoded(sealed)
        if len(data) < _NONCE + _TAG:
            raise Unreadable("the store has no encrypted text of it")
        for again in (False, True):
            if again and not self._learn():
                break
            for key in self._keys:
                try:
                    return key.open(data, place, version), key.id
                except (InvalidTag, UnicodeDecodeError):
                    continue
        raise Unreadable("it opens with none of the encryption keys, or was altered")

    def _learn(self) -> bool:
        """Whether there are keys by now that were not there."""
        found = tuple(map(_Key, self.others()))
        if {key.id for key in found} <= self.key_ids:
            return False
        known = {key.id for key in found}
        self._keys = (*found, *(key for key in self._keys if key.id not in known))
        return True


def _decoded(text: str) -> bytes:
    """The bytes, empty for anything but their one spelling."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""
    return data if base64.b64encode(data).decode() == text else b""


# --- the store's canary


async def guard(store: Store, sealer: Sealer) -> None:
    """Writes the canary into an empty store, else holds the encryption key against it. Raises WrongKey."""
    async with store.reading() as connection:
        canary = await _canary(connection)
        if canary is not None:
            sealer.check_canary(canary)
        await _know(connection, sealer)
    if canary is None:
        async with store.writing() as connection:
            row = store.insert(facts).values(name=CANARY, value=sealer.canary())
            await connection.execute(row.on_conflict_do_nothing())  # another machine may have been first
            sealer.check_canary(await _canary(connection) or "")


async def hold(connection: AsyncConnection, sealer: Sealer) -> None:
    """Before sealing, in the same transaction: a rotation ends after it, or has ended and is noticed. Raises WrongKey.

    So no row is written under a key that a rotation has done away with while this process ran on.
    """
    sealer.check_canary(await _canary(connection, hold=True) or "")


async def _canary(connection: AsyncConnection, *, hold: bool = False) -> str | None:
    query = select(facts.c.value).where(facts.c.name == CANARY)
    found: str | None = await connection.scalar(query.with_for_update(read=True) if hold else query)
    return found


async def _know(connection: AsyncConnection, sealer: Sealer) -> None:
    """Raises WrongKey for rows under keys we have not: an unfinished rotation needs both."""
    rows = await connection.scalars(
        select(provider_keys.c.key_id).where(provider_keys.c.key_version == OURS).distinct()
    )
    strange = set(rows) - {*sealer.key_ids, ""}
    if strange:
        raise WrongKey(
            f"provider keys in the store are encrypted with keys that were not given (by their ids: "
            f"{', '.join(sorted(strange))}); set OLD_ENCRYPTION_KEYS to them, or finish the rotation that was begun"
        )
