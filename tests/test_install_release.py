"""scripts/install.sh as the web serves it: what it checks, what it refuses, and that it can be undone without a trace."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

from tests.installbed import PATH, Person, stub, tools
from tests.release import NEW, OLD, ROOT, add_sums
from tests.runtimes import archive
from tests.shellbed import program

SCRIPT = (ROOT / "scripts/install.sh").read_text()
SHELLS = [["dash"], ["bash"], ["zsh"], ["busybox", "ash"], ["ksh"], ["mksh"], ["yash"]]


@pytest.fixture
def person(tmp_path, releases):
    somebody = Person(tmp_path / "ho me'x 100%", releases.environ())
    yield somebody
    somebody.close()


@pytest.fixture
def page(tmp_path, releases):
    """A release page that a test may spoil."""
    return shutil.copytree(releases.page, tmp_path / "page", symlinks=True)


def alter(page, version, name, text):
    """Append lines to a module of a release, and sum it anew."""
    folder = page / f"download/v{version}"
    archive = folder / f"llm-proxy-{version}.tar.gz"
    with tarfile.open(archive) as packed:
        packed.extractall(folder)
    archive.unlink()
    top = folder / f"llm-proxy-{version}"
    (wheel,) = top.glob("*.whl")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(top / "new", "w") as new:
        for entry in old.infolist():
            new.writestr(entry, old.read(entry) + (text.encode() if entry.filename == name else b""))
    (top / "new").rename(wheel)
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(top, top.name)
    shutil.rmtree(top)
    add_sums(folder)


def test_a_life_of_releases(person, releases, serve, page):
    """One line installs, a second one upgrades, a third goes back; what does not work changes nothing; and it all goes."""
    server = serve(releases.page)
    web = serve(page)
    (page / "install.sh").write_text(web.script)
    line = f"curl -fsSL {web.url}/install.sh | sh"
    done = subprocess.run(
        ["sh", "-c", line],
        env=person.environ(LLM_PROXY_VERSION=OLD, PATH=PATH),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"llm-proxy {OLD} is installed" in done.stdout and "New shells use it by themselves" in done.stdout
    first = person.status()
    assert first["running"] and first["version"] == OLD
    assert all(f":{first['port']}/" in url for url in person.new_shells().values())

    done = person.install(server.script)
    assert (done.returncode, done.stderr) == (0, "")
    second = person.status()
    assert second["version"] == NEW and second["port"] == first["port"] and second["pid"] != first["pid"]

    for version in (OLD, NEW):
        assert person.command("upgrade", "--rollback").returncode == 0 and person.status()["version"] == version

    done = person.install(server.script, "--version", OLD, "--no-shell")
    assert done.returncode == 4 and person.status()["version"] == OLD
    assert person.versions == [OLD, NEW], "the one before it is kept, no other"
    files = person.rc_files()
    works = person.status()

    # New builds: one does not run, one is another version than it says, the daemon of one ends at once.
    for module, text, words in (
        ("llm_proxy/cli/main.py", "\nraise SystemExit('broken')\n", "the new build does not run; nothing was changed"),
        ("llm_proxy/__init__.py", "\n__version__ = '0'\n", "the new build does not run; nothing was changed"),
        (
            "llm_proxy/service/daemon.py",
            "\ndef run(*_, **__): raise SystemExit(9)\n",
            "the version before it is put back",
        ),
    ):
        alter(page, NEW, module, text)
        done = person.install(web.script)
        assert done.returncode == 1 and words in done.stderr, done.stdout + done.stderr
        now = person.status()
        assert (now["version"], now["port"], now["running"]) == (OLD, works["port"], True)
        assert person.versions == [OLD, NEW] and person.rc_files() == files
        assert all(f":{first['port']}/" in url for url in person.new_shells().values())
        shutil.rmtree(page / f"download/v{NEW}")
        shutil.copytree(releases.page / f"download/v{NEW}", page / f"download/v{NEW}")

    done = person.command("--uninstall")
    assert done.returncode == 0, done.stdout
    assert person.snapshot() == person.before


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
def test_every_shell_can_run_it(person, releases, serve, shell):
    """A dry run says what would be done and where from, and writes nothing."""
    server = serve(releases.page)
    done = person.install(server.script, "--dry-run", shell=[program(shell[0]), *shell[1:]])
    assert (done.returncode, done.stderr) == (0, "")
    sums = (releases.page / f"download/v{NEW}/SHA256SUMS").read_text().splitlines()
    (sum_line,) = (line for line in sums if line.endswith(f" llm-proxy-{NEW}.tar.gz"))
    for words in (
        f"install llm-proxy {NEW} from {server.url}/download/v{NEW}/llm-proxy-{NEW}.tar.gz",
        sum_line.split()[0],
        "Nothing was written",
    ):
        assert words in done.stdout
    assert person.snapshot() == person.before


def test_a_checkout_says_what_it_would_do_too(person):
    """And --version from a checkout means a release, whose place must be known."""
    run = ["sh", ROOT / "scripts/install.sh"]
    done = subprocess.run([*run, "--dry-run"], env=person.environ(), capture_output=True, text=True, timeout=20)
    assert done.returncode == 0 and f"from {ROOT}" in done.stdout
    done = subprocess.run([*run, "--version", "9"], env=person.environ(), capture_output=True, text=True, timeout=20)
    assert done.returncode == 1 and "LLM_PROXY_BASE_URL" in done.stderr
    assert person.snapshot() == person.before


def test_half_of_it_does_nothing(person):
    """Cut at every 7th byte it neither writes nor asks for anything."""
    whole = SCRIPT.replace("\npublished=\n", "\npublished=http://127.0.0.1:1\n").encode()
    shell = shutil.which("dash")
    for end in range(0, len(whole) - 2, 7):
        done = subprocess.run([shell], input=whole[:end], env=person.environ(), capture_output=True, timeout=10)
        assert b"Nothing was written" not in done.stderr, f"cut at {end} it ran: {done.stderr}"
    assert person.snapshot() == person.before
    done = subprocess.run([shell], input=whole, env=person.environ(), capture_output=True, timeout=10)
    assert b"could not be downloaded. Nothing was written" in done.stderr


REFUSED = {
    "no-home": ({"HOME": None}, (), "HOME must be an absolute path"),
    "relative-home": ({"HOME": "x"}, (), "HOME must be an absolute path"),
    "missing-home": ({"HOME": "/nonexistent"}, (), "does not exist"),
    "line-break": ({"HOME": "/tmp\n/x"}, (), "line break"),
    "option": ({}, ("--nonsense",), "there is no option --nonsense"),
    "version": ({"LLM_PROXY_VERSION": "../../x"}, (), "is not a version"),
    "version-option": ({}, ("--version=1;x",), "is not a version"),
    "no-version": ({}, ("--version",), "takes a version"),
    "place": ({"LLM_PROXY_BASE_URL": "http://127.0.0.1:1"}, (), "could not be downloaded. Nothing was written"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_it_refuses_before_it_writes(person, releases, serve, case):
    """One clear line on stderr, exit 1."""
    changes, options, words = case
    done = person.install(serve(releases.page).script, *options, **changes)
    assert done.returncode == 1 and words in done.stderr and done.stdout == ""
    assert person.snapshot() == person.before


def test_it_says_where_it_runs(person, releases, serve, tmp_path):
    """Another system is told so."""
    stub(tmp_path / "bin", "uname", "echo FreeBSD")
    done = person.install(serve(releases.page).script, PATH=f"{tmp_path}/bin:{os.environ['PATH']}")
    assert done.returncode == 1 and "this is FreeBSD. Nothing was written" in done.stderr
    assert person.snapshot() == person.before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
@pytest.mark.parametrize("changes", [{"SUDO_USER": "alice"}, {"HOME": "/home"}], ids=["sudo", "foreign-home"])
def test_it_refuses_sudo_and_foreign_homes(person, releases, serve, tmp_path, changes):
    """Root's files in somebody's home are what it would leave there."""
    if "HOME" in changes:
        foreign = tmp_path / "foreign"
        foreign.mkdir()
        os.chown(foreign, 12345, 12345)
        changes = {"HOME": foreign}
    done = person.install(serve(releases.page).script, **changes)
    assert done.returncode == 1 and "without sudo" in done.stderr
    assert person.snapshot() == person.before


def test_another_programs_launcher_is_left(person, releases, serve):
    """A command that it has not put there is neither replaced nor followed."""
    person.launcher.parent.mkdir(parents=True)
    for make in (lambda: person.launcher.symlink_to("/usr/bin/env"), lambda: person.launcher.write_text("#!/bin/sh\n")):
        make()
        before = person.snapshot()
        done = person.install(serve(releases.page).script)
        assert done.returncode == 1 and "was not put there by this script" in done.stderr
        assert person.snapshot() == before
        person.launcher.unlink()


@pytest.fixture
def with_python(page):
    """The page, whose newest release says that it brings a Python for this machine; it does not run here."""
    folder, top = page / f"download/v{NEW}", page / f"llm-proxy-{NEW}"
    stub(top / "runtime/bin", "python", "echo 'libc.so.6: version `GLIBC_2.99 not found' >&2; exit 1")
    (top / "launcher.sh").touch()
    with tarfile.open(folder / archive(NEW), "w:gz") as packed:
        packed.add(top, top.name)
    add_sums(folder)
    return page


def test_the_archive_that_is_made_for_this_machine(person, with_python, serve, tmp_path):
    """Where there is one, it is taken and no Python needed; musl, other processors and --python-env have the wheel's."""
    script = serve(with_python).script
    plain, bare = f"/llm-proxy-{NEW}.tar.gz\n", tools(tmp_path / "bare", "ldd", python=False)
    done = person.install(script, "--dry-run", PATH=bare)
    assert done.returncode == 0 and f"/{archive(NEW)}\n" in done.stdout and "with the Python in it" in done.stdout
    assert f"/{archive(NEW)}\n" in person.install(script, "--dry-run").stdout
    assert plain in person.install(script, "--dry-run", "--python-env").stdout
    done = person.install(script, "--dry-run", "--python-env", PATH=bare)
    assert done.returncode == 1 and "Python 3.11 or newer is needed" in done.stderr
    for name, text in (
        ("ldd", "echo 'musl libc (x86_64)' >&2; exit 1"),
        ("uname", "[ $1 = -m ] && echo riscv64 || echo Linux"),
    ):
        stub(tmp_path / name, name, text)
        done = person.install(script, "--dry-run", PATH=f"{tmp_path / name}:{os.environ['PATH']}")
        assert done.returncode == 0 and plain in done.stdout
    sums = with_python / f"download/v{NEW}/SHA256SUMS"
    sums.write_text(sums.read_text() + f"{'0' * 64}  {archive(NEW)}\n")
    done = person.install(script, "--dry-run")
    assert done.returncode == 1 and f"has no single SHA-256 sum for {archive(NEW)}" in done.stderr
    assert person.snapshot() == person.before


