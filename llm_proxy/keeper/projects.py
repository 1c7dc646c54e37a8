"""Which process called: from a client's TCP port to its program, its working folder, and the repository that lies in.

Reads what the system tells about processes of this user, and a few small files of `.git`; runs nothing. Where nothing
can be known (the process has ended, is another user's, sits in a container) nothing is said, and nothing is guessed.
Leaves out which session a call belongs to.
"""

from __future__ import annotations

import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, TypeVar

import psutil

T = TypeVar("T")

# Looking at all sockets of all processes takes milliseconds: so often in the long run, so many times in a row.
SCAN_EVERY, SCANS_AT_ONCE = 0.25, 4
KEPT = 60.0  # seconds without a call after which a port may be somebody else's
LOOK_AGAIN = 5.0  # seconds after which a process may have changed its folder, or the folder its branch
# A call is older than this where the keeper was behind: its port may have changed hands since.
RECENT = 10.0
PATIENCE = 0.5  # seconds: a folder of a network that is gone may never answer
_CLOCK = 2.0  # seconds by which the system's times of processes and of day may differ
_LONGEST_NAME = 64


@dataclass(frozen=True, slots=True)
class Client:
    """Who called, as far as it is known: "" and 0 where it is not.

    `root` is the main folder of the repository that `cwd` lies in, for a worktree too; `branch` is "" on a detached
    head; `project` is the name of `root`, without a repository that of `cwd`.
    """

    program: str = ""
    pid: int = 0
    cwd: str = ""
    project: str = ""
    root: str = ""
    branch: str = ""

    def entry(self) -> dict[str, Any]:
        """The object `client` of a log entry."""
        return {name: value for name, value in asdict(self).items() if value}


@dataclass(slots=True)
class _Caller:
    """A process that calls, over however many ports. `process` is not taken for the next one with its number."""

    process: psutil.Process
    client: Client
    looked: float


class Projects:
    """Answers for the ports of one proxy, the process `server`: the keeper's parent."""

    def __init__(self, server: int | None = None) -> None:
        self._server = os.getppid() if server is None else server
        self._callers: dict[int, _Caller] = {}  # by port
        self._used: dict[int, float] = {}  # by port, when a call last came from it
        self._nobodys: dict[int, float] = {}  # ports that nobody was found behind, and when
        self._waiting: dict[int, threading.Thread] = {}  # processes whose folders do not answer
        self._scans = float(SCANS_AT_ONCE)
        self._scanned = time.monotonic()

    def client(self, port: int, opened_ns: int) -> Client | None:
        """Who holds `port`, for a call that was opened at `opened_ns` (wall clock). Never raises."""
        try:
            caller = self._caller(port, opened_ns / 1e9) if port else None
        except (psutil.Error, OSError):
            return None
        return caller.client if caller is not None else None

    def _caller(self, port: int, opened: float) -> _Caller | None:
        now = time.monotonic()
        caller = self._callers.get(port)
        if caller is not None and now - self._used[port] < KEPT and self._refreshed(caller, now):
            self._used[port] = now
            return caller
        self._callers.pop(port, None)
        if (
            abs(time.time() - opened) > RECENT
            or now - self._nobodys.get(port, -LOOK_AGAIN) < LOOK_AGAIN
            or not self._may_scan(now)
        ):
            return None
        self._scan(now)
        caller = self._callers.get(port)
        if caller is None:
            self._nobodys[port] = now
            return None
        return caller if caller.process.create_time() <= opened + _CLOCK else None

    def _refreshed(self, caller: _Caller, now: float) -> bool:
        """Whether it is still alive."""
        if now - caller.looked < LOOK_AGAIN:
            return True
        if not caller.process.is_running():
            return False
        caller.client = self._look(caller.process) or caller.client
        caller.looked = now
        return True

    def _may_scan(self, now: float) -> bool:
        self._scans = min(SCANS_AT_ONCE, self._scans + (now - self._scanned) / SCAN_EVERY)
        self._scanned = now
        if self._scans < 1:
            return False
        self._scans -= 1
        return True

    def _scan(self, now: float) -> None:
        """All callers there are: one look serves for all."""
        known: dict[int, _Caller | None] = {}
        for port, pid in _ports(self._server):
            if pid not in known:
                known[pid] = self._new(pid, now)
            if caller := known[pid]:
                self._callers[port] = caller
                self._used[port] = now
        self._used = {port: when for port, when in self._used.items() if now - when < KEPT}
        self._callers = {port: one for port, one in self._callers.items() if port in self._used}
        self._nobodys = {port: when for port, when in self._nobodys.items() if now - when < LOOK_AGAIN}

    def _new(self, pid: int, now: float) -> _Caller | None:
        try:
            process = psutil.Process(pid)
        except psutil.Error:
            return None
        client = self._look(process)
        return _Caller(process, client, now) if client is not None else None

    def _look(self, process: psutil.Process) -> Client | None:
        """In a thread, because nothing may hold up the record."""
        waiting = self._waiting.pop(process.pid, None)
        found: list[Client | None] = []
        if waiting is None or not waiting.is_alive():
            waiting = threading.Thread(target=lambda: found.append(_client(process)), daemon=True)
            waiting.start()
            waiting.join(PATIENCE)
        if waiting.is_alive():
            self._waiting[process.pid] = waiting
        return found[0] if found else None


