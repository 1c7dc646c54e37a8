"""The failure cases of installing, by number: odd disks, odd Pythons, odd networks, Ctrl-C, and two ways of installing.

Each row starts with a home in which the version before runs, or with one that has only rc files. Whatever happens, rc
files are whole, new shells start clean, and what ran before runs after. Homebrew and other machines are simulated, by
commands on the PATH that answer as theirs do.
"""

import contextlib
import hashlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from tests.installbed import PATH, Person, real, stub, tools
from tests.release import NEW, OLD, Server

CASES = []


def case(*names):
    """A row of the table for each name."""

    def add(function):
        CASES.extend(pytest.param(function, name, id=name) for name in names)
        return function

    return add


class World:
    """What a row has: `fresh` has never installed anything, in `settled`'s home the old version runs."""

    def __init__(self, folder, releases, settled, serve):
        self.folder, self.releases, self.settled, self.serve = folder, releases, settled, serve
        self.fresh = Person(folder / "ho me'x", releases.environ())

    def script(self):
        return self.serve(self.releases.page).script

    def spoiled(self, spoil):
        """The script of a release page that `spoil(folder of the new version)` has changed."""
        page = shutil.copytree(self.releases.page, self.folder / "page", symlinks=True)
        spoil(page / f"download/v{NEW}")
        return self.serve(page).script


@pytest.fixture(scope="module")
def settled(tmp_path_factory, releases):
    person = Person(tmp_path_factory.mktemp("settled") / "home", releases.environ())
    server = Server(releases.page)
    done = person.install(server.script, "--version", OLD)
    server.close()
    assert done.returncode == 0, done.stdout + done.stderr
    yield person
    person.close()


@pytest.mark.parametrize(("row", "name"), CASES)
def test_case(row, name, tmp_path, releases, settled, serve):
    """No state of the machine in which somebody installs leaves them with less than they had."""
    world = World(tmp_path, releases, settled, serve)
    files, before = settled.rc_files(), settled.status()
    try:
        row(world, name)
        now = settled.status()
        assert now["running"] and (now["version"], now["port"]) == (OLD, before["port"])
        assert all(f":{before['port']}/" in url for url in settled.new_shells().values())
        assert settled.rc_files() == files and settled.versions == [OLD]
        world.fresh.new_shells()
    finally:
        world.fresh.close()


def refused(person, script, words, *, said="", **options):
    """It fails with these words and an exit status of 1, and the home is what it was."""
    before = person.snapshot() if not person.launcher.exists() else None
    done = person.install(script, **options)
    assert done.returncode == 1 and words in done.stderr, done.stdout + done.stderr
    assert said in done.stdout
    assert before is None or person.snapshot() == before


def installed(person, script, *arguments, status=0, **options):
    """It works; the new version runs, and all of it can be taken away."""
    done = person.install(script, *arguments, **options)
    assert done.returncode == status, done.stdout + done.stderr
    assert person.status()["version"] == NEW
    return done


def gone(person):
    assert person.command("--uninstall").returncode == 0
    assert person.snapshot() == person.before


# -- disks ---------------------------------------------------------------------------------------------------------


def mounted(folder, options):
    """A prefix that runs a command where a file system of its own is mounted on `folder`."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        if os.environ.get("CI_REQUIRE_SYSTEMD") == "1":
            pytest.fail("mount namespaces are required here")
        pytest.skip("only root can mount, and in a namespace only where that is allowed")
    mount = f'mount -t tmpfs -o {options} tmpfs {shlex.quote(str(folder))} && cd / && exec "$@"'
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", mount, "sh"]


@case("D38-noexec-tmp")
def _(world, name):
    """Nothing is run from there, and nothing is kept there."""
    tmp = world.folder / "tmp"
    tmp.mkdir()
    installed(world.fresh, world.script(), prefix=mounted(tmp, "noexec,mode=1777"), TMPDIR=tmp)
    gone(world.fresh)


@case("D38-full-tmp")
def _(world, name):
    """It needs no room there, nor does pip."""
    tmp = world.folder / "tmp"
    tmp.mkdir()
    installed(world.fresh, world.script(), prefix=mounted(tmp, "size=4k"), TMPDIR=tmp, PATH=PATH)
    gone(world.fresh)


@case("D38-full-disk-download", "D38-full-disk-build")
def _(world, name):
    """The home's disk fills up while it downloads, or while it builds: it says so, and takes everything back."""
    person, size = world.fresh, "60k" if name.endswith("download") else "6m"
    script = world.folder / "install.sh"
    script.write_text(world.script())
    inside = f'cd "$HOME" && sh {script}; code=$?; find . ! -path "./.rustup*" >&2; exit $code'
    done = person.install("", shell=[*mounted(person.home, f"size={size}"), "sh", "-c", inside])
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Nothing was changed" in done.stderr or "could not be" in done.stderr
    assert done.stderr.endswith("changed\n.\n"), done.stderr


