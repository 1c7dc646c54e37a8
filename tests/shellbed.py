"""A home with rc files and the installed command, real shells in it under a pty, and a process that plays the daemon."""

import contextlib
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pexpect

import llm_proxy
from llm_proxy.service import environment, state

ROOT = Path(__file__).parent.parent
LAUNCHER = (ROOT / "packaging/launcher.sh").read_text()
INSTANCE = "0123456789abcdef0123456789abcdef"
VARIABLES = tuple(environment.VARIABLES)
PROMPT = "PROMPT> "
PATIENCE = 10  # seconds for a shell on a loaded machine

# How each shell is started with the user's rc files and nobody else's.
SHELLS = {
    "bash": ["bash", "--noediting", "-i"],
    "zsh": ["zsh", "-d", "-i"],
    "fish": ["fish", "-i"],
    "dash": ["dash", "-i"],
    "ksh": ["ksh", "-i"],
    "mksh": ["mksh", "-i"],
    "yash": ["yash", "-i"],
    "busybox": ["busybox", "ash", "-i"],
}
HOOKED = ("bash", "zsh", "fish")
RC = {
    "bash": (".bashrc", f"PS1={PROMPT!r}\n"),
    "zsh": (".zshrc", f"PS1={PROMPT!r}\nunsetopt zle prompt_sp prompt_cr\n"),
    "fish": (".config/fish/config.fish", f"set -g fish_greeting ''\nfunction fish_prompt; printf {PROMPT!r}; end\n"),
    "dash": (".shrc", f"PS1={PROMPT!r}\n"),
    "busybox": (".shrc", f"PS1={PROMPT!r}\n"),
    "ksh": (".kshrc", f"PS1={PROMPT!r}\n"),
    "mksh": (".mkshrc", f"PS1={PROMPT!r}\n"),
    "yash": (".yashrc", f"PS1={PROMPT!r}\n"),
}

_DAEMON = """
import socket, sys, time
from llm_proxy.service import state
link = socket.create_server(("127.0.0.1", int(sys.argv[2])))
run = state.this_run(link.getsockname()[1], sys.argv[3])
state.write(sys.argv[1], "run", run.line())
print(run.port, flush=True)
time.sleep(3600)
"""


def program(shell):
    """The path of a shell or tool the tests drive."""
    found = shutil.which(shell)
    assert found, f"{shell} is missing: scripts/test.sh installs it"
    return found


# A PATH without an llm-proxy of somebody else, such as that of the environment the tests run in.
ELSEWHERE = ":".join(
    folder for folder in os.environ["PATH"].split(":") if not os.path.exists(os.path.join(folder, "llm-proxy"))
)


