"""Somebody with a home that already has rc files, who installs llm-proxy; and a PATH with chosen tools only."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from llm_proxy.service import state
from tests.shellbed import snapshot

# Without what tests themselves run with, uv among it: nobody who installs has that.
PATH = ":".join(folder for folder in os.environ["PATH"].split(":") if Path(folder) != Path(sys.executable).parent)

RC = {
    ".bashrc": "# mine\nalias ll='ls -l'\n",
    ".zshrc": "setopt autocd\n",
    ".profile": '. "$HOME/.bashrc"',
    ".config/fish/config.fish": "set -g x 1\n",
}
# What install.sh, the launcher and setup run, beside Python and what downloads and sums.
TOOLS = [
    "awk",
    "basename",
    "cat",
    "chmod",
    "cp",
    "cut",
    "date",
    "dirname",
    "env",
    "find",
    "flock",
    "getconf",
    "grep",
    "gzip",
    "head",
    "id",
    "kill",
    "ln",
    "ls",
    "mkdir",
    "mktemp",
    "mv",
    "nohup",
    "printf",
    "ps",
    "readlink",
    "rm",
    "rmdir",
    "sed",
    "setsid",
    "sh",
    "sleep",
    "sort",
    "tail",
    "tar",
    "touch",
    "tr",
    "uname",
    "wc",
]
# What compilers that pip asks for their version leave in a home.
_FOREIGN = (".rustup", ".cargo")


class Person:
    """`home` has rc files already; `before` is what it held. `scripts` gives the text of install.sh to run."""

    def __init__(self, home, packages):
        self.home, self.packages = home, packages
        home.mkdir(parents=True)
        for name, text in RC.items():
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_text(text)
        self.before = self.snapshot()

    @property
    def launcher(self):
        return self.home / ".local/bin/llm-proxy"

    @property
    def versions(self):
        """Their names, without the installer's marks."""
        folder = self.home / ".local/share/llm-proxy/versions"
        return sorted(re.sub(r"\.[^.]*$", "", path.name) for path in folder.iterdir()) if folder.exists() else []

    def environ(self, **changes):
        """Their environment; None takes a variable away."""
        environ = {"HOME": str(self.home), "PATH": PATH, "SHELL": "/bin/bash", "LANG": "C.UTF-8"}
        environ |= self.packages | {name: None if value is None else str(value) for name, value in changes.items()}
        return {name: value for name, value in environ.items() if value is not None}

    def install(self, script, *options, shell=("sh",), prefix=(), timeout=200, **changes):
        """Pipe the script into a shell, as from the web; the completed process."""
        return subprocess.run(
            [*prefix, *shell, "-s", *(["--", *options] if options else [])],
            input=script,
            env=self.environ(**changes),
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=self.home,
        )

    def command(self, *arguments, **changes):
        return subprocess.run(
            [self.launcher, *arguments], env=self.environ(**changes), capture_output=True, text=True, timeout=200
        )

    def status(self):
        return json.loads(self.command("--status", "--json").stdout)

    def snapshot(self):
        """All of the home but session logs and what other programs leave."""
        ours = snapshot(self.home)
        return {
            name: facts for name, facts in ours.items() if name.split("/")[0] not in (*_FOREIGN, ".llm-provider-logs")
        }

    def rc_files(self):
        return {name: (self.home / name).read_text() for name in RC}

    def new_shells(self):
        """The rule: no error, soon, and a base URL only where something of ours answers. The URLs, by shell."""
        found = {}
        for shell, rc in (("bash", ".bashrc"), ("zsh", ".zshrc")):
            started = time.monotonic()
            done = subprocess.run(
                [shell, "-c", f'. "$HOME/{rc}"; printf %s "${{ANTHROPIC_BASE_URL-}}"'],
                env=self.environ(),
                capture_output=True,
                text=True,
                timeout=20,
            )
            assert (done.returncode, done.stderr) == (0, "") and time.monotonic() - started < 5
            if done.stdout:
                port = int(re.search(r":(\d+)/", done.stdout)[1])
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                    assert json.load(answer)["app"] == "llm-proxy"
            found[shell] = done.stdout
        return found

    def close(self):
        """Stop what runs in this home."""
        folder = str(self.home / ".local/state/llm-proxy")
        run = state.read_run(folder)
        if run is not None and state.alive(run):
            os.kill(run.pid, signal.SIGTERM)
            deadline = time.monotonic() + 60
            while state.alive(run) and time.monotonic() < deadline:
                time.sleep(0.05)


def tools(folder, *extra, without=(), python=True):
    """A folder for PATH with links to the tools named, and no others."""
    folder.mkdir()
    for name in {*TOOLS, *extra, *(["curl", "sha256sum"]), *(["python3"] if python else [])} - set(without):
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    return folder


def stub(folder, name, text):
    """A command that is not what it should be: a shell script."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def real(name):
    return shlex.quote(str(Path(shutil.which(name)).resolve()))