@case("D38-quota")
def _(world, name):
    """A limit on the size of files, as a quota would: the version before is left as it is."""
    limited = ["sh", "-c", "ulimit -f 64; exec sh -s"]
    refused(world.settled, world.script(), "Nothing was changed", shell=limited)


@case("D38-umask-077", "D38-umask-000")
def _(world, name):
    """The command can be run, and nobody else can write what it runs."""
    person = world.fresh
    path = PATH if name.endswith("077") else world.releases.path
    installed(person, world.script(), PATH=path, prefix=["sh", "-c", f'umask {name[-3:]}; exec "$@"', "sh"])
    loose = [path for path in person.home.rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o022]
    assert loose == [] and person.launcher.stat().st_mode & 0o777 == 0o755
    gone(person)


# -- Pythons -------------------------------------------------------------------------------------------------------


def pythons(world, text):
    """A PATH whose every Python is that script; None: there is none."""
    path = tools(world.folder / "bin", python=False)
    for name in ("python3", "python3.13", "python3.12", "python3.11") if text else ():
        stub(path, name, text)
    return path


@case("D39-no-python3")
def _(world, name):
    refused(world.fresh, world.script(), "Python 3.11 or newer is needed, or uv", PATH=pythons(world, None))


@case("D39-python-3.8")
def _(world, name):
    """Its code is asked for nothing that 3.8 does not know."""
    old = 'case $2 in *"sys.executable if"*) echo ;; *) echo " (python3 is 3.8)" ;; esac'
    refused(world.fresh, world.script(), "Python 3.11 or newer is needed (python3 is 3.8)", PATH=pythons(world, old))


@case("D39-broken-shim")
def _(world, name):
    """A shim that knows no version of that name is passed over, loudly or not, and the next one taken."""
    shim = "echo 'pyenv: version `3.12\\'' is not installed' >&2; exit 1"
    path = pythons(world, shim.replace("\\'", "'"))
    refused(world.settled, world.script(), "Python 3.11 or newer is needed, or uv", PATH=path)
    (path / "python3.11").unlink()
    (path / "python3.11").symlink_to(sys.executable)
    done = world.settled.install(world.script(), "--dry-run", PATH=path)
    assert (done.returncode, done.stderr) == (0, "") and "with " in done.stdout


@case("D39-no-venv")
def _(world, name):
    """Debian without python3-venv."""
    python = f'case $2 in *ensurepip*) exit 1 ;; esac; exec {shlex.quote(sys.executable)} "$@"'
    refused(world.fresh, world.script(), "sudo apt install python3-venv", PATH=pythons(world, python))


# -- machines (simulated) ------------------------------------------------------------------------------------------


@case("D40-musl-simulated", "D40-32-bit-simulated", "D40-rosetta-simulated")
def _(world, name):
    """The interpreter knows what machine it is for, uname may not: the same archive for all, and pip's choice of wheels."""
    machine = {"musl": "Linux x86_64", "32-bit": "Linux armv7l", "rosetta": "Darwin x86_64"}[name[4:-10]]
    system, processor = machine.split()
    stub(world.folder / "bin", "uname", f"case ${{1-}} in -m) echo {processor} ;; *) echo {system} ;; esac")
    stub(world.folder / "bin", "ldd", "echo 'musl libc (x86_64)' >&2; exit 1")
    path = f"{world.folder}/bin:{PATH}"
    done = world.fresh.install(world.script(), "--dry-run", PATH=path)
    assert done.returncode == 0 and f"llm-proxy-{NEW}.tar.gz" in done.stdout
    wheels = shutil.copytree(world.releases.wheels, world.folder / "wheels")
    for wheel in wheels.glob("uvloop-*"):
        wheel.unlink()  # the machine for which there is none
    words = f"llm-proxy {NEW} could not be installed, see above. Nothing was changed"
    refused(world.settled, world.script(), words, PATH=path, PIP_FIND_LINKS=wheels)


