"""A machine with a real systemd for tests, booted in namespaces of this one; needs root and leaves nothing behind."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
_SCRIPT = Path(__file__).with_name("sandbox.sh")
_NEEDED = ("unshare", "nsenter", "setpriv", "systemctl", "loginctl", "dbus-daemon")
_SPACES = ("--mount", "--pid", "--uts", "--ipc", "--cgroup", "--net")


def why_not():
    """Why no such machine can be booted here; empty where it can."""
    if os.geteuid() != 0:
        return "only root can make the namespaces of a machine"
    if missing := [tool for tool in _NEEDED if shutil.which(tool) is None]:
        return f"{', '.join(missing)} missing (Debian: systemd dbus dbus-user-session libpam-systemd)"
    if not Path("/lib/systemd/systemd").exists():
        return "systemd is not installed"
    done = subprocess.run(["unshare", *_SPACES, "--fork", "true"], capture_output=True, text=True)
    return f"namespaces are refused: {done.stderr.strip()}" if done.returncode else ""


class Machine:
    """`boot`, `off` (what was written stays, so boot again is a reboot), `close`."""

    def __init__(self, folder):
        self.base = Path(folder) / "machine"
        self.base.mkdir()
        self._holder = subprocess.Popen(
            _dying_with_us("unshare", "--mount", "--propagation", "private", "sh", _SCRIPT, "hold", self.base),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout.readline() == b"ready\n"
        self._cgroup = _cgroup(self.base)
        self._unshare = None
        self._init = 0
        self.binds = [ROOT, Path(sys.base_prefix)]

    def boot(self):
        """Until its target is reached."""
        inside = ["nsenter", "-t", self._holder.pid, "-m", "unshare", *_SPACES, "--propagation", "private", "--fork"]
        self._unshare = subprocess.Popen(
            _dying_with_us(*inside, "--kill-child=KILL", "sh", _SCRIPT, "boot", self.base, *self.binds),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: (self._cgroup / "cgroup.procs").write_text("0"),
            start_new_session=True,
        )
        deadline = time.monotonic() + 60
        while not self._is_up():
            assert self._unshare.poll() is None, self._unshare.stdout.read().decode()
            assert time.monotonic() < deadline, "the machine does not boot"
            time.sleep(0.05)

    def run(self, *command, check=True, timeout=60):
        """A command as root; the completed process, output as text."""
        done = subprocess.run(
            ["nsenter", f"--target={self._init}", *_SPACES, "--root", "--wd", "--", *map(str, command)],
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def user(self, name, *, home=None):
        """Make a user, with the rc files of this system."""
        self.run("useradd", "--create-home", "--shell", "/bin/bash", *(["--home-dir", home] if home else []), name)
        return User(self, name)

    def off(self):
        if self._unshare is not None and self._unshare.poll() is None:
            self.run("systemctl", "poweroff", check=False)
            try:
                self._unshare.wait(20)
            except subprocess.TimeoutExpired:
                self._unshare.kill()
        if self._unshare is not None:
            self._unshare.wait()
            self._unshare.stdout.close()
            self._unshare = None

    def close(self):
        self.off()
        self._holder.stdin.close()
        self._holder.wait()
        self._holder.stdout.close()
        deadline = time.monotonic() + 60
        while self._cgroup.exists() and time.monotonic() < deadline:  # its last processes may still be on their way out
            for folder, _, _ in os.walk(self._cgroup, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)

    def _is_up(self):
        with contextlib.suppress(OSError, ValueError, AssertionError):
            self._init = int(Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text())
            return self.run("systemctl", "is-active", "-q", "sandbox.target", check=False).returncode == 0
        return False


class User:
    """Somebody on a machine."""

    def __init__(self, machine, name):
        self.machine, self.name = machine, name
        entry = machine.run("getent", "passwd", name).stdout.rstrip("\n").split(":")
        self.uid, self.home = int(entry[2]), entry[5]

    def run(self, script, *, session=True, check=True, timeout=120, **variables):
        """A shell script as this user, with the environment of a login; `session=False`: as cron or `su` would."""
        environ = {
            "HOME": self.home,
            "USER": self.name,
            "LOGNAME": self.name,
            "SHELL": "/bin/bash",
            "LANG": "C.UTF-8",
            "PATH": f"{self.home}/.local/bin:{ROOT}/.venv/bin:/usr/local/bin:/usr/bin:/bin",
        }
        if session:
            environ |= {"XDG_RUNTIME_DIR": f"/run/user/{self.uid}"}
        words = [f"{key}={value}" for key, value in (environ | variables).items() if value is not None]
        into = ["setpriv", f"--reuid={self.name}", f"--regid={self.name}", "--init-groups", "env", "-i", *words]
        return self.machine.run(*into, "sh", "-c", f'cd "$HOME" || exit 1\n{script}', check=check, timeout=timeout)

    def log_in(self):
        """Open a session, which starts the user's manager."""
        self.machine.run(
            *("systemd-run", "--quiet", "--collect", f"--unit=login-{self.name}", f"--uid={self.name}"),
            *("--property=PAMName=login", "sleep", "infinity"),
        )
        for _ in range(200):
            if self.machine.run("systemctl", "is-active", "-q", f"user@{self.uid}", check=False).returncode == 0:
                return
            time.sleep(0.05)
        raise AssertionError(f"{self.name} has no manager")

    def log_out(self):
        """End the session, and with it the manager, unless the user lingers."""
        self.machine.run("systemctl", "stop", f"login-{self.name}", check=False)
        self.machine.run("systemctl", "stop", f"user@{self.uid}.service", check=False)


def _dying_with_us(*words):
    return ["setpriv", "--pdeathsig", "KILL", *map(str, words)]


def _cgroup(base):
    """A group for the machine in the unified hierarchy; one is mounted if there is none."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            folder = Path(place) / f"sandbox-{os.getpid()}-{base.parent.name}"
            folder.mkdir()
            return folder
    place = base.with_name("cgroup")
    place.mkdir()
    subprocess.run(["mount", "-t", "cgroup2", "cgroup2", place], check=True)
    folder = place / f"sandbox-{os.getpid()}"
    folder.mkdir()
    return folder
