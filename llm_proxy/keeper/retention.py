"""What becomes of old session files, as far as the policy says: compressed, without their bodies, deleted.

Only files that are ours by name and first line, that nobody has written to for days and that no open call belongs to.
A file is replaced whole, never changed in place, and only while no keeper may write; its time of change stays, so that
it does not become younger. Leaves out when this is done (`loop`).
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

from llm_proxy.keeper.options import Retention
from llm_proxy.keeper.store import Store
from llm_proxy.records import understood
from llm_proxy.records.redaction import without_content
from llm_proxy.sinks import log_reader, session_jsonl
from llm_proxy.sinks.deletions import sync_folder
from llm_proxy.sinks.log_reader import COMPRESSED, PLAIN, WINDOW_LOG
from llm_proxy.sinks.session_jsonl import Entry

# Days without a line after which a session counts as closed.
CLOSED = 2.0
# Measured on logs of coding agents: 16 times smaller for ten calls, 40 for hundreds; higher levels gain a tenth and
# take ten times as long. The long window is for requests that hold megabytes of history.
LEVEL = 6

DAY = 86_400
_AT_ONCE = 1 << 20
_FRAME_HEAD = 18  # bytes: RFC 8878 §3.1.1
# <upstream>/<day>/<id>, as `session_jsonl.place` names them and as imported ones are named.
_OURS = re.compile(r"[^/]+/\d{4}-\d\d-\d\d/([^/]+?)\.jsonl(?:\.zst)?")
# What a file of ours may begin with: the part behind a compressed one begins with anything.
_TYPES = frozenset({"session_start", "fork", "request", "response", "price"})
_SAID = ("body", "chunks", "websocket")
EXPIRED = "expired"  # `left_out` of an entry
REMOVED = "bodies_removed"  # in a file's first entry: bytes of the lines behind it when their bodies were taken out

Kind = Literal["compress", "strip", "delete"]


class Done(NamedTuple):
    """What was done (or would be) to one file. `after` is its size then, None where that is not known before."""

    kind: Kind
    file: str  # relative to the log folder
    before: int
    after: int | None


class File(NamedTuple):
    """A session file: `changed` is its identity, size and time of change."""

    path: str  # relative to the log folder
    size: int
    modified: float
    changed: tuple[int, int, int]


class Changed(Exception):
    """Somebody has written to the file meanwhile, so it is not closed. Nothing was done."""


def run(policy: Retention, root: Path, store: Store, *, now: float | None = None, dry: bool = False) -> Iterator[Done]:
    """Do what the policy says, one file per step. A file that cannot be read or written is passed over.

    Raises OSError, sqlite3.Error, StoreDamaged where nothing can be done at all.
    """
    if policy == Retention():
        return
    moment = time.time() if now is None else now
    hand = _Hand(root, store, dry)
    gone = set()
    for kind, file in plan(policy, _closed(root, store, moment), moment):
        for done in hand.do(kind, file):
            gone |= {done.file} if kind == "delete" else set()
            yield done
    if not policy.max_size:
        return
    # The sizes have changed, and with them what has to go.
    excess = sum(file.size for file in session_files(root) if file.path not in gone) - policy.max_size
    for file in _closed(root, store, moment):
        if excess <= 0:
            return
        for done in hand.do("delete", file) if file.path not in gone else ():
            excess -= done.before
            yield done


def plan(policy: Retention, closed: Iterable[File], now: float) -> Iterator[tuple[Kind, File]]:
    """What is due by age. Decides only."""
    for file in closed:
        days = (now - file.modified) / DAY
        if policy.days and days > policy.days:
            yield "delete", file
            continue
        if policy.bodies_days and days > policy.bodies_days:
            yield "strip", file
        if policy.compress_days and days > policy.compress_days and file.path.endswith(PLAIN):
            yield "compress", file


def session_files(root: Path) -> Iterator[File]:
    for path in log_reader.files(root):
        if _OURS.fullmatch(path) and (file := _look(root, path)) is not None:
            yield file


def _look(root: Path, path: str) -> File | None:
    try:
        found = os.lstat(f"{root}/{path}")
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        return None
    return File(path, found.st_size, found.st_mtime, (found.st_ino, found.st_size, found.st_mtime_ns))


def _closed(root: Path, store: Store, now: float) -> list[File]:
    """Oldest first."""
    busy = store.busy(str(root))
    closed = (file for file in session_files(root) if now - file.modified > CLOSED * DAY and file.path not in busy)
    return sorted(closed, key=lambda file: (file.modified, file.path))


class _Hand:
    """The one that acts. A step that cannot be done leaves the file as it is."""

    def __init__(self, root: Path, store: Store, dry: bool) -> None:
        self._root = root
        self._store = store
        self._dry = dry
        self._acts: dict[Kind, Callable[[File], int]] = {
            "compress": self._compress,
            "strip": self._strip,
            "delete": self._delete,
        }

    def do(self, kind: Kind, planned: File) -> Iterator[Done]:
        file = _look(self._root, planned.path)  # a step before may have changed it
        try:
            if file is None or not _is_due(self._root / file.path, kind):
                return
            after = None if self._dry else self._acts[kind](file)
        except (OSError, ValueError, Changed):
            return
        yield Done(kind, file.path, file.size, 0 if kind == "delete" else after)

    def _delete(self, file: File) -> int:
        path = self._root / file.path
        with self._store.transaction():
            self._must_still_be(file)
            path.unlink()
            for folder in (path.parent, path.parent.parent):
                with suppress(OSError):  # there is something else in it
                    folder.rmdir()
        return 0

    def _compress(self, file: File) -> int:
        """Where a session went on after its file was compressed, the two become one again."""
        plain = self._root / file.path
        target = plain.with_name(plain.name.removesuffix(PLAIN) + COMPRESSED)
        sources = [target, plain] if target.exists() else [plain]
        if len(sources) == 2 and _ends_with(target, plain):  # killed before the last step, the time before
            sources = [target]
        return self._replace(file, target, chain.from_iterable(map(_pieces, sources)), sum(map(_length, sources)))

    def _strip(self, file: File) -> int:
        path = self._root / file.path
        lines = _stripped(path)
        return self._replace(file, path, lines, sum(map(len, lines)))

    def _replace(self, file: File, target: Path, content: Iterable[bytes], size: int) -> int:
        """Write `content`, `size` bytes of it, beside the target, read it back, and put it in its place."""
        draft = target.with_name(f".new-{target.name}")
        draft.unlink(missing_ok=True)
        try:
            written = write_beside(draft, content, size)
            if _hash(_pieces(draft)) != written:
                raise OSError(f"{draft} does not hold what was written to it")
            with self._store.transaction():
                self._must_still_be(file)
                os.utime(draft, ns=(file.changed[2], file.changed[2]))
                draft.replace(target)
                sync_folder(target.parent)
                if target.name != Path(file.path).name:
                    (self._root / file.path).unlink()
        finally:
            draft.unlink(missing_ok=True)
        return target.stat().st_size

    def _must_still_be(self, file: File) -> None:
        """Within a transaction nobody else writes: what is true here stays true."""
        now = _look(self._root, file.path)
        if now is None or now.changed != file.changed or file.path in self._store.busy(str(self._root)):
            raise Changed(file.path)


# --- content


def _is_due(path: Path, kind: Kind) -> bool:
    """Whether a file is ours by its first line, and the bodies are still in it where they are to go."""
    offset, length, entry = next(log_reader.entries(path), (0, 0, {}))
    meta = entry.get("_meta")
    if offset or entry.get("type") not in _TYPES or not isinstance(meta, dict):
        return False
    if meta.get("session") != path.name.partition(".")[0]:
        return False
    return kind != "strip" or entry.get(REMOVED) != _length(path) - length


def _stripped(path: Path) -> list[bytes]:
    """The file's lines without what was said; the first tells how many bytes follow it, and so whether more came."""
    first, *rest = _without_bodies(path)
    lines = [session_jsonl.line(entry) for entry in rest]
    return [session_jsonl.line(dict(sorted((first | {REMOVED: sum(map(len, lines))}).items()))), *lines]