# -- networks ------------------------------------------------------------------------------------------------------


def _sums(text):
    return lambda folder: (folder / "SHA256SUMS").write_text(text)


def _truncated(folder):
    archive = folder / f"llm-proxy-{NEW}.tar.gz"
    archive.write_bytes(archive.read_bytes()[:-1000])


def _not_an_archive(folder):
    archive = folder / f"llm-proxy-{NEW}.tar.gz"
    archive.write_bytes(b"<html>log in</html>")
    (folder / "SHA256SUMS").write_text(f"{hashlib.sha256(archive.read_bytes()).hexdigest()}  {archive.name}\n")


LINE = f"{'0' * 64}  llm-proxy-{NEW}.tar.gz\n"
SPOILED = {
    "D41-html-for-sums": (_sums("<!DOCTYPE html>\n<html><body>Please log in</body></html>\n"), "login page"),
    "D41-empty-sums": (_sums(""), "names no llm-proxy-VERSION.tar.gz"),
    "D41-sums-of-others": (_sums(f"{'0' * 64}  other-1.tar.gz\n"), "names no llm-proxy-VERSION.tar.gz"),
    "D41-404-sums": (lambda folder: (folder / "SHA256SUMS").unlink(), "SHA256SUMS could not be downloaded"),
    "D41-404-archive": (lambda folder: (folder / f"llm-proxy-{NEW}.tar.gz").unlink(), "tar.gz could not be downloaded"),
    "D41-truncated": (_truncated, "is not what its SHA-256 sum says"),
    "D41-wrong-sum": (_sums(LINE), "is not what its SHA-256 sum says"),
    "D41-two-lines": (_sums(LINE + LINE), "has 2 lines"),
    "D41-short-sum": (_sums(LINE[1:]), "has no SHA-256 sum"),
    "D41-html-for-archive": (_not_an_archive, "could not be unpacked"),
}


@case(*SPOILED)
def _(world, name):
    spoil, words = SPOILED[name]
    refused(world.fresh, world.spoiled(spoil), words)


@case("D41-cut-connection")
def _(world, name):
    """A server that promises more than it sends."""
    with socket.create_server(("127.0.0.1", 0)) as link:

        def answer():
            with contextlib.suppress(OSError):
                while True:
                    with link.accept()[0] as client:
                        client.recv(4096)
                        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + LINE.encode())

        threading.Thread(target=answer, daemon=True).start()
        url = f"http://127.0.0.1:{link.getsockname()[1]}"
        refused(world.fresh, world.script(), "could not be downloaded", LLM_PROXY_BASE_URL=url)
        link.shutdown(socket.SHUT_RDWR)


@case("D41-dead-proxy")
def _(world, name):
    """A forward proxy that does not answer."""
    changes = {"http_proxy": "http://127.0.0.1:1", "ALL_PROXY": "http://127.0.0.1:1"}
    refused(world.fresh, world.script(), "could not be downloaded. Nothing was written", **changes)


# -- Ctrl-C --------------------------------------------------------------------------------------------------------

# Where it strikes: the how-manieth use of a command, a file that has just appeared, or a line that was just said.
STRIKES = {
    "D42-at-sums": ("curl", 1),
    "D42-at-download": ("curl", 2),
    "D42-at-checking": ("sha256sum", 1),
    "D42-at-unpacking": ("tar", 1),
    "D42-at-venv": ("file", "pyvenv.cfg"),
    "D42-at-packages": ("file", "lib/python*/site-packages/aiohttp"),
    "D42-at-bytecode": ("file", "lib/python*/site-packages/llm_proxy/__pycache__"),
    "D42-at-launcher": ("chmod", 2),
    "D42-at-switch": ("mv", 1),
    "D42-at-stopping-the-old": ("line", "!!  no service manager"),
    "D42-at-starting-the-new": ("line", "ok  stop the running daemon"),
}


