"""An image without an engine: a Dockerfile's steps run for real, each stage on an overlay of this machine's own root.

A simulation in three things: this machine's root and Python stand in for the base image, a layer is what a step left in
the overlay, and COPY takes from the checkout what .dockerignore lets through by its own plain rules. Needs root.
"""

import contextlib
import http.client
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.release import _REACH

ROOT = Path(__file__).parent.parent
DOCKERFILE = ROOT / "packaging/Dockerfile"
_SCRIPT = Path(__file__).with_name("imagebed.sh")
_PATH = "/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin"
_HOST, _INSIDE = "10.231.77.1", "10.231.77.2"


def instructions(text):
    """[(name, rest of the line)]: comments left out, continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


class Image:
    """What the steps made: `facts` by instruction, of the last stage; its file system until `close`."""

    def __init__(self, folder, text=None):
        self.base = Path(folder) / "image"
        self.base.mkdir()
        self.stages, self.facts, self.environ = [], {}, {"PATH": _PATH}
        steps = instructions(DOCKERFILE.read_text() if text is None else text)
        names = [_stage(rest, number) for number, rest in enumerate(rest for name, rest in steps if name == "FROM")]
        self._holder = subprocess.Popen(
            [
                "setpriv",
                "--pdeathsig",
                "KILL",
                "unshare",
                "--mount",
                "--propagation",
                "private",
                "sh",
                _SCRIPT,
                self.base,
                *names,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout.readline() == b"ready\n"
        try:
            for name, rest in steps:
                getattr(self, f"_{name.lower()}", self._fact(name))(rest)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self):
        """Of the process that holds the mounts."""
        return self._holder.pid

    @property
    def root(self):
        """Of the last stage, as its own mount namespace has it."""
        return f"{self.base}/{self.stages[-1]}/root"

    def files(self, *folders):
        """{path: (mode, owner, bytes)} of regular files there."""
        found = {}
        for folder in folders:
            for path in Path(f"/proc/{self.pid}/root{self.root}{folder}").rglob("*"):
                if path.is_file() and not path.is_symlink():
                    facts = path.stat()
                    found[f"{folder}/{path.relative_to(f'/proc/{self.pid}/root{self.root}{folder}')}"] = facts
        return found

    def close(self):
        self._holder.stdin.close()
        self._holder.wait()
        self._holder.stdout.close()

    # -- steps ------------------------------------------------------------------------------------------------------

    def _fact(self, name):
        def keep(rest):
            _, command, words = rest.partition("CMD ")  # of HEALTHCHECK, behind its options
            rest = words if name == "HEALTHCHECK" and command else rest
            self.facts[name] = json.loads(rest) if rest.startswith("[") else rest

        return keep

    def _from(self, rest):
        """This machine is the base: its Python under the names that the image has."""
        self.stages.append(_stage(rest, len(self.stages)))
        self.facts, self.environ = {"FROM": rest}, {"PATH": _PATH}
        python = sys._base_executable
        # no link: an environment made by one looks for the library beside the link, and may find another Python's
        wrapper = f'#!/bin/sh\nexec {shlex.quote(python)} "$@"\n'
        self._run_in(
            ["sh", "-c", 'printf %s "$1" >/usr/local/bin/python; chmod 755 /usr/local/bin/python', "sh", wrapper]
        )
        folder = Path(python)
        while (folder := folder.parent) != Path("/"):
            self._run_in(["chmod", "a+x", folder])  # an image's Python is not in anybody's home
        if len(self.stages) == 1:
            self._run_in(["python", "-m", "venv", "/opt/stand-in"])
            self._run_in(["ln", "-sfn", "/opt/stand-in/bin/pip", "/usr/local/bin/pip"])

    def _workdir(self, rest):
        self.facts["WORKDIR"] = rest
        self._run_in(["mkdir", "-p", rest])

    def _env(self, rest):
        pairs = dict(pair.split("=", 1) for pair in rest.split())
        self.environ |= pairs

    def _run(self, rest):
        self._run_in(json.loads(rest), self.facts.get("WORKDIR", "/"))

    def _copy(self, rest):
        words = rest.split()
        sources, target = words[:-1], words[-1]
        stage = ROOT
        if sources[0].startswith("--from="):
            stage = Path(f"{self.base}/{sources.pop(0).removeprefix('--from=')}/root")
        here = self.facts.get("WORKDIR", "/")
        for source in sources:
            into = f"{self.root}/{os.path.join(here, target).lstrip('/')}"
            if target.endswith("/"):
                into = f"{into}{Path(source).name}"
            if stage == ROOT:
                assert is_sent(source), f"{source} is left out by .dockerignore"
            command = ["cp", "-r", "--no-dereference", "--preserve=mode,links", f"{stage}/{source.lstrip('/')}", into]
            self._nsenter("mkdir", "-p", str(Path(into).parent))
            self._nsenter("rm", "-rf", into)
            self._nsenter(*command)

    def _run_in(self, command, folder="/"):
        words = [f"{name}={value}" for name, value in (self.environ | _REACH).items()]
        self._nsenter("chroot", self.root, "env", "-i", "-C", folder, *words, *map(str, command))

    def _nsenter(self, *command):
        done = subprocess.run(["nsenter", "-t", str(self.pid), "-m", "--", *command], capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout


def _stage(rest, number):
    words = rest.split()
    return words[2] if len(words) == 3 else f"stage{number}"


def is_sent(path):
    """Whether .dockerignore sends a path to the engine: everything is left out but what a line brings back."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    kept = [rule[1:] for rule in rules if rule.startswith("!")]
    return any(path == rule or path.startswith(f"{rule}/") for rule in kept)