class Home:
    """A user's home. `environ` is what a terminal would hand to a shell."""

    def __init__(self, path):
        self.path = path
        self.state = path / ".local/state/llm-proxy"
        self.launcher = path / ".local/bin/llm-proxy"
        self.environ = {
            "HOME": str(path),
            "PATH": f"{path}/.local/bin:{ELSEWHERE}",
            "TERM": "dumb",
            "LANG": "C.UTF-8",
            "HISTFILE": "",
            "fish_history": "",
        }
        self._stack = contextlib.ExitStack()
        self.later = self._stack.callback  # what is to be done when the test has ended
        state.prepare(str(self.state))
        self._install()

    def close(self):
        self._stack.close()

    def write(self, name, text, mode=0o644):
        """A file of the user's, as text or bytes; its path."""
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        file.chmod(mode)
        return file

    def rc(self, shell, before="", after=""):
        """The rc file of a shell, with lines of the user's before and after what makes its prompt; its path."""
        name, own = RC[shell]
        return self.write(name, before + own + after)

    def patch(self, shell, before="", after=""):
        """An rc file that has our block, by --setup-shell where it knows the shell, else as its lines say."""
        if shell in HOOKED:
            self.rc(shell, before, after)
            self.environ["SHELL"] = program(shell)
            done = self.command("--setup-shell")
            assert (done.returncode, done.stderr) == (0, ""), done
        else:
            self.rc(shell, before, after + 'eval "$(llm-proxy --env --shell sh)"\n')
            if shell in ("dash", "busybox", "ksh"):  # ksh expands it, so that a quote in the path must not be there
                self.environ["ENV"] = f"$HOME/{RC[shell][0]}"

    def command(self, *arguments, **environ):
        """Run `llm-proxy` to its end."""
        return subprocess.run(
            [self.launcher, *arguments],
            env=self.environ | environ,
            capture_output=True,
            text=True,
            timeout=60,
            cwd=self.path,
        )

    def daemon(self, port=0, instance=INSTANCE, prefix=()):
        """A process that listens and says so in the state file, as the daemon does. `process.port` is where."""
        process = subprocess.Popen(
            [*prefix, sys.executable, "-c", _DAEMON, str(self.state), str(port), instance],
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        self.later(self.end, process)
        process.port = int(process.stdout.readline())
        return process

    def end(self, process):
        process.kill()
        process.wait()
        process.stdout.close()

    def run_line(self):
        return (self.state / "run").read_text()

    def set_run(self, content, mode=0o600):
        """Replace the state file by bytes or text."""
        file = self.state / "run"
        file.unlink(missing_ok=True)
        self.write(file, content, mode)

    def shell(self, shell, arguments=None, **environ):
        """A new interactive shell at its first prompt."""
        opened = Shell(self, arguments or SHELLS[shell], self.environ | environ)
        self.later(opened.close)
        return opened

    def urls(self, port):
        """The variables as they must be with a daemon on `port`."""
        return {name: environment.base_url(name, port) for name in VARIABLES}

    def _install(self):
        """The launcher, and the package where an installed one lies."""
        package = self.path.parent / "installed/lib/python3/site-packages/llm_proxy"
        package.parent.mkdir(parents=True, exist_ok=True)
        package.symlink_to(Path(llm_proxy.__file__).parent)
        python = self.path.parent / "installed/bin/python"
        python.parent.mkdir()
        python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
        python.chmod(0o755)
        self.write(".local/bin/llm-proxy", LAUNCHER.replace("@PYTHON@", shlex.quote(str(python))), 0o755)


class Shell:
    """An interactive shell under a pty. `greeting` is all it showed before its first prompt, `took` the seconds."""

    def __init__(self, home, arguments, environ):
        self.home = home
        begun = time.monotonic()
        self._pty = pexpect.spawn(
            program(arguments[0]),
            arguments[1:],
            env=environ,
            cwd=str(home.path),
            encoding="utf-8",
            codec_errors="replace",
            timeout=PATIENCE,
            dimensions=(50, 250),
            echo=False,
        )
        self._pty.delaybeforesend = None
        self._pty.expect_exact(PROMPT)
        self.took = time.monotonic() - begun
        before = re.sub(r"^\s*BusyBox v.*commands\.", "", self._pty.before, flags=re.DOTALL)
        self.greeting = re.sub(r"\x1b\][^\x07]*\x07|\x1b[^A-Za-z]*[A-Za-z]|[\r\n⏎ ]", "", before)
        self._count = 0

    def do(self, line):
        """Type a line; what was shown until it was done, prompts and echo included."""
        self._count += 1
        self._pty.sendline(line)
        self._pty.sendline(f"echo D''ONE{self._count}.")
        self._pty.expect_exact(f"DONE{self._count}.")
        shown = self._pty.before
        self._pty.expect_exact(PROMPT)
        return shown

    def prompt(self):
        """Return at an empty line: one more prompt."""
        self.do("")

    def says(self, line):
        """What a line prints, into a file: no shell's own editing gets in between."""
        out = self.home.path / "said"
        out.unlink(missing_ok=True)  # the shell may refuse to overwrite it
        self.do(f"{line} > ~/said 2>&1")
        return out.read_text()

    def variables(self):
        """Our four variables as a child of this shell gets them."""
        pairs = (line.partition("=") for line in self.says("env").splitlines())
        return {name: value for name, _, value in pairs if name in VARIABLES}

    def exit(self, code=0):
        """Leave; the exit status."""
        self._pty.sendline(f"exit {code}")
        self._pty.expect(pexpect.EOF)
        self._pty.close()
        return self._pty.exitstatus

    def close(self):
        self._pty.close(force=True)


def snapshot(folder):
    """Everything under a folder: type, mode, link target or bytes."""
    facts = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        else:
            content = path.read_bytes() if stat.S_ISREG(status.st_mode) else None
        facts[str(path.relative_to(folder))] = (stat.filemode(status.st_mode), status.st_nlink, content)
    return facts