# --- sockets and processes


class _Socket(NamedTuple):
    """A connected socket; both ends are (host, port)."""

    own: tuple[str, int]
    peer: tuple[str, int]
    pid: int


def _ports(server: int) -> Iterator[tuple[int, int]]:
    """(port, pid) of every connection whose other end `server` holds."""
    sockets = list(_sockets())
    held = {(one.peer, one.own) for one in sockets if one.pid == server}
    return ((one.own[1], one.pid) for one in sockets if (one.own, one.peer) in held)


def _sockets() -> Iterator[_Socket]:
    try:
        yield from _connected(psutil.net_connections("tcp"))
    except psutil.AccessDenied:  # macOS tells of each process of one's own, not of all at once
        for process in psutil.process_iter():
            try:
                if process.uids().real == os.getuid():
                    yield from _connected(process.net_connections("tcp"), process.pid)
            except psutil.Error:  # it has ended meanwhile
                continue


def _connected(found: Iterable[Any], pid: int = 0) -> Iterator[_Socket]:
    for one in found:
        if one.raddr and (owner := pid or one.pid):
            yield _Socket(_end(one.laddr), _end(one.raddr), owner)


def _end(address: Any) -> tuple[str, int]:
    return address.ip.removeprefix("::ffff:"), address.port  # one end may speak IPv6 and the other IPv4


def _client(process: psutil.Process) -> Client | None:
    """None for another user's process, and for one that ends meanwhile."""
    try:
        with process.oneshot():
            if process.uids().real != os.getuid():
                return None
            cwd = _allowed(process.cwd, "")
            program = _program(process, cwd)
    except (psutil.Error, OSError):
        return None
    root, branch = repository(cwd) if cwd else ("", "")
    project = os.path.basename(root).removesuffix(".git") if root else os.path.basename(cwd)  # noqa: PTH119
    return Client(program, process.pid, cwd, project, root, branch)


def _allowed(ask: Callable[[], T], instead: T) -> T:
    try:
        return ask()
    except psutil.AccessDenied:
        return instead


# --- the program's name

_INTERPRETER = re.compile(r"(?:python|pypy)[\d.]*t?|node(?:js)?|bun|deno|ruby|perl|php[\d.]*")
# Options of interpreters whose value is the next word.
_VALUED = frozenset({"-X", "-W", "-r", "-C", "--require", "--import", "--loader", "--conditions", "--env-file"})
_SUBCOMMANDS = frozenset({"run", "x", "exec"})  # bun run SCRIPT, deno run SCRIPT
_SUFFIX = re.compile(r"\.(?:[cm]?[jt]s|py|rb|pl|php|pyz)$")
_SAYS_NOTHING = frozenset(
    {"__main__", "app", "bin", "build", "cli", "dist", "index", "lib", "main", "out", "run", "server", "src", "start"}
)
_KNOWN_AS = {"claude-code": "claude", "gemini-cli": "gemini"}  # packages whose command has another name


