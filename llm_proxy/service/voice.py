"""Writing to stdout and stderr without ever waiting for whoever reads them.

A pipe nobody reads, a stopped terminal or a stuck journal blocks the writer; so a thread writes, and what it cannot
get rid of is counted and dropped. Leaves out log levels and formats beyond one line per message.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque

_MOST_LINES = 1000


class Voice:
    """Lines go out in order, each whole. `say` and `warn` return at once, from any thread."""

    def __init__(self, out: int = 1, err: int = 2) -> None:
        self._out, self._err = out, err
        self._lines: deque[tuple[int, str]] = deque()
        self._dropped = 0
        self._news = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._write, name="voice", daemon=True)
        self._thread.start()

    def say(self, text: str) -> None:
        """To stdout: what a person started us for."""
        self._add(self._out, text)

    def warn(self, text: str) -> None:
        """To stderr."""
        self._add(self._err, text)

    def close(self, limit: float = 0.5) -> None:
        """Wait at most `limit` seconds for what was said to be out."""
        with self._news:
            self._closing = True
            self._news.notify()
        self._thread.join(limit)

    def _add(self, fd: int, text: str) -> None:
        with self._news:
            if len(self._lines) >= _MOST_LINES:
                self._dropped += 1
            else:
                self._lines.append((fd, text))
            self._news.notify()

    def _next(self) -> tuple[int, str] | None:
        with self._news:
            while not self._lines:
                if self._closing:
                    return None
                self._news.wait()
            if self._dropped:
                self._lines.append((self._err, f"llm-proxy: {self._dropped} messages could not be written"))
                self._dropped = 0
            return self._lines.popleft()

    def _write(self) -> None:
        while (line := self._next()) is not None:
            fd, text = line
            data = text.encode("utf-8", "backslashreplace") + b"\n"
            try:
                while data:
                    data = data[os.write(fd, data) :]
            except OSError:  # closed, or its reader is gone: nobody to tell
                continue


class VoiceHandler(logging.Handler):
    """Log records of this process and its libraries as lines on stderr."""

    def __init__(self, voice: Voice) -> None:
        super().__init__()
        self._voice = voice
        # systemd's journal and a terminal's reader both know the time of a line; a log file does not
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._voice.warn(self.format(record))
        except Exception:  # a record that cannot be formatted must not reach the traffic that caused it
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        self._voice.warn(f"llm-proxy: a log message could not be formatted: {record.msg!r}")
