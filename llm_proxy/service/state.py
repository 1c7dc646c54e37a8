"""The state folder: which daemon runs, on which port, and whether that is still true.

`port` (digits only), `run` (`1 PORT PID STARTTICKS BOOTID INSTANCE`), `last_port`, `secret` and `lock`, all 0600 in a
0700 folder. A file that is not ours alone, or not exactly in its form, counts as absent. A new shell imports this
module and waits for it, so nothing here imports more than `os`. Leaves out deciding what to run.
"""

# pathlib alone would double the time of `--env`.
# ruff: noqa: PTH101, PTH103, PTH104, PTH108, PTH115, PTH116, PTH120, PTH208

from __future__ import annotations

import os
import sys
import time

from llm_proxy.errors import StateUnusable

MADE = "made"  # folders that were made for this one, absolute paths, one a line
_LARGEST_FILE = 256  # the longest `run` has about 100 bytes
_LARGEST_TABLE = 64 * 1024  # of /proc/net/tcp; Linux lists the listening sockets first
_MOST_FDS = 256  # listeners are opened at start-up and have low numbers
_NOT_RUNNING = b"ZXx"  # proc_pid_stat(5): zombie, dead
_HEX = frozenset(b"0123456789abcdef")
_NO_BOOT_ID = b"-"  # where the system has none


class Run:
    """One daemon's own statement. Not a dataclass: importing those takes longer than all of `--env`."""

    __slots__ = ("boot", "instance", "pid", "port", "ticks")

    def __init__(self, port: int, pid: int, ticks: int, boot: str, instance: str) -> None:
        self.port, self.pid, self.ticks, self.boot, self.instance = port, pid, ticks, boot, instance

    def line(self) -> str:
        return f"1 {self.port} {self.pid} {self.ticks} {self.boot} {self.instance}\n"

    def __repr__(self) -> str:
        return f"Run({self.line().strip()})"


def this_run(port: int, instance: str, proc: str = "/proc", pid: int = 0) -> Run:
    """The statement of this process (or of `pid`), to be written once it listens on `port`."""
    pid = pid or os.getpid()
    process = _process(pid, proc)
    boot = _boot_id(proc) or _NO_BOOT_ID
    return Run(port, pid, process[1] if process else 0, boot.decode(), instance)


def parse_run(raw: bytes) -> Run | None:
    """The six fields, strictly; None for anything else."""
    fields = raw.removesuffix(b"\n").split(b" ")
    if len(fields) != 6 or fields[0] != b"1":
        return None
    port, pid, ticks = (_number(text) for text in fields[1:4])
    boot, instance = fields[4:]
    if port is None or pid is None or ticks is None or not 0 < port < 65536 or not 0 < pid < 1 << 31:
        return None
    if boot != _NO_BOOT_ID and not (len(boot) == 36 and _HEX.issuperset(boot.replace(b"-", b""))):
        return None
    if not (16 <= len(instance) <= 64 and _HEX.issuperset(instance)):
        return None
    return Run(port, pid, ticks, boot.decode(), instance.decode())


def read_run(folder: str) -> Run | None:
    raw = read(folder, "run")
    return None if raw is None else parse_run(raw)


def read_port(folder: str, name: str) -> int | None:
    """A port kept in `port` or `last_port`; None unless it is one."""
    port = _number((read(folder, name) or b"").removesuffix(b"\n"))
    return port if port is not None and 0 < port < 65536 else None


