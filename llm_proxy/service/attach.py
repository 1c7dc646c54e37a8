"""Attach clients to the daemon: edit their own configuration, and be able to undo it exactly.

`attached.json` in the state folder is written before a file is. It holds no copy of the file, which may hold
credentials, but the exact undo of each edit and the digest of the bytes before and after. So after a crash at any
point each file is found to be as before, as after, or changed by its owner meanwhile; then the values are undone one
by one, and only those that are still ours. Leaves out what a client needs (`clients`) and the formats.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from llm_proxy import paths
from llm_proxy.errors import CannotAttach, StateUnusable
from llm_proxy.service import state, userfile
from llm_proxy.service.attached import JOURNAL
from llm_proxy.service.clients import CLIENTS, FORMATS, Plan, Wish, client_called
from llm_proxy.service.formats.base import Found, Keys, NotEditable, Value

LOCK_PATIENCE = 10.0  # seconds; an edit takes milliseconds
_VERSION = 1
_BOM = "\ufeff"
_PORT = re.compile(r"\Ahttp://127\.0\.0\.1:[0-9]{1,5}(?=/)")


@dataclass(frozen=True, slots=True)
class Splice:
    """One step of an edit: at character `at`, `new` took the place of `old`."""

    at: int
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Image:
    """The digests of the file before and after an edit ("" where there is no file), and the edit."""

    before: str
    after: str
    splices: tuple[Splice, ...]


@dataclass(frozen=True, slots=True)
class Held:
    """A value we wrote, the source of the one it replaced, and how many keys of its path were there."""

    keys: Keys
    value: Value
    had: str | None
    depth: int


@dataclass(frozen=True, slots=True)
class Edit:
    """One file as we edited it. The last image is the one that holds; an older one only until the file is written."""

    path: str
    format: str
    existed: bool
    folders: tuple[str, ...]  # made for it
    held: tuple[Held, ...]
    images: tuple[Image, ...]


@dataclass(frozen=True, slots=True)
class Attachment:
    client: str
    port: int
    edits: tuple[Edit, ...]


class Journal(msgspec.Struct, frozen=True):
    version: int
    attachments: tuple[Attachment, ...]


@dataclass(frozen=True, slots=True)
class File:
    """What was done, or would be, to one file: "changed", "unchanged", "removed" or "created", and to which keys."""

    path: str
    done: str
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """One client after a command. `state`: "attached", "detached" or "failed", then `error` says why."""

    client: str
    state: str
    port: int = 0
    files: tuple[File, ...] = ()
    note: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Standing:
    """A client in the list: "detached", "attached", "changed" (not ours any more) or "unfinished" (by a crash)."""

    client: str
    state: str
    port: int = 0
    files: tuple[str, ...] = ()


def attach(folder: str, name: str, wish: Wish, *, dry: bool = False) -> Report:
    """Point a client at the daemon on `wish.port`. Doing it again changes nothing. Raises UsageError, CannotAttach."""
    client = client_called(name)
    plans = client.plans(wish)
    with _locked(folder, dry):
        attachments = load(folder)
        known = {edit.path: edit for a in attachments if a.client == client.name for edit in a.edits}
        places = [userfile.located(plan.path, plan.within, paths.home()) for plan in plans]
        elsewhere = [edit for path, edit in known.items() if path not in places]
        drafts = [_edited(plan, place, known.get(place)) for plan, place in zip(plans, places, strict=True)]
        attachment = Attachment(client.name, wish.port, tuple(edit for edit, _, _ in drafts))
        if not dry:
            for edit in elsewhere:  # its folder was moved by a variable: the old place is given back
                _give_back(edit)
            _perform(folder, attachments, attachment, [(edit, data) for edit, data, _ in drafts])
        return Report(client.name, "attached", wish.port, tuple(file for _, _, file in drafts), client.note)


def detach(folder: str, names: Sequence[str] | None = None, *, dry: bool = False) -> list[Report]:
    """Give the files of these clients, or of all, back as they were. What cannot be stays attached and is reported."""
    with _locked(folder, dry):
        attachments = load(folder)
        wanted = [a.client for a in attachments] if names is None else [client_called(name).name for name in names]
        reports = []
        for client in wanted:
            attachment = next((a for a in attachments if a.client == client), None)
            if attachment is None:
                reports.append(Report(client, "detached"))
                continue
            try:
                files = tuple(_give_back(edit, dry=dry) for edit in attachment.edits)
            except CannotAttach as exc:
                reports.append(Report(client, "failed", attachment.port, error=str(exc)))
                continue
            attachments = tuple(a for a in attachments if a.client != client)
            if not dry:
                _save(folder, attachments)
            reports.append(Report(client, "detached", files=files))
        return reports


def follow(folder: str, port: int) -> list[Report]:
    """Lead every attached client to the daemon's port, after it moved or an edit was cut short."""
    if not load(folder):
        return []
    with _locked(folder, dry=False):
        reports = []
        for attachment in load(folder):
            unfinished = any(len(edit.images) > 1 for edit in attachment.edits)
            if attachment.port != port or unfinished:
                reports.append(_follow(folder, attachment, port))
        return reports