def _without_bodies(path: Path) -> Iterator[Entry]:
    """Lines that are no entries go too: nobody knows what they say."""
    requests: dict[str, Entry] = {}
    for _, _, entry in log_reader.entries(path):
        kind, meta = entry.get("type"), entry.get("_meta")
        call = str(meta.get("request_id")) if isinstance(meta, dict) else ""
        if kind == "request":
            requests[call] = entry
        elif kind == "response":
            request = requests.pop(call, {})
            if "digest" not in entry:  # a log of old: what follows from the bodies is to stay
                facts = understood.facts(understood.understand(request, entry))
                entry = dict(sorted((entry | {"digest": facts}).items())) if facts else entry
        yield _without_body(entry) if any(name in entry for name in _SAID) else entry


def _without_body(entry: Entry) -> Entry:
    try:
        if isinstance(entry.get("websocket", {}), dict):
            return without_content(entry, EXPIRED)
    except (AttributeError, TypeError):
        pass
    # No entry of ours, whatever it says: it must not stay.
    return without_content({name: value for name, value in entry.items() if name != "websocket"}, EXPIRED)


def _pieces(path: Path) -> Iterator[bytes]:
    with log_reader.opened(path) as file:
        while data := file.read(_AT_ONCE):
            yield data


def _length(path: Path) -> int:
    """Bytes of the lines, which a frame's head tells."""
    if not path.name.endswith(COMPRESSED):
        return path.stat().st_size
    zstd = log_reader.zstandard()
    with path.open("rb") as file:
        try:
            told: int | None = zstd.get_frame_info(file.read(_FRAME_HEAD)).decompressed_size
        except zstd.ZstdError as error:
            raise OSError(f"{path} is damaged: {error}") from error
    return sum(map(len, _pieces(path))) if told is None else told