class Container:
    """The image running as an engine would: its user, no capabilities, root read-only, /tmp and volumes of its own, and a
    network that is reached over a cable. `environ` is what `-e` would give.
    """

    def __init__(self, image, volumes, environ, *, name="llm-proxy"):
        """`volumes` is a folder: below it each VOLUME is kept from one container to the next."""
        self.image, self.name = image, name
        self.address = _INSIDE
        self._cable = f"ci{os.getpid() % 100000}"
        self.environ = image.environ | {"HOSTNAME": name} | environ
        mounts = "".join(self._volume(Path(volumes), place) for place in image.facts["VOLUME"])
        script = (
            "mount --make-rprivate / && " + mounts + f"mount -o remount,bind,ro {image.root} 2>/dev/null || "
            f"mount -o remount,ro {image.root}; mount -t proc proc {image.root}/proc && hostname {name} && "
            f'ip link set lo up && read _ && exec chroot {image.root} "$@"'
        )
        self.user = image.facts["USER"].split(":")
        self._unshare = subprocess.Popen(
            [
                *("nsenter", "-t", str(image.pid), "-m", "--"),
                *("unshare", "--net", "--pid", "--uts", "--ipc", "--mount", "--fork"),
                *("sh", "-c", script, "sh", *self._as_user(), *image.facts["ENTRYPOINT"]),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.pid = self._child()
        self._plug_in()
        self._unshare.stdin.write("\n")
        self._unshare.stdin.close()
        self._unshare.stdin = None  # `communicate` would write there

    def ask(self, path, *, port=8080, **fields):
        """(status, body) of a GET over the cable; fields by name with _ for -."""
        link = http.client.HTTPConnection(self.address, port, timeout=10)
        with contextlib.closing(link):
            link.request("GET", path, headers={name.replace("_", "-"): value for name, value in fields.items()})
            answer = link.getresponse()
            return answer.status, answer.read()

    def until_it_answers(self, limit=60):
        deadline = time.monotonic() + limit
        while True:
            with contextlib.suppress(OSError):
                return self.ask("/health", Host="localhost:8080")
            assert self._unshare.poll() is None, self._unshare.stdout.read()
            assert time.monotonic() < deadline, "it does not listen"
            time.sleep(0.05)

    def run(self, *command, check=True, environ=None):
        """What `docker exec` does; the completed process."""
        inside = ["nsenter", "-t", str(self.pid), "-m", "-p", "-n", "-u", "-i", "--", "chroot", self.image.root]
        done = subprocess.run([*inside, *self._as_user(environ), *command], capture_output=True, text=True, timeout=60)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def net(self, *command):
        """The words that run a program of this machine in the container's network."""
        return ["nsenter", "-t", str(self.pid), "-n", "--", *command]

    def stop(self, limit=10.0):
        """As an engine does: STOPSIGNAL, then `limit` seconds. (exit status, seconds it took, output)"""
        begun = time.monotonic()
        os.kill(self.pid, getattr(signal, self.image.facts["STOPSIGNAL"]))
        output, _ = self._unshare.communicate(timeout=limit)
        return self._unshare.returncode, time.monotonic() - begun, output

    def wait(self, limit=30):
        """(exit status, output) of one that ends by itself."""
        output, _ = self._unshare.communicate(timeout=limit)
        return self._unshare.returncode, output

    def close(self):
        if (
            self._unshare.poll() is None
        ):  # with process 1 all go; to die with `unshare` is forgotten where the user changes
            os.kill(self.pid, signal.SIGKILL)
        self._unshare.wait()
        self._unshare.stdout.close()
        subprocess.run(["ip", "link", "del", self._cable], capture_output=True)

    def _as_user(self, environ=None):
        words = [f"{name}={value}" for name, value in (self.environ | (environ or {})).items()]
        user, group = self.user
        bare = ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "--no-new-privs"]
        bare += ["--inh-caps=-all", "--bounding-set=-all"]
        return [*bare, "env", "-i", "-C", self.image.facts["WORKDIR"], *words]

    def _volume(self, volumes, place):
        """A new one takes owner and mode of the image's folder, as an engine's named volumes do."""
        folder = volumes / place.strip("/").replace("/", "-")
        if not folder.exists():
            folder.mkdir(parents=True)
            seen = Path(f"/proc/{self.image.pid}/root{self.image.root}{place}").stat()
            os.chown(folder, seen.st_uid, seen.st_gid)
            folder.chmod(seen.st_mode & 0o7777)
        return f"mount --bind {folder} {self.image.root}{place} && "

    def _child(self):
        deadline = time.monotonic() + 60
        while True:
            unshare = self._unshare.pid  # nsenter and unshare are one process, as each becomes the next
            children = Path(f"/proc/{unshare}/task/{unshare}/children").read_text().split()
            if children:
                return int(children[0])
            assert self._unshare.poll() is None and time.monotonic() < deadline, "the namespaces are refused"
            time.sleep(0.01)

    def _plug_in(self):
        inner = f"{self._cable}p"
        for command in (
            ["ip", "link", "add", self._cable, "type", "veth", "peer", "name", inner],
            ["ip", "link", "set", inner, "netns", str(self.pid)],
            ["ip", "address", "add", f"{_HOST}/30", "dev", self._cable],
            ["ip", "link", "set", self._cable, "up"],
            self.net("ip", "address", "add", f"{_INSIDE}/30", "dev", inner),
            self.net("ip", "link", "set", inner, "up"),
        ):
            subprocess.run(command, check=True, capture_output=True)


def why_not():
    """Why there can be none here; empty where there can."""
    if os.geteuid() != 0:
        return "only root can make the namespaces of a container"
    missing = [tool for tool in ("unshare", "nsenter", "setpriv", "ip") if shutil.which(tool) is None]
    return f"{', '.join(missing)} missing" if missing else ""