def _program(process: psutil.Process, cwd: str) -> str:
    """The program's name; of an interpreter the name of what it runs. Arguments are never told: they hold secrets."""
    words: list[str] = _allowed(process.cmdline, [])
    name = words[0].rpartition("/")[2].removeprefix("-") if words else ""
    if not name or " " in name:  # a process may write what it likes there
        name = process.name()
    if _INTERPRETER.fullmatch(name.lower()):
        name = _script(words[1:], cwd, python=name.lower().startswith("py")) or name
    return "".join(letter for letter in name if letter.isprintable())[:_LONGEST_NAME]


def _script(words: Sequence[str], cwd: str, *, python: bool) -> str:
    """What an interpreter with these arguments runs, "" where that has no name."""
    rest = iter(words)
    for word in rest:
        if python and re.fullmatch(r"-[A-Za-z]*m", word):
            module = next(rest, "").partition(".")[0]
            return module if module.isidentifier() else ""
        if re.fullmatch(r"-[A-Za-z]*[cep]|--eval|--print|-", word):
            return ""
        if word in _VALUED:
            next(rest, None)
        elif not word.startswith("-") and (python or word not in _SUBCOMMANDS):
            path = os.path.join(cwd, word)  # noqa: PTH118
            return script_name(path) if os.path.isfile(path) else ""  # noqa: PTH113 - only a file's name is no secret
    return ""


def script_name(path: str) -> str:
    """What people call a script: npm's package that it lies in, its folder where it is called `cli.js`, or its name."""
    *folders, file = path.split("/")
    name = _SUFFIX.sub("", file)
    if "node_modules" in folders:
        package = folders[len(folders) - folders[::-1].index("node_modules") :]
        if package and package[0] != ".bin":
            name = package[1] if package[0].startswith("@") and len(package) > 1 else package[0]
    elif name != file and name in _SAYS_NOTHING:
        name = next((folder for folder in reversed(folders) if folder not in _SAYS_NOTHING), name) or name
    return _KNOWN_AS.get(name, name)


# --- repositories


def repository(folder: str) -> tuple[str, str]:
    """(main folder, branch) of the git repository that `folder` lies in; ("", "") where it lies in none."""
    while True:
        git = f"{folder.rstrip('/')}/.git"
        if head := _read(f"{git}/HEAD"):
            return folder, _branch(head)
        if (link := _read(git)).startswith("gitdir:"):
            return _linked(folder, os.path.join(folder, link.removeprefix("gitdir:").strip()))  # noqa: PTH118
        parent = os.path.dirname(folder)  # noqa: PTH120
        if parent == folder or not parent:
            return "", ""
        folder = parent


def _linked(folder: str, git: str) -> tuple[str, str]:
    """A worktree counts to its repository; a submodule is one itself."""
    branch = _branch(_read(f"{git}/HEAD"))
    common = _read(f"{git}/commondir")
    if not common:
        return folder, branch
    common = os.path.normpath(os.path.join(git, common))  # noqa: PTH118
    parent, name = os.path.split(common)
    return (parent if name.startswith(".") else common), branch  # without a dot: a bare repository


def _branch(head: str) -> str:
    return head.removeprefix("ref: refs/heads/") if head.startswith("ref: refs/heads/") else ""


def _read(path: str) -> str:
    """The text of a small regular file; "" where there is none. Never waits for a pipe."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return ""
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return ""
        return os.read(fd, 4096).decode("utf-8", "surrogateescape").strip()
    except OSError:
        return ""
    finally:
        os.close(fd)