def test_a_python_that_does_not_run_here(person, releases, with_python, serve, tmp_path):
    """It says why, and builds with the Python here; where there is none, or that fails, it takes everything back."""
    script = serve(with_python).script
    for changes, words in (
        ({"PATH": tools(tmp_path / "bare", python=False)}, "or uv, which brings its own; PYTHON="),
        (releases.found("/nonexistent"), f"llm-proxy {NEW} could not be installed, see above"),
    ):
        done = person.install(script, **changes)
        assert done.returncode == 1 and "GLIBC_2.99 not found); building it with the one here" in done.stderr
        assert words in done.stderr and done.stderr.rstrip().endswith("Nothing was changed"), done.stderr
        assert person.snapshot() == person.before


@pytest.mark.parametrize("fetcher", ["curl", "wget"])
@pytest.mark.parametrize("summer", ["sha256sum", "shasum", "openssl"])
def test_any_of_the_usual_tools_will_do(person, page, serve, tmp_path, fetcher, summer):
    """Each downloads, and each finds the sum right; that the archive then holds nothing is seen too."""
    folder = page / f"download/v{NEW}"
    with tarfile.open(folder / f"llm-proxy-{NEW}.tar.gz", "w:gz") as archive:
        archive.add(ROOT / "LICENSE", f"llm-proxy-{NEW}/LICENSE")
    add_sums(folder)
    path = tools(tmp_path / "bin", fetcher, summer, "perl", without={"curl", "sha256sum"} - {fetcher, summer})
    done = person.install(serve(page).script, PATH=path, PYTHON=sys.executable)
    assert done.returncode == 1 and "does not hold what a release holds. Nothing was changed" in done.stderr
    assert person.snapshot() == person.before


