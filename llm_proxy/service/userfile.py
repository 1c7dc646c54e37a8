"""A file of the user's: found, read and replaced in one step, or left alone with a reason.

Never through a link that leads out of the folder it belongs to, never a file that is not the user's own, that is
read-only or that has other hard links. Mode and owner stay. Leaves out what is written.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from llm_proxy.errors import CannotAttach

LARGEST = 4 << 20  # bytes


def located(path: str, *roots: str) -> str:
    """Where the file really lies. Raises CannotAttach if that is outside all of these folders."""
    real = os.path.realpath(path)
    if not any(real.startswith(os.path.realpath(root).rstrip("/") + "/") for root in roots):
        raise CannotAttach(f"{path} leads to {real}, outside {' and '.join(roots)}: edit it where it comes from")
    return real


def read(path: str) -> bytes | None:
    """Its bytes, None where there is no such file. Raises CannotAttach."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise CannotAttach(f"{path} cannot be read: {exc.strerror}") from exc
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            raise CannotAttach(f"{path} is not a file")
        if facts.st_size > LARGEST:
            raise CannotAttach(f"{path} has {facts.st_size} bytes, more than {LARGEST}: it is not edited")
        with os.fdopen(fd, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(fd)


def check(path: str) -> None:
    """Whether it may be replaced, or made. Raises CannotAttach."""
    try:
        facts = os.lstat(path)
    except FileNotFoundError:
        above = _standing(path)
        if not os.access(above, os.W_OK | os.X_OK):
            raise CannotAttach(f"{path} cannot be made: {above} is not writable") from None
        return
    except OSError as exc:
        raise CannotAttach(f"{path} cannot be used: {exc.strerror}") from exc
    if not stat.S_ISREG(facts.st_mode):
        raise CannotAttach(f"{path} is not a file")
    if facts.st_uid != os.geteuid():
        raise CannotAttach(f"{path} belongs to user {facts.st_uid}, not to you ({os.geteuid()})")
    # the bit, not access(2): root may write it, and whoever made it read-only meant it
    if not facts.st_mode & stat.S_IWUSR or not os.access(Path(path).parent, os.W_OK | os.X_OK):
        raise CannotAttach(f"{path} is read-only, or its folder is")
    if facts.st_nlink > 1:
        raise CannotAttach(f"{path} has {facts.st_nlink} hard links, which replacing it would part")


def replace(path: str, data: bytes) -> None:
    """The new bytes in one step, on disk when this returns; missing folders are made. Raises CannotAttach."""
    draft = _draft(path)
    try:
        for folder in missing_folders(path):
            Path(folder).mkdir(0o700)
        Path(draft).unlink(missing_ok=True)
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            with contextlib.suppress(FileNotFoundError):
                facts = os.lstat(path)
                os.fchmod(fd, stat.S_IMODE(facts.st_mode))
                if facts.st_gid != os.fstat(fd).st_gid:
                    os.fchown(fd, -1, facts.st_gid)
            os.fsync(fd)
        Path(draft).rename(path)
        _sync_folder(path)
    except OSError as exc:
        tidy(path)
        raise CannotAttach(f"{path} cannot be written: {exc.strerror}") from exc


def remove(path: str) -> None:
    """Raises CannotAttach."""
    try:
        Path(path).unlink(missing_ok=True)
        _sync_folder(path)
    except OSError as exc:
        raise CannotAttach(f"{path} cannot be removed: {exc.strerror}") from exc


def tidy(path: str) -> None:
    """Take away the draft that a crash may have left beside the file."""
    with contextlib.suppress(OSError):
        Path(_draft(path)).unlink()


def missing_folders(path: str) -> tuple[str, ...]:
    """The folders above it that are not there yet, outermost first."""
    above = _standing(path)
    inner = [str(folder) for folder in Path(path).parents if len(str(folder)) > len(above)]
    return tuple(reversed(inner))


def remove_folders(folders: tuple[str, ...]) -> None:
    """Those that are empty, innermost first."""
    for folder in reversed(folders):
        with contextlib.suppress(OSError):
            Path(folder).rmdir()


def _draft(path: str) -> str:
    folder, name = os.path.split(path)
    return f"{folder}/.{name}.llm-proxy"


def _standing(path: str) -> str:
    """The innermost folder above it that exists."""
    return next(str(folder) for folder in Path(path).parents if folder.is_dir())


def _sync_folder(path: str) -> None:
    """A rename is on disk only when its folder is."""
    fd = os.open(Path(path).parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
