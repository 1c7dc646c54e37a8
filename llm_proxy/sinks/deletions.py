"""The files by which it is handed on whose conversations are to be deleted: from the gateway to keeper and lanes.

`ID.ask` is the gateway's question, `ID.done` the keeper's answer. Where sinks have to be rid of something too, the
keeper says by `ID.logs` that the session logs are, and by `ID.calls` of which calls; `ID.SINK@LANES` is a sink's
answer. Leaves out deleting (`keeper.deleting`, `lanes.deleting`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

ASK, PART, LOGS, CALLS, DONE = ".ask", ".part", ".logs", ".calls", ".done"


class Order(msgspec.Struct, frozen=True):
    """`before` is in nanoseconds since 1970. `id` names its files. `logs` is the log folder meant, "" for any."""

    id: str
    account: str
    before: int
    logs: str = ""

    def means(self, root: Path) -> bool:
        return not self.logs or Path(self.logs).absolute() == root.absolute()


class Report(msgspec.Struct, frozen=True):
    """`at` is in seconds since 1970; `left` says what could not be deleted, "" where that is nothing."""

    at: float
    conversations: int
    left: str


_read_order = msgspec.json.Decoder(Order).decode


def orders(folder: Path) -> Iterator[tuple[Order, set[str]]]:
    """What is asked and not answered yet, with the endings of all its files. Raises OSError."""
    try:
        names = sorted(one.name for one in os.scandir(folder))
    except FileNotFoundError:
        return
    files: dict[str, set[str]] = {}
    for name in names:
        id, dot, ending = name.partition(".")
        files.setdefault(id, set()).add(dot + ending)
    for id, endings in files.items():
        if ASK in endings and DONE not in endings:
            with suppress(OSError, msgspec.MsgspecError):  # taken back, or none of the gateway's
                order = _read_order((folder / (id + ASK)).read_bytes())
                if order.account and order.id == id:
                    yield order, endings


def rules(asked: Iterable[Order]) -> dict[str, int]:
    """Account -> the moment before which its calls were begun that are to go."""
    found: dict[str, int] = {}
    for order in asked:
        found[order.account] = max(order.before, found.get(order.account, 0))
    return found


def answer(sink: str, lanes: str) -> str:
    """The ending of a sink's answer, which says in words what it cannot delete."""
    return f".{sink}@{lanes}"


def add_calls(path: Path, ids: Iterable[str]) -> None:
    """To stay, whatever is killed: behind a line that was torn off too. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "ab") as file:
        file.write("".join(f"\n{id}" for id in ids).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def calls(path: Path) -> Iterator[str]:
    with suppress(FileNotFoundError), path.open(encoding="ascii", errors="replace") as file:
        yield from filter(None, map(str.strip, file))


def put(path: Path, data: bytes) -> None:
    """Whole or not at all. Raises OSError."""
    draft = path.with_name(f"{path.name}.new")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