def _hash(pieces: Iterable[bytes]) -> bytes:
    seen = sha256()
    for data in pieces:
        seen.update(data)
    return seen.digest()


def _ends_with(longer: Path, shorter: Path) -> bool:
    behind = _length(longer) - shorter.stat().st_size
    if behind < 0:
        return False
    with log_reader.opened(longer) as file:
        file.seek(behind)
        return _hash(iter(lambda: file.read(_AT_ONCE), b"")) == _hash(_pieces(shorter))


def write_beside(draft: Path, content: Iterable[bytes], size: int) -> bytes:
    """The hash of what was written, all of it on disk."""
    seen = sha256()
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as out:
        packer = _packer(size) if draft.name.endswith(COMPRESSED) else None
        try:
            for data in content:
                seen.update(data)
                out.write(packer.compress(data) if packer else data)
            out.write(packer.flush() if packer else b"")
        except log_reader.zstandard().ZstdError as error:  # not as long as it was: somebody has written to it
            raise Changed(str(draft)) from error
        out.flush()
        os.fsync(out.fileno())
    return seen.digest()


def _packer(size: int) -> Any:
    """One frame; who reads it needs memory for its window, so that is no longer than the file."""
    zstd = log_reader.zstandard()
    name = zstd.CompressionParameter
    options = {
        name.compression_level: LEVEL,
        name.window_log: min(WINDOW_LOG, max(10, size.bit_length())),
        name.enable_long_distance_matching: 1,
        name.checksum_flag: 1,
    }
    packer = zstd.ZstdCompressor(options=options)
    packer.set_pledged_input_size(size)
    return packer
