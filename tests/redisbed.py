"""A throw-away Redis for a test, with a password. It ends with the test, or with the tests' process, however that ends."""

import contextlib
import os
import signal
import socket
import subprocess
import time

PASSWORD = "pass-word"

# The shell waits for the end of stdin, which is when the tests' process ends.
_KEEP = 'redis-server "$@" >/dev/null 2>&1 & echo $!; cat >/dev/null; kill -9 $!; wait $! 2>/dev/null'


class Server:
    def __init__(self, folder):
        self._folder = folder
        with socket.create_server(("127.0.0.1", 0)) as link:
            self.port = link.getsockname()[1]
        self.url = f"redis://:{PASSWORD}@127.0.0.1:{self.port}/0"
        self._keeper = None

    def start(self):
        words = f"--port {self.port} --bind 127.0.0.1 --requirepass {PASSWORD} --save --appendonly no"
        command = ["sh", "-c", _KEEP, "redis", *words.split(), "--dir", str(self._folder)]
        self._keeper = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        self._pid = int(self._keeper.stdout.readline())
        deadline = time.monotonic() + 30
        while self.say("PING") != b"+PONG\r\n":
            assert time.monotonic() < deadline, "Redis did not start"
            time.sleep(0.01)

    def say(self, *words):
        """One command by itself, and the beginning of what comes back; b"" where nobody listens."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=10) as link:
                for line in (("AUTH", PASSWORD), words):
                    link.sendall(" ".join(map(str, line)).encode() + b"\r\n")
                    answer = link.recv(4096)
                return answer
        except ConnectionError:
            return b""

    def freeze(self):
        os.kill(self._pid, signal.SIGSTOP)

    def thaw(self):
        os.kill(self._pid, signal.SIGCONT)

    def stop(self):
        if self._keeper:
            self._keeper.stdin.close()
            self._keeper.wait(30)
            self._keeper.stdout.close()
            self._keeper = None


@contextlib.contextmanager
def a_redis(folder):
    server = Server(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()