@pytest.mark.parametrize(
    ("without", "words"),
    [
        (("curl",), "curl or wget is needed"),
        (("sha256sum",), "sha256sum, shasum or openssl is needed"),
        (("tar",), "tar is needed"),
    ],
)
def test_without_a_tool_it_stops(person, releases, serve, tmp_path, without, words):
    """Nothing is installed unchecked."""
    path = tools(tmp_path / "bin", without=without)
    done = person.install(serve(releases.page).script, PATH=path, PYTHON=sys.executable)
    assert done.returncode == 1 and words in done.stderr
    assert person.snapshot() == person.before


def test_one_at_a_time(person, releases, serve):
    """A second installation leaves the first one's half alone; a lock whose holder is gone is no lock."""
    versions = person.home / ".local/share/llm-proxy/versions"
    versions.mkdir(parents=True)
    half = versions / "half"
    half.mkdir()
    (versions / ".lock").symlink_to(str(os.getpid()))
    done = person.install(serve(releases.page).script)
    assert done.returncode == 1 and f"another installation is at work (pid {os.getpid()}" in done.stderr
    assert half.exists() and (versions / ".lock").is_symlink()
    gone = subprocess.Popen(["true"])
    gone.wait()
    (versions / ".lock").unlink()
    (versions / ".lock").symlink_to(str(gone.pid))
    done = person.install(serve(releases.page).script, **releases.found("/nonexistent"))
    assert done.returncode == 1 and "could not be installed" in done.stderr
    assert re.findall("half|lock", " ".join(path.name for path in versions.iterdir())) == ["half"]


@pytest.mark.parametrize("uv", ["broken", *(["real"] if shutil.which("uv") else [])])
def test_uv_first_and_pip_after_it(person, releases, serve, tmp_path, uv):
    """A uv that fails is said, and pip does it."""
    if uv == "broken":
        stub(tmp_path / "bin", "uv", "exit 3")
    path = f"{tmp_path}/bin:{releases.path}"
    done = person.install(serve(releases.page).script, "--no-shell", PATH=path, UV_CACHE_DIR=None)
    assert done.returncode == 4, done.stdout + done.stderr
    assert ("uv could not do it" in done.stderr) == (uv == "broken")
    assert person.status()["version"] == NEW
    assert person.rc_files() == {name: text for name, text in person.rc_files().items() if "llm-proxy" not in text}
    assert person.command("--uninstall").returncode == 0
    assert person.snapshot() == person.before
