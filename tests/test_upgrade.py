"""Releases that bring their own Python, `llm-proxy upgrade` and its way back: nothing that runs is ever worse off for it.

The interpreter in the releases is this machine's own, copied (tests/runtimes.py); page and provider are on loopback.
"""

import contextlib
import http.server
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from itertools import pairwise

import pytest

from llm_proxy.errors import CannotUpgrade
from llm_proxy.service import upgrade
from tests.fakeprovider.certificate import CERTIFICATE, tls_context
from tests.installbed import Person, real, stub, tools
from tests.release import NEW, OLD, ROOT, Server, add_sums
from tests.runtimes import archive, bundled
from tests.sandbox import Machine, why_not

__all__ = ["bundled"]


def need_namespaces():
    reason = why_not()
    if reason and os.environ.get("CI_REQUIRE_SYSTEMD") == "1":
        pytest.fail(f"namespaces and a real systemd are required here: {reason}")
    if reason:
        pytest.skip(reason)


# -- a machine with nothing on it ------------------------------------------------------------------------------------

# No Python, no pip, no compiler, no network; loopback is there.
BARE = """
for file in /usr/bin/python3* /usr/local/bin/python3* /usr/bin/pip* /usr/bin/*gcc* /usr/bin/cc /usr/bin/c99; do
    [ ! -f "$file" ] || mount --bind /dev/null "$(readlink -f "$file")"
done
for folder in /usr/lib/python3* /usr/local/lib/python3* "$@"; do
    [ ! -d "$folder" ] || mount -t tmpfs tmpfs "$folder"
done
ip link set lo up
echo ready
exec cat
"""