def read(folder: str, name: str) -> bytes | None:
    """A state file's bytes, or None where it is absent, not a plain file, not ours alone, or too large."""
    try:
        # O_NONBLOCK: opening a FIFO that somebody planted must not wait for its writer
        fd = os.open(f"{folder}/{name}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError):
        return None
    try:
        facts = os.fstat(fd)
        plain = facts.st_mode & 0o170000 == 0o100000
        if not plain or facts.st_uid != os.geteuid() or facts.st_mode & 0o077 or facts.st_size > _LARGEST_FILE:
            return None
        return os.read(fd, _LARGEST_FILE)
    except OSError:
        return None
    finally:
        os.close(fd)


def prepare(folder: str) -> None:
    """Make the folder, ours alone, and note which others that took, for uninstall to remove. Raises StateUnusable."""
    made, above = [], folder
    while above and not os.path.lexists(above):
        made.append(above)
        above = os.path.dirname(above)
    try:
        os.makedirs(folder, 0o700, exist_ok=True)
        facts = os.stat(folder)
        if facts.st_uid != os.geteuid():
            raise StateUnusable(f"{folder} belongs to user {facts.st_uid}, not to us ({os.geteuid()})")
        if facts.st_mode & 0o077:
            os.chmod(folder, 0o700)
    except OSError as exc:
        raise StateUnusable(f"{folder} cannot be used: {exc.strerror}") from exc
    if made:
        _note_made(folder, made)


def _note_made(folder: str, made: list[str]) -> None:
    """Several that start at once may each have made some of them. A full disk keeps nobody from starting."""
    try:
        fd = os.open(f"{folder}/{MADE}", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:
        return
    try:
        os.write(fd, os.fsencode("".join(f"{path}\n" for path in made)))
    except OSError:
        pass
    finally:
        os.close(fd)


def write(folder: str, name: str, text: str) -> None:
    """Replace a state file in one step: a reader sees the old text or the new, whole. Raises StateUnusable."""
    draft = f"{folder}/.{name}.{os.getpid()}"
    try:
        remove(folder, f".{name}.{os.getpid()}")
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, text.encode())
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(draft, f"{folder}/{name}")
    except OSError as exc:
        remove(folder, f".{name}.{os.getpid()}")
        raise StateUnusable(f"{folder}/{name} cannot be written: {exc.strerror}") from exc


def remove(folder: str, name: str) -> None:
    try:
        os.unlink(f"{folder}/{name}")
    except OSError:
        pass


def secret(folder: str) -> str:
    """The local secret, made on first use: 64 hex digits, a credential, never sent anywhere. Raises StateUnusable."""
    known = read(folder, "secret")
    if known is not None and len(known) == 64 and _HEX.issuperset(known):
        return known.decode()
    fresh = os.urandom(32).hex()
    write(folder, "secret", fresh)
    return fresh


def lock(folder: str) -> int | None:
    """Take the daemon's lock: its descriptor, to be kept open, or None while another process holds it.

    The kernel frees it when the process ends, however that happens. Raises StateUnusable.
    """
    import fcntl

    try:
        fd = os.open(f"{folder}/lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise StateUnusable(f"{folder}/lock cannot be opened: {exc.strerror}") from exc
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


def serving(run: Run, proc: str = "/proc") -> bool:
    """Whether it is alive and not stopped (SIGSTOP): a stopped daemon listens and never answers."""
    process = _process(run.pid, proc)
    return (process is None or process[0] != b"T") and alive(run, proc)


def alive(run: Run, proc: str = "/proc") -> bool:
    """Whether that very process lives and holds its port. At most about 100 ms, whatever holds the port now."""
    boot = _boot_id(proc)
    if boot is None:
        return _exists(run.pid) and _answers(run)
    if boot.decode("ascii", "replace") != run.boot:
        return False
    process = _process(run.pid, proc)
    if process is None or process[0] in _NOT_RUNNING or process[1] != run.ticks:
        return False
    held = _holds_port(run, proc)
    return _answers(run) if held is None else held


def _number(text: bytes) -> int | None:
    return int(text) if text.isdigit() and len(text) <= 20 else None


def _boot_id(proc: str) -> bytes | None:
    """Tells one boot of one machine from all others, so it settles reboots and homes shared over a network."""
    return (_slurp(f"{proc}/sys/kernel/random/boot_id", 64) or b"").strip() or None


def _process(pid: int, proc: str) -> tuple[bytes, int] | None:
    """State letter and start time in clock ticks since boot; together with the pid it names one process for ever."""
    # the command's name stands in parentheses and may hold anything, ") R 1" included: fields count from the last ")"
    fields = (_slurp(f"{proc}/{pid}/stat", 4096) or b"").rpartition(b")")[2].split()
    ticks = _number(fields[19]) if len(fields) > 19 else None
    return None if ticks is None else (fields[0], ticks)


def _slurp(path: str, most: int) -> bytes | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        data = b""
        while len(data) < most and (piece := os.read(fd, most - len(data))):
            data += piece
        return data
    except OSError:
        return None
    finally:
        os.close(fd)


def _holds_port(run: Run, proc: str) -> bool | None:
    """Whether a listening socket on 127.0.0.1:PORT is among the process's descriptors; None if that cannot be seen."""
    table = _slurp(f"{proc}/net/tcp", _LARGEST_TABLE)
    if table is None:
        return None
    loopback = int.from_bytes(b"\x7f\x00\x00\x01", sys.byteorder)
    wanted = {b"%08X:%04X" % (address, run.port) for address in (loopback, 0)}
    lines = (line.split() for line in table.split(b"\n"))
    sockets = {b"socket:[%s]" % f[9] for f in lines if len(f) > 9 and f[1] in wanted and f[3] == b"0A"}
    if not sockets:
        return None if len(table) == _LARGEST_TABLE else False
    folder = f"{proc}/{run.pid}/fd".encode()
    try:
        numbers = sorted(map(int, os.listdir(folder)))
    except (OSError, ValueError):
        return None
    for number in numbers[:_MOST_FDS]:
        try:
            if os.readlink(b"%s/%d" % (folder, number)) in sockets:
                return True
        except OSError:
            continue
    return None if len(numbers) > _MOST_FDS else False


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _answers(run: Run, limit: float = 0.1) -> bool:
    """Whether `/health` on the port names this instance within `limit` seconds in all."""
    import socket

    deadline = time.monotonic() + limit
    request = f"GET /health HTTP/1.1\r\nHost: 127.0.0.1:{run.port}\r\nConnection: close\r\n\r\n"
    answer = b""
    with socket.socket() as link:
        try:
            link.settimeout(limit)
            link.connect(("127.0.0.1", run.port))
            link.sendall(request.encode())  # fits any socket buffer: does not wait
            while len(answer) < 16384 and (left := deadline - time.monotonic()) > 0:
                link.settimeout(left)
                piece = link.recv(4096)
                answer += piece
                # the instance was not in the request, so an echo cannot pass
                if f'"{run.instance}"'.encode() in answer:
                    return True
                if not piece:
                    return False
        except OSError:
            return False
    return False