@case(*STRIKES)
def _(world, name):
    """The version before works; nothing half stays behind, in a fresh home nothing at all."""
    means, at = STRIKES[name]
    path = PATH if means == "file" else world.releases.path
    if means not in ("file", "line"):
        uses = world.folder / "uses"
        strike = (
            f'echo >>{uses}\nif [ "$(wc -l <{uses})" -eq {at} ]; then trap "" INT; kill -INT 0; trap - INT; fi\n'
            f'exec {real(means)} "$@"'
        )
        stub(world.folder / "bin", means, strike)
        path = f"{world.folder}/bin:{path}"
    # from the switch on, a fresh home has something that works and that --uninstall takes away
    for person in (world.settled, *([] if name == "D42-at-switch" or means == "line" else [world.fresh])):
        (world.folder / "uses").write_text("")
        before = person.snapshot()
        status, error = interrupted(person, world.script(), path, means, at)
        assert status in (130, -signal.SIGINT), (status, error)
        assert "Traceback" not in error or means == "file"  # Python's own, when it is what was interrupted
        assert person is world.settled or person.snapshot() == before, error


def interrupted(person, script, path, means, at):
    """Install; Ctrl-C at a file or a line (a command strikes itself). Exit status, stderr."""
    process = subprocess.Popen(
        ["sh", "-s"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=person.environ(PATH=path),
        text=True,
        start_new_session=True,
    )
    known = set(versions(person, at)) if means == "file" else set()
    errors = []
    reader = threading.Thread(target=lambda: errors.append(process.stderr.read()))
    reader.start()
    process.stdin.write(script)
    process.stdin.close()
    while means == "file" and set(versions(person, at)) <= known:
        assert process.poll() is None, "it ended before"
        time.sleep(0.005)  # nobody tells when a file appears
    if means == "file":
        os.killpg(process.pid, signal.SIGINT)
    for line in process.stdout:
        if means == "line" and line.startswith(at):
            os.killpg(process.pid, signal.SIGINT)
    status = process.wait(100)
    reader.join()
    process.stdout.close()
    process.stderr.close()
    return status, errors[0]


def versions(person, pattern):
    return person.home.glob(f".local/share/llm-proxy/versions/*/{pattern}")


# -- versions and ways ---------------------------------------------------------------------------------------------


@case("D43-downgrade")
def _(world, name):
    """An older version takes over the port, the rc files stay, and the newer one is the one that is kept."""
    person, script = world.fresh, world.script()
    installed(person, script)
    files, port = person.rc_files(), person.status()["port"]
    done = person.install(script, LLM_PROXY_VERSION=f"v{OLD}")
    assert done.returncode == 0 and f"llm-proxy {OLD} is installed" in done.stdout
    now = person.status()
    assert (now["version"], now["port"]) == (OLD, port)
    assert person.versions == [OLD, NEW] and person.rc_files() == files
    gone(person)


@case("D46-brew-and-curl-simulated")
def _(world, name):
    """It says which of the two the PATH finds; doctor names both, and the command that removes one."""
    prefix = world.folder / "brew"
    (prefix / "opt/llm-proxy").mkdir(parents=True)
    stub(prefix / "bin", "brew", "exit 0")
    stub(prefix / "bin", "llm-proxy", "echo 'llm-proxy 0.0.1'")
    person = world.fresh
    path = f"{prefix}/bin:{person.home}/.local/bin:{world.releases.path}"
    done = installed(person, world.script(), PATH=path, HOMEBREW_PREFIX=prefix)
    assert f"your PATH has another llm-proxy before it: {prefix}/bin/llm-proxy" in done.stderr
    done = person.command("doctor", PATH=path, HOMEBREW_PREFIX=prefix)
    assert done.returncode == 1 and done.stderr == ""
    assert f"`llm-proxy` is {prefix}/bin/llm-proxy in this shell" in done.stdout
    assert "it is installed more than once" in done.stdout and "brew uninstall llm-proxy" in done.stdout
    gone(person)
