"""Sockets that systemd holds for us, so that no connection is refused while the daemon is away.

They come from a socket unit, or back out of the manager's store, where the daemon has put what it bound itself: the
store outlives restarts and crashes, not a stop or a boot (FileDescriptorStoreMax= in systemd.service(5)). The socket
unit's own statement in `run` names the user manager, which is then the process that listens: whoever asks whether
something of ours listens gets the right answer without knowing of socket units. Leaves out writing the unit.
"""

from __future__ import annotations

import os
import socket
from typing import NamedTuple

from llm_proxy.service import state

_FIRST = 3  # SD_LISTEN_FDS_START, sd_listen_fds(3)
_MOST = 16
KEPT = "kept"  # what our own sockets are called in the manager's store
NOBODY = "0" * 32  # instance in `run` while the manager listens and no daemon does


class Inherited(NamedTuple):
    """Listening sockets passed to this process, IPv4 first."""

    of_unit: tuple[socket.socket, ...] = ()
    kept: tuple[socket.socket, ...] = ()


def inherited() -> Inherited:
    """Asks only once: nothing that is started later takes them for its own."""
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdecimal():
        return Inherited()
    sockets = [socket.socket(fileno=fd) for fd in range(_FIRST, _FIRST + min(int(count), _MOST))]
    for link in sockets:
        link.set_inheritable(False)
        link.setblocking(False)
    sockets.sort(key=lambda link: link.family != socket.AF_INET)
    kept = {_FIRST + number for number, name in enumerate(names) if name == KEPT}
    return Inherited(
        tuple(link for link in sockets if link.fileno() not in kept),
        tuple(link for link in sockets if link.fileno() in kept),
    )


def announce(port: int, folder: str) -> None:
    """From the socket unit: our parent, the user manager, listens on `port`. Raises StateUnusable."""
    state.prepare(folder)
    held = state.this_run(port, NOBODY, pid=os.getppid())
    for name, text in (("last_port", str(port)), ("port", str(port)), ("run", held.line())):
        state.write(folder, name, text)


def withdraw(folder: str) -> None:
    """From the socket unit, when the manager has stopped listening."""
    run = state.read_run(folder)
    if run is not None and run.instance == NOBODY:
        state.remove(folder, "run")
        state.remove(folder, "port")