def standings(folder: str) -> list[Standing]:
    """Every client we know and how it stands, read from its files as they are now."""
    attachments = {a.client: a for a in load(folder)}
    return [_standing(attachments[name]) if name in attachments else Standing(name, "detached") for name in CLIENTS]


def load(folder: str) -> tuple[Attachment, ...]:
    """The journal. Raises StateUnusable where there is one that cannot be read: it is needed to undo."""
    path = Path(folder, JOURNAL)
    try:
        journal = msgspec.json.decode(path.read_bytes(), type=Journal)
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as exc:
        raise StateUnusable(f"{path} cannot be read ({exc}); the clients' files named in it are untouched") from exc
    if journal.version != _VERSION:
        raise StateUnusable(f"{path} is of version {journal.version}, not {_VERSION}: written by another llm-proxy")
    return journal.attachments


def _edited(plan: Plan, path: str, known: Edit | None) -> tuple[Edit, bytes | None, File]:
    """The edit, the bytes it gives, and words. Begins from what the owner's file would be without us."""
    userfile.check(path)
    now = userfile.read(path)
    base = now if known is None else _restored(known, now)
    text, held, splices = _decoded(path, base), [], []
    for keys, value in plan.values:
        found, after = _put(path, plan.format, text, keys, value)
        held.append(Held(keys, value, found.raw, found.depth))
        splices.append(_splice(text, after))
        text = after
    data = text.encode()
    image = Image(_digest(base), _digest(data), tuple(splices))
    edit = Edit(
        path,
        plan.format,
        known.existed if known else base is not None,
        known.folders if known else userfile.missing_folders(path),
        tuple(held),
        (*(known.images if known else ()), image),
    )
    done = "unchanged" if data == now else "changed" if now is not None else "created"
    return edit, (None if data == now else data), File(path, done, tuple(".".join(h.keys) for h in held))


def _put(path: str, form: str, text: str, keys: Keys, value: Value) -> tuple[Found, str]:
    """What was there, and the text with the value, read back once."""
    format = FORMATS[form]
    mark, text = (_BOM, text[1:]) if text.startswith(_BOM) else ("", text)
    try:
        found = format.look(text, keys)
        after = format.put(text, keys, format.raw(value))
        written = format.look(after, keys).raw
        if written is None or format.value(written) != value:
            raise NotEditable(f"{'.'.join(keys)} does not read back as written")
    except NotEditable as exc:
        raise CannotAttach(f"{path} is left as it is: {exc}") from exc
    return found, mark + after


def _perform(
    folder: str, attachments: Sequence[Attachment], attachment: Attachment, writes: Sequence[tuple[Edit, bytes | None]]
) -> None:
    """Journal, files, journal. If a file cannot be written the others are given back."""
    others = [a for a in attachments if a.client != attachment.client]
    _save(folder, [*others, attachment])
    try:
        for edit, data in writes:
            if data is not None:
                userfile.replace(edit.path, data)
    except CannotAttach:
        for edit, _ in writes:
            _give_back(edit)
        _save(folder, others)
        raise
    finished = tuple(replace(edit, images=edit.images[-1:]) for edit in attachment.edits)
    _save(folder, [*others, replace(attachment, edits=finished)])


def _follow(folder: str, attachment: Attachment, port: int) -> Report:
    """The values that are still ours, at the new port; the owner's stay."""
    try:
        drafts = []
        for edit in attachment.edits:
            ours = _ours(edit, userfile.read(edit.path))
            moved = tuple((held.keys, _at_port(held.value, port)) for held in ours)
            again, data, file = _edited(Plan(edit.path, "", edit.format, moved), edit.path, edit)
            theirs = tuple(held for held in edit.held if held not in ours)
            drafts.append((replace(again, held=again.held + theirs), data, file))
        edits = tuple(edit for edit, _, _ in drafts)
        writes = [(edit, data) for edit, data, _ in drafts]
        _perform(folder, load(folder), Attachment(attachment.client, port, edits), writes)
    except CannotAttach as exc:
        return Report(attachment.client, "failed", attachment.port, error=str(exc))
    return Report(attachment.client, "attached", port, tuple(file for _, _, file in drafts))


def _give_back(edit: Edit, *, dry: bool = False) -> File:
    """The file without our values. Raises CannotAttach, and then it is as it was."""
    now = userfile.read(edit.path)
    base = _restored(edit, now)
    done = "unchanged" if base == now else "removed" if base is None else "changed"
    if dry:
        return File(edit.path, done, tuple(".".join(held.keys) for held in edit.held))
    userfile.tidy(edit.path)
    if base != now:
        userfile.check(edit.path)
        if base is None:
            userfile.remove(edit.path)
        else:
            userfile.replace(edit.path, base)
    userfile.remove_folders(edit.folders)
    return File(edit.path, done, tuple(".".join(held.keys) for held in edit.held))


