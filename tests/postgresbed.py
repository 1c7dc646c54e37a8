"""A throw-away PostgreSQL, one for a process of tests: a fresh database for each test, copied from a template.

Run as a program it is the server's keeper: it makes the server in a folder of its own, says its port, and ends it and
removes the folder when stdin ends, which is when the tests' process ends, however that comes about.
"""

import asyncio
import atexit
import contextlib
import glob
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

USER = "llm-proxy"
PASSWORD = "p@ss/w:rd#%?"  # whatever needs percent-encoding in a URL

_FAST = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "shared_buffers": "16MB",
    "max_connections": "60",
    "listen_addresses": "127.0.0.1",
}


class Server:
    """Starts with the first use. `url(database)` is how a client is told of it."""

    def __init__(self):
        self._keeper = None
        self._names = itertools.count(1)

    def start(self):
        if self._keeper:
            return
        command = [sys.executable, "-P", str(Path(__file__))]
        self._keeper = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        atexit.register(self.end)
        self._hear()

    def halt(self):
        """As `pg_ctl stop -m immediate`: whatever it was doing is broken off."""
        os.kill(self.pid, signal.SIGQUIT)

    def resume(self):
        """On the same port and data, which it repairs first."""
        self._keeper.stdin.write("again\n")
        self._keeper.stdin.flush()
        self._hear()

    def _hear(self):
        line = self._keeper.stdout.readline()
        assert line, "PostgreSQL did not start: see stderr"
        port, pid = line.split()
        self.port, self.pid = int(port), int(pid)

    def end(self):
        if self._keeper:
            with contextlib.suppress(BrokenPipeError):
                self._keeper.stdin.close()
            self._keeper.wait(60)
            self._keeper.stdout.close()
            self._keeper = None

    def freeze(self):
        """It answers nothing, and nobody is told that it is gone."""
        self._signal(signal.SIGSTOP)

    def thaw(self):
        self._signal(signal.SIGCONT)

    def kill(self):
        """All of it, at once; `resume` brings it back."""
        self._signal(signal.SIGKILL)

    def _signal(self, what):
        """Its processes are in sessions of their own."""
        for pid in (self.pid, *_children(self.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, what)

    def url(self, database, **query):
        self.start()
        more = "&".join(f"{name}={value}" for name, value in query.items())
        who = f"{quote(USER, safe='')}:{quote(PASSWORD, safe='')}"
        return f"postgresql://{who}@127.0.0.1:{self.port}/{database}{'?' if more else ''}{more}"

    async def execute(self, statement, database="postgres"):
        link = await self.connect(database)
        try:
            await link.execute(statement)
        finally:
            await link.close()

    async def connect(self, database):
        """An asyncpg connection."""
        import asyncpg

        return await asyncpg.connect(self.url(database), timeout=30)

    async def create(self, template="template0", name=""):
        """A new database, by its name."""
        name = name or f"test_{next(self._names)}"
        await self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return name

    async def drop(self, name):
        await self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


SERVER = Server()


def _children(pid):
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                yield int(folder.name)


def _programs():
    """Debian keeps them out of PATH, by version."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin"), key=lambda path: int(path.split("/")[4]))
    return Path(found[-1] if found else Path(shutil.which("initdb")).parent)


def _main():
    programs, folder = _programs(), Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a socket's path must be short
    server = None
    try:
        owner = {}
        if os.getuid() == 0:  # PostgreSQL refuses to be root
            owner = {"user": "postgres", "group": "postgres", "extra_groups": []}
            shutil.chown(folder, "postgres", "postgres")
        (folder / "password").write_text(PASSWORD)
        os.chmod(folder / "password", 0o644)
        data = folder / "data"
        begin = [programs / "initdb", f"--pgdata={data}", f"--username={USER}", "--no-sync", "--encoding=UTF8"]
        begin += ["--locale=C.UTF-8", "--auth=scram-sha-256", f"--pwfile={folder / 'password'}"]
        subprocess.run(begin, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=folder, **owner)
        with socket.create_server(("127.0.0.1", 0)) as link:
            port = link.getsockname()[1]
        run = [programs / "postgres", "-D", data, "-p", str(port), "-k", folder]
        for name, value in _FAST.items():
            run += ["-c", f"{name}={value}"]
        while True:
            with open(folder / "log", "ab") as log:
                server = subprocess.Popen(run, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, **owner)
            asyncio.run(_until_ready(server, port, folder / "log"))
            print(port, server.pid, flush=True)
            if not sys.stdin.readline():
                break
            server.wait(30)  # it was ended, and is wanted again
            while _is_held(data):
                time.sleep(0.01)
    finally:
        if server and server.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                server.send_signal(signal.SIGCONT)
            server.send_signal(signal.SIGQUIT)
            server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _is_held(data):
    """Whether a process of the server that was killed has not ended yet: it stands in the way of the next."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(folder / "cwd") == str(data) and (folder / "cmdline").read_bytes():
                return True
    return False


async def _until_ready(server, port, log):
    import asyncpg

    async with asyncio.timeout(120):
        while True:
            assert server.poll() is None, log.read_text()
            try:
                about = {"host": "127.0.0.1", "port": port, "user": USER, "password": PASSWORD, "database": "postgres"}
                await (await asyncpg.connect(**about, timeout=30)).close()
                return
            except (OSError, asyncpg.CannotConnectNowError):
                await asyncio.sleep(0.02)


if __name__ == "__main__":
    _main()
