"""Unix sockets between our own processes: their addresses, from both sides, and listening on them.

An address has room for some 100 bytes of path. Where the state folder's is longer, Linux reaches it through a
descriptor of the folder (`/proc/self/fd/…`); elsewhere there is no such socket, and whoever wants it says so.
The daemon imports this, so it stays small.
"""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

BACKLOG = 1024  # connections that wait to be accepted; a Unix socket refuses more at once
LONGEST = 103 if sys.platform == "darwin" else 107  # bytes of sockaddr_un.sun_path, without the NUL


class PathTooLong(Exception):
    """The socket's path has no room in an address, and this system knows no other way to it."""


def address(path: str, proc: str = "/proc/self/fd") -> tuple[str, int | None]:
    """What to bind or to connect to for a socket's path, and a descriptor that must stay open meanwhile.

    Raises PathTooLong, OSError.
    """
    if len(os.fsencode(path)) <= LONGEST:
        return path, None
    folder, _, name = path.rpartition("/")
    if not Path(proc).is_dir() or len(os.fsencode(name)) > LONGEST - 32:
        raise PathTooLong(f"{path} is longer than the {LONGEST} bytes that a socket's address has room for")
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    return f"{proc}/{fd}/{name}", fd


def bind(path: str) -> socket.socket:
    """Listen on a Unix socket, 0600, in place of what an earlier one has left. Raises PathTooLong, OSError."""
    where, folder = address(path)
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with suppress(FileNotFoundError):
            os.unlink(where)  # noqa: PTH108
        before = os.umask(0o177)
        try:
            link.bind(where)
        finally:
            os.umask(before)
        link.listen(BACKLOG)
        link.setblocking(False)
    except BaseException:
        link.close()
        raise
    finally:
        if folder is not None:
            os.close(folder)
    return link