@pytest.fixture
def bare():
    """What to put before a command so that it runs on such a machine."""
    need_namespaces()
    hidden = [ROOT / ".venv", *([] if sys.base_prefix == "/usr" else [sys.base_prefix])]
    holder = subprocess.Popen(
        ["unshare", "--mount", "--net", "--propagation", "private", "sh", "-c", BARE, "sh", *hidden],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout.readline() == b"ready\n"
    yield [shutil.which("nsenter"), "-t", str(holder.pid), "--mount", "--net"]
    holder.stdin.close()
    holder.wait()
    holder.stdout.close()


def test_a_life_without_python_and_network(tmp_path, bundled, bare):
    """Installed from a folder, upgraded, rolled back, forward again, removed: the home is what it was."""
    person = Person(tmp_path / "ho me'x 100%", {})
    path = tools(tmp_path / "bin", "ip", without={"curl"}, python=False)
    base = f"file://{bundled.page}"

    def do(*words, status=0):
        done = subprocess.run(
            [*bare, *words], env=person.environ(PATH=path), capture_output=True, text=True, timeout=100, cwd=person.home
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    def running():
        told = json.loads(do(person.launcher, "--status", "--json"))
        return told["version"], told["running"]

    assert "no-python" in do(
        "sh", "-c", "command -v python3 cc curl || { /usr/bin/python3 -c '' || echo no-python; } 2>&1"
    )
    script = (ROOT / "scripts/install.sh").read_text().replace("\npublished=\n", f"\npublished='{base}'\n")
    do("sh", "-c", script, "sh", "--version", OLD)
    assert running() == (OLD, True)
    assert f"{NEW} is there, newer" in do(person.launcher, "upgrade", "--check", status=100)
    plan = do(person.launcher, "upgrade", "--dry-run")
    assert archive(NEW) in plan and "Nothing was written." in plan and person.versions == [OLD]
    assert "To go back to the one before:    llm-proxy upgrade --rollback" in do(person.launcher, "upgrade")
    assert running() == (NEW, True) and person.versions == [OLD, NEW]
    files = person.rc_files()
    for check in ([], ["--check"]):
        assert f"llm-proxy {NEW} is the newest release" in do(person.launcher, "upgrade", *check)
    assert f"Would go back to llm-proxy {OLD}" in do(person.launcher, "upgrade", "--rollback", "--dry-run")
    assert "To go forward again:" in do(person.launcher, "upgrade", "--rollback")
    assert running() == (OLD, True) and person.versions == [OLD, NEW]
    do(person.launcher, "upgrade", "--rollback")
    assert running() == (NEW, True) and person.rc_files() == files
    plan = do(person.launcher, "upgrade", "--version", OLD, "--dry-run")
    assert archive(OLD) in plan and "llm-proxy --setup\n" in plan
    do(person.launcher, "--unsetup-shell")
    plan = do(person.launcher, "upgrade", "--version", OLD, "--dry-run")
    assert "llm-proxy --setup --no-shell\n" in plan, "who has no block in a shell's file gets none by an upgrade"
    do(person.launcher, "--uninstall")
    assert person.snapshot() == person.before


# -- under load, on a real systemd -----------------------------------------------------------------------------------

LOAD = """\
import http.client, json, sys, time
body = b'{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"hi"}]}'
port, path, until = int(sys.argv[1]), sys.argv[2], sys.argv[3]
import os
asked, failed, slowest, start = 0, [], 0, time.monotonic()
while not os.path.exists(until):
    time.sleep(max(0, start + asked / 50 - time.monotonic()))
    asked += 1
    began = time.monotonic()
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        link.request("POST", path, body, {"Content-Type": "application/json"})
        answer = link.getresponse()
        if answer.status != 200 or not json.loads(answer.read()): failed.append(answer.status)
    except Exception as error:
        failed.append(repr(error))
    link.close()
    slowest = max(slowest, time.monotonic() - began)
print(json.dumps([asked, failed, slowest]))
"""
STREAM = '{"model":"m","max_tokens":9,"stream":true,"messages":[{"role":"user","content":"hi"}]}'
PYTHON = f"{ROOT}/.venv/bin/python"


@pytest.fixture
def alice(tmp_path, bundled):
    """A user with a session on a machine that serves the releases and a provider."""
    need_namespaces()
    machine = Machine(tmp_path)
    machine.binds.append(bundled.page)
    try:
        machine.boot()
        user = machine.user("alice")
        user.log_in()
        for name, command in (
            ("page", f"{PYTHON} -u -m http.server --bind 127.0.0.1 --directory {shlex.quote(str(bundled.page))} 0"),
            ("provider", f"{PYTHON} -m tests.fakeprovider"),
        ):
            machine.run(
                *("systemd-run", "--quiet", f"--unit={name}", f"--working-directory={ROOT}"),
                *("--property=StandardOutput=file:/run/" + name, "sh", "-c", command),
            )
        yield user
    finally:
        machine.close()


def said(user, name, pattern):
    """A number in the first line of a unit of the machine."""
    found = user.run(f"for i in $(seq 1200); do [ -s /run/{name} ] && break; sleep 0.05; done; cat /run/{name}").stdout
    return int(found.split(pattern)[1].split()[0])


def test_no_call_fails_while_versions_change(alice):
    """50 calls a second and a stream, over an upgrade and over the way back: all answered, the stream whole."""
    base = f"http://127.0.0.1:{said(alice, 'page', 'port ')}"
    provider = said(alice, "provider", "PORT ")
    alice.run(f"curl -fsS {base}/download/v{OLD}/install.sh | LLM_PROXY_BASE_URL={base} sh -s -- --version {OLD}")
    alice.run("llm-proxy --setup --socket-activation")
    port = json.loads(alice.run("llm-proxy --status --json").stdout)["port"]
    path = f"/anthropic/127.0.0.1:{provider}/v1/messages"
    alice.run(f"cat > load.py <<'END'\n{LOAD}\nEND")
    for words, version in (("", NEW), ("--rollback", OLD)):
        alice.run(
            f"rm -f done stream; {{ {PYTHON} load.py {port} {path} done > load 2>&1; }} </dev/null & "
            f"curl -sN -m 60 -H 'X-Fake: words=90; slow=50' -d '{STREAM}' http://127.0.0.1:{port}{path} > stream & "
            "for i in $(seq 200); do grep -q message_start stream && break; sleep 0.05; done; "
            f"llm-proxy upgrade {words} > upgrade 2>&1 </dev/null; echo $? > status; sleep 0.5; touch done; wait"
        )
        assert alice.run("cat status").stdout == "0\n", alice.run("cat upgrade").stdout
        asked, failed, slowest = json.loads(alice.run("cat load").stdout)
        print(f"{version}: {asked} calls, {len(failed)} failed, the slowest took {slowest:.2f} s")
        assert asked > 50 and failed == []
        text = alice.run("cat stream").stdout
        assert "message_stop" in text and text.count("content_block_delta") >= 90
        now = json.loads(alice.run("llm-proxy --status --json").stdout)
        assert (now["running"], now["version"], now["port"]) == (True, version, port)
    alice.run("rm load.py load done stream upgrade status; llm-proxy --uninstall")
    assert alice.run("find . -name '*llm-proxy*' -not -path './.llm-provider-logs*'").stdout == ""


# -- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def settled(tmp_path_factory, bundled):
    """Somebody with the old version, who must have it after everything that fails."""
    person = Person(tmp_path_factory.mktemp("settled") / "home", {})
    server = Server(bundled.page)
    done = person.install(server.script, "--version", OLD)
    assert done.returncode == 0, done.stdout + done.stderr
    yield person
    person.close()
    server.close()


def unharmed(person, before):
    now = person.status()
    assert now["running"] and (now["version"], now["port"], now["pid"]) == (OLD, before["port"], before["pid"])
    assert all(f":{before['port']}/" in url for url in person.new_shells().values())


def replaced(path, content):
    """The page's files are links to those of all tests."""
    path.unlink()
    path.write_bytes(content)


def _without(name):
    return lambda folder: (folder / name).unlink()


def _longer(name):
    return lambda folder: replaced(folder / name, (folder / name).read_bytes() + b"\n")


def _shorter(folder):
    replaced(folder / archive(NEW), (folder / archive(NEW)).read_bytes()[:-1000])


def _login_page(folder):
    replaced(folder / "SHA256SUMS", b"<!DOCTYPE html>\n<html><body>Please log in</body></html>\n")


def _pretender(folder):
    """What is called Python there is none of that version."""
    top = folder.parent / f"llm-proxy-{NEW}"
    stub(top / "runtime/bin", "python", "echo llm-proxy 0")
    (top / "launcher.sh").touch()
    (folder / archive(NEW)).unlink()
    subprocess.run(["tar", "-czf", folder / archive(NEW), "-C", top.parent, top.name], check=True)
    (folder / "SHA256SUMS").unlink()
    add_sums(folder)


SPOILED = {
    "404-sums": (_without("SHA256SUMS"), "SHA256SUMS cannot be fetched: HTTP Error 404"),
    "404-installer": (_without("install.sh"), "install.sh cannot be fetched: HTTP Error 404"),
    "404-archive": (_without(archive(NEW)), f"{archive(NEW)} could not be downloaded. Nothing was changed"),
    "login-page": (_login_page, "does not name one llm-proxy-VERSION.tar.gz"),
    "wrong-installer": (_longer("install.sh"), "install.sh is not what the release's SHA256SUMS says"),
    "wrong-archive": (_longer(archive(NEW)), "is not what its SHA-256 sum says. Nothing was changed"),
    "truncated": (_shorter, "is not what its SHA-256 sum says. Nothing was changed"),
    "another-version": (_pretender, "the new build does not run; nothing was changed"),
}


@pytest.mark.parametrize(("spoil", "words"), SPOILED.values(), ids=SPOILED)
def test_a_release_that_is_no_good_changes_nothing(settled, bundled, serve, tmp_path, spoil, words):
    """It is said what is wrong, and the old version runs."""
    page = shutil.copytree(bundled.page, tmp_path / "page", symlinks=True, copy_function=os.link)
    spoil(page / f"download/v{NEW}")
    before, files = settled.status(), settled.rc_files()
    done = settled.command("upgrade", LLM_PROXY_BASE_URL=serve(page).url)
    assert done.returncode == 1 and words in done.stderr, done.stdout + done.stderr
    unharmed(settled, before)
    assert settled.rc_files() == files and settled.versions == [OLD]


def test_a_full_disk_changes_nothing(settled, bundled):
    """There is room for the archive, and not for what is in it."""
    need_namespaces()
    folder = shlex.quote(str(settled.launcher.parent.parent / "share/llm-proxy/versions"))
    (archive,) = (bundled.page / f"download/v{NEW}").glob("*-linux-*.tar.gz")
    room = archive.stat().st_size // 1024 + 4000
    full = (
        f"cp -a {folder} /mnt/versions && mount -t tmpfs -o size=$(($(du -sk {folder} | cut -f 1) + {room}))k,mode=700 x "
        f'{folder} && cp -a /mnt/versions/. {folder} && "$@"; code=$?; ls -A {folder}; exit $code'
    )
    alone = ["unshare", "--mount", "--propagation", "private", "sh", "-c", f"mount -t tmpfs x /mnt && {full}", "sh"]
    before = settled.status()
    done = subprocess.run(
        [*alone, settled.launcher, "upgrade"],
        env=settled.environ(),
        capture_output=True,
        text=True,
        timeout=90,
        cwd="/",
    )
    assert done.returncode == 1 and "could not be unpacked. Nothing was changed" in done.stderr, done.stderr
    left = done.stdout.splitlines()[-1:]
    assert len(left) == 1 and left[0].startswith(f"{OLD}."), "only the old version is there"
    unharmed(settled, before)


# The command at whose how-manieth use everything is killed.
KILLED = {
    "at-download": ("curl", 2),
    "at-checking": ("sha256sum", 1),
    "at-unpacking": ("tar", 1),
    "at-placing": ("mv", 1),
    "at-switch": ("mv", 2),
}


def killed(person, folder, means, at):
    uses = folder / "uses"
    uses.write_text("")
    stub(
        folder / "bin",
        means,
        f'echo >>{uses}\n[ "$(wc -l <{uses})" -ne {at} ] || kill -KILL 0\nexec {real(means)} "$@"',
    )
    process = subprocess.Popen(
        [person.launcher, "upgrade"],
        env=person.environ(PATH=f"{folder}/bin:{os.environ['PATH']}"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    text, _ = process.communicate(timeout=90)
    assert process.returncode == -signal.SIGKILL, text.decode()


@pytest.mark.parametrize(("means", "at"), KILLED.values(), ids=KILLED)
def test_killed_in_the_middle_the_old_version_runs(settled, tmp_path, means, at):
    """As by a power cut, at any point before the switch."""
    before = settled.status()
    killed(settled, tmp_path, means, at)
    unharmed(settled, before)
    assert settled.command("--version").stdout == f"llm-proxy {OLD}\n"


def test_what_was_killed_leaves_nothing(settled, tmp_path):
    """The next upgrade clears it away, and so does removing the program."""
    killed(settled, tmp_path, *KILLED["at-switch"])
    done = settled.command("upgrade")
    assert done.returncode == 0, done.stdout + done.stderr
    assert settled.status()["version"] == NEW and settled.versions == [OLD, NEW]
    assert [path.name for path in settled.launcher.parent.iterdir()] == ["llm-proxy"]
    assert settled.command("upgrade", "--rollback").returncode == 0
    assert settled.status()["version"] == OLD
    killed(settled, tmp_path, *KILLED["at-switch"])
    assert any(path.name.startswith(".llm-proxy.") for path in settled.launcher.parent.iterdir())
    assert settled.command("--uninstall").returncode == 0
    assert settled.snapshot() == settled.before


# -- what is refused -------------------------------------------------------------------------------------------------


def test_other_ways_of_installing_are_told_their_own_command(command):
    """A checkout here; nothing is asked of anybody."""
    for words in ([], ["--check"], ["--rollback"]):
        done = command("upgrade", *words)
        assert done.returncode == 1 and done.stdout == ""
        assert (
            done.stderr == f"llm-proxy: it was installed by other means (checkout); to upgrade it: git -C {ROOT} pull\n"
        )


@pytest.mark.parametrize(
    "words", [["--version", "../x"], ["--version", "1", "--check"], ["--check", "--rollback"], ["--check", "--dry-run"]]
)
def test_wrong_usage(command, words):
    """One line, and exit status 2."""
    done = command("upgrade", *words)
    assert done.returncode == 2 and done.stderr.startswith("llm-proxy: upgrade: ") and done.stderr.count("\n") == 1


def test_versions_have_an_order():
    """As PEP 440 has it, in the forms that releases use."""
    ordered = ["0.9", "0.10.dev1", "0.10a1", "0.10a2", "0.10b1", "0.10rc1", "0.10", "0.10.post1", "0.10.1", "1.0", "10"]
    for older, newer in pairwise(ordered):
        assert upgrade.is_newer(newer, older) and not upgrade.is_newer(older, newer)
    assert not upgrade.is_newer("1.0", "1") and not upgrade.is_newer("1", "1.0.0")
    with pytest.raises(CannotUpgrade, match="'nightly' is not a version"):
        upgrade.is_newer("nightly", "1")


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("http://example.invalid/releases", "https:// addresses, this machine and file:/// only"),
        ("http://127.0.0.1.example.invalid", "https:// addresses"),
        ("ftp://127.0.0.1/", "https:// addresses"),
        ("https://", "https:// addresses"),
        ("file://elsewhere/page", "https:// addresses"),
        ("https://me:secret@example.invalid/", "credentials are not sent"),
        ("https://[::1", "is no address"),
    ],
)
def test_where_programs_may_not_come_from(tmp_path, monkeypatch, base, words):
    """Refused before anything is asked, without showing what is secret."""
    folder = tmp_path / "llm-proxy/versions/1"
    folder.mkdir(parents=True)
    (folder / "release").write_text(f"version 1\nbase {base}\npython-env no\n")
    monkeypatch.setattr(sys, "prefix", str(folder))
    with pytest.raises(CannotUpgrade, match=words) as refused:
        upgrade.installed({})
    assert "secret" not in str(refused.value)
    assert upgrade.installed({"LLM_PROXY_BASE_URL": "http://[::1]:8000/x/"}).base == "http://[::1]:8000/x"


class _Leads(http.server.BaseHTTPRequestHandler):
    """Answers /to/URL by leading there, anything else with what the client said of itself."""

    def do_GET(self):
        place = self.path.removeprefix("/to/")
        content = json.dumps(dict(self.headers)).encode()
        self.send_response(302 if place != self.path else 200)
        self.send_header("Location", place)
        self.send_header("Content-Length", str(len(content) + (10 if self.path == "/cut" else 0)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def leading(context=None):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Leads)
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"{'https' if context else 'http'}://localhost:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_where_redirects_may_lead(monkeypatch, tmp_path):
    """From TLS to TLS only, from this machine to this machine or to TLS; certificates hold; nothing is told of the user."""
    context = tls_context()
    (tmp_path / ".netrc").write_text("machine localhost login me password secret\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    with leading() as plain, leading(context) as secure:
        with pytest.raises(CannotUpgrade, match="CERTIFICATE_VERIFY_FAILED"):
            upgrade.fetch(f"{secure}/x")
        monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
        for url in (f"{secure}/to/{secure}/x", f"{plain}/to/{plain}/x", f"{plain}/to/{secure}/x", f"{plain}/to//x"):
            told = json.loads(upgrade.fetch(url))
            assert {name.lower() for name in told} <= {"host", "user-agent", "accept-encoding", "connection"}
        with pytest.raises(CannotUpgrade, match="leads to an address without TLS"):
            upgrade.fetch(f"{secure}/to/{plain}/x")
        for place in ("http://example.invalid/", "file:///etc/passwd", "ftp://127.0.0.1/x"):
            with pytest.raises(CannotUpgrade):
                upgrade.fetch(f"{plain}/to/{place}")
        with pytest.raises(CannotUpgrade, match="cannot be fetched: IncompleteRead"):
            upgrade.fetch(f"{plain}/cut")
        (tmp_path / "long").write_bytes(bytes(2 << 20))
        with pytest.raises(CannotUpgrade, match="more than 1 MiB"):
            upgrade.fetch(f"file://{tmp_path}/long")


def test_proxies_of_the_environment_are_asked(monkeypatch):
    """For what lies elsewhere; what lies here is never sent through one."""
    with leading() as proxy:
        monkeypatch.setenv("https_proxy", proxy)
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        with pytest.raises(CannotUpgrade, match="Tunnel connection failed: 501"):  # it knows no CONNECT
            upgrade.fetch("https://example.invalid/x")
        assert json.loads(upgrade.fetch(f"{proxy}/x"))