def _restored(edit: Edit, now: bytes | None) -> bytes | None:
    """What the file would be without our edit: exactly, or with the owner's later changes kept."""
    digest = _digest(now)
    for image in reversed(edit.images):
        if digest == image.before:
            return now
        if digest == image.after and now is not None:
            text = now.decode()
            for splice in reversed(image.splices):
                text = text[: splice.at] + splice.old + text[splice.at + len(splice.new) :]
            return text.encode() if edit.existed or text else None
    if now is None:
        return None
    format, ours = FORMATS[edit.format], _ours(edit, now)
    text = _decoded(edit.path, now)
    mark, text = (_BOM, text[1:]) if text.startswith(_BOM) else ("", text)
    try:
        for held in reversed(ours):
            if held.had is None:
                text = format.drop(text, held.keys, held.depth)
            else:
                text = format.put(text, held.keys, held.had)
    except NotEditable as exc:
        raise _by_hand(edit, exc) from exc
    return None if not edit.existed and format.blank(text) else (mark + text).encode()


def _ours(edit: Edit, now: bytes | None) -> list[Held]:
    """Those values that still stand in the file as we wrote them, whatever their port. Raises CannotAttach."""
    format, text = FORMATS[edit.format], _decoded(edit.path, now).removeprefix(_BOM)
    ours = []
    try:
        for held in edit.held:
            raw = format.look(text, held.keys).raw
            if raw is not None and _same(format.value(raw), held.value):
                ours.append(held)
    except NotEditable as exc:
        raise _by_hand(edit, exc) from exc
    return ours


def _standing(attachment: Attachment) -> Standing:
    files = tuple(edit.path for edit in attachment.edits)
    try:
        contents = [userfile.read(edit.path) for edit in attachment.edits]
        ours = [len(_ours(edit, now)) == len(edit.held) for edit, now in zip(attachment.edits, contents, strict=True)]
        digests = [_digest(now) for now in contents]
    except CannotAttach:
        return Standing(attachment.client, "changed", attachment.port, files)
    unwritten = [
        digest != edit.images[-1].after and digest in [image.before for image in edit.images]
        for edit, digest in zip(attachment.edits, digests, strict=True)
    ]
    if any(unwritten) or any(len(edit.images) > 1 for edit in attachment.edits):
        return Standing(attachment.client, "unfinished", attachment.port, files)
    return Standing(attachment.client, "attached" if all(ours) else "changed", attachment.port, files)


def _at_port(value: Value, port: int) -> Value:
    """A base URL of ours at another port; any other value as it is."""
    return _PORT.sub(f"http://127.0.0.1:{port}", value) if isinstance(value, str) else value


def _same(value: object, ours: Value) -> bool:
    """Whether a value is the one we wrote, whatever its port."""
    return isinstance(value, str | bool) and _at_port(value, 0) == _at_port(ours, 0)


def _by_hand(edit: Edit, why: NotEditable) -> CannotAttach:
    keys = ", ".join(".".join(held.keys) for held in edit.held)
    return CannotAttach(f"{edit.path} was changed and cannot be read now ({why}); mend it, or remove {keys} by hand")


def _decoded(path: str, data: bytes | None) -> str:
    try:
        return (data or b"").decode()
    except UnicodeDecodeError as exc:
        raise CannotAttach(f"{path} is left as it is: not UTF-8 at byte {exc.start}") from exc


def _digest(data: bytes | None) -> str:
    return "" if data is None else hashlib.sha256(data).hexdigest()


def _splice(before: str, after: str) -> Splice:
    start = _common(before, after)
    end = _common(before[start:][::-1], after[start:][::-1])
    return Splice(start, before[start : len(before) - end], after[start : len(after) - end])


def _common(one: str, other: str) -> int:
    """How many characters both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def _save(folder: str, attachments: Sequence[Attachment]) -> None:
    """Raises CannotAttach."""
    path = f"{folder}/{JOURNAL}"
    if not attachments:
        userfile.remove(path)
        return
    data = msgspec.json.encode(Journal(_VERSION, tuple(attachments)))
    userfile.replace(path, msgspec.json.format(data, indent=1) + b"\n")


@contextlib.contextmanager
def _locked(folder: str, dry: bool) -> Iterator[None]:
    """One at a time. Raises StateUnusable. A dry run writes nothing, not even a lock."""
    if dry:
        yield
        return
    state.prepare(folder)
    try:
        fd = os.open(f"{folder}/attached.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise StateUnusable(f"{folder}/attached.lock cannot be opened: {exc.strerror}") from exc
    try:
        deadline = time.monotonic() + LOCK_PATIENCE
        while not _taken(fd):
            if time.monotonic() > deadline:
                raise StateUnusable(f"{folder}/attached.lock is held by another llm-proxy that hangs")
            time.sleep(0.02)
        yield
    finally:
        os.close(fd)


def _taken(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
