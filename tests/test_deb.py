"""The Debian package: built without the web, judged by lintian, and lived with by several users of a booted machine."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from llm_proxy.service import units
from tests.release import NEW, OLD, ROOT
from tests.sandbox import Machine, why_not
from tests.test_service_cases_services import BODY, PYTHON, SNAPSHOT, fake, shown, wait

PATH = {"PATH": "/usr/local/bin:/usr/bin:/bin"}  # the package's command, not the checkout's
BOTH = "llm-proxy.socket llm-proxy.service"
LEFT = "find /usr /etc /opt /srv /var/lib -xdev \\( -cnewer /run/start ! -type d -o -name '*llm?proxy*' \\)"


def missing():
    """Why no package can be built here; empty where one can."""
    if tools := [tool for tool in ("dpkg-deb", "dpkg-shlibdeps", "strip", "lintian") if shutil.which(tool) is None]:
        return f"{', '.join(tools)} missing (Debian: dpkg-dev binutils lintian)"
    minor = "import sys; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run(["/usr/bin/python3", "-c", minor], capture_output=True, text=True)
    wheels = ".".join(map(str, sys.version_info[:2]))
    return "" if done.stdout.strip() == wheels else f"the wheels at hand are for {wheels}, not for /usr/bin/python3"


def needs(reason):
    if reason and os.environ.get("CI_REQUIRE_SYSTEMD") == "1":
        pytest.fail(f"required here: {reason}")
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="module")
def packages(tmp_path_factory, releases):
    """By version, two packages: one built, and the same one with another number."""
    needs(missing())
    folder = tmp_path_factory.mktemp("deb")
    with tarfile.open(releases.page / f"download/v{OLD}/llm-proxy-{OLD}.tar.gz") as archive:
        archive.extractall(folder)
    (wheel,) = folder.glob("*/*.whl")
    pips = releases.wheels.parent / "tools/bin"
    environ = {"PATH": f"{pips}:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(folder)}
    environ |= releases.found(releases.wheels)
    built = [ROOT / "packaging/deb/build", "--quick", "--out", folder, "--wheel", wheel]
    done = subprocess.run(built, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    old = Path(done.stdout.strip())
    return {OLD: old, NEW: renumbered(old, folder / "tree")}


def renumbered(package, tree):
    """The package as version NEW."""
    subprocess.run(["dpkg-deb", "-R", package, tree], check=True)
    home = tree / "usr/lib/llm-proxy"
    (module,) = home.glob("lib/python3.*/site-packages/llm_proxy/__init__.py")
    for path in (module, tree / "DEBIAN/control"):
        path.write_text(path.read_text().replace(OLD, NEW))
    compiled = ["-m", "compileall", "-q", "-f", "-l", "--invalidation-mode", "unchecked-hash", module]
    subprocess.run([home / "runtime/bin/python3", *compiled], check=True)
    new = package.with_name(package.name.replace(OLD, NEW))
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "-b", tree, new], check=True, capture_output=True
    )
    return new


@pytest.fixture
def machine(tmp_path, packages):
    needs(why_not())
    booted = Machine(tmp_path)
    # the interpreter of the tests is bound read-only; where that is all of /usr, the machine's own will do
    booted.binds = [place for place in (*booted.binds, packages[OLD].parent) if place != Path("/usr")]
    try:
        booted.boot()
        yield booted
    finally:
        booted.close()


def test_lintian_has_nothing_to_say(packages):
    """Debian's own checker finds no error and no warning but the few that the override file gives reasons for."""
    done = subprocess.run(["lintian", "--allow-root", packages[OLD]], capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
    overrides = (ROOT / "packaging/deb/lintian-overrides").read_text()
    assert len(re.findall(r"(?m)^llm-proxy:", overrides)) <= 4 and overrides.startswith("#")


def test_nothing_in_it_names_the_place_where_it_was_built(packages, tmp_path):
    """The environment is made for /usr/lib/llm-proxy: no other place stands in it, and its bytecode is complete."""
    tree = tmp_path / "tree"
    subprocess.run(["dpkg-deb", "-x", packages[OLD], tree], check=True)
    build = [str(packages[OLD].parent), str(ROOT), "/root/site-packages", "/root/usr/lib"]
    found = subprocess.run(
        ["grep", "-rlF", *(word for place in build for word in ("-e", place)), tree], capture_output=True, text=True
    )
    assert found.stdout == ""
    home = tree / "usr/lib/llm-proxy"
    assert (home / "pyvenv.cfg").read_text().startswith("home = /usr/lib/llm-proxy/runtime/bin\n")
    assert os.readlink(home / "bin/python") == "../runtime/bin/python3"
    sources = list(home.rglob("*.py"))
    compiled = {(path.parent.parent, path.name.split(".")[0]) for path in home.rglob("__pycache__/*.pyc")}
    assert len(sources) > 1000 and [path for path in sources if (path.parent, path.stem) not in compiled] == []
    assert {path.name for path in (tree / "usr/lib/systemd/user").iterdir()} == set(units.packaged(""))
    for made, shipped in MADE.items():
        assert (tree / shipped).exists() == (ROOT / "packaging" / made).exists()


MADE = {
    "completions/llm-proxy.bash": "usr/share/bash-completion/completions/llm-proxy",
    "completions/_llm-proxy": "usr/share/zsh/vendor-completions/_llm-proxy",
    "completions/llm-proxy.fish": "usr/share/fish/vendor_completions.d/llm-proxy.fish",
    "llm-proxy.1": "usr/share/man/man1/llm-proxy.1.gz",
}


def test_a_life_of_packages(machine, packages):
    """Installed, switched on by each user, upgraded under load without a failed call, removed, installed again, purged: what
    is the users' stays, and nothing else is left."""
    machine.run("touch", "/run/start")
    machine.run("dpkg", "-i", packages[OLD])
    alice, bob, carol = people = [machine.user(name) for name in ("alice", "bob", "carol")]
    empty = bob.run(SNAPSHOT).stdout
    for user in people:
        user.log_in()
    assert {enabled(user) for user in people} == {"disabled"}

    provider = fake(alice)
    port = 10000 + alice.uid
    alice.run(f"systemctl --user enable --now --quiet {BOTH}")
    assert called(alice, port, provider) == "200"
    told = alice.run("llm-proxy --status", **PATH).stdout
    assert f"127.0.0.1:{port}" in told and "or at the first call" in told
    wait(alice, "cat .llm-provider-logs/*/*/*.jsonl 2>/dev/null | grep -q message_stop")
    somebody_elses_unit(carol)
    pid_of_carol = shown(carol, "MainPID")
    port_of_bob = set_up(bob)

    pids = [shown(user, "MainPID") for user in (alice, bob)]
    failed, text = upgraded_under_load(alice, port, provider, packages[NEW])
    assert failed == [] and "message_stop" in text
    for user, pid, at in zip((alice, bob), pids, (port, port_of_bob), strict=True):
        assert shown(user, "MainPID") not in (pid, "0") and health(user, at)["version"] == NEW
    assert shown(carol, "MainPID") == pid_of_carol

    done = bob.run("llm-proxy --uninstall", **PATH)
    assert "to remove it: sudo apt remove llm-proxy" in done.stdout and "failed" not in done.stdout
    assert bob.run(SNAPSHOT).stdout == empty and enabled(bob) == "disabled"
    moves_over(bob)
    by_hand(bob)

    machine.run("dpkg", "-r", "llm-proxy")
    assert machine.run("pgrep", "-f", "/usr/lib/llm-proxy", check=False).stdout == ""
    assert alice.run("find .config/systemd -name 'llm-proxy*'").stdout == ""
    assert alice.run("systemctl --user list-units --all 'llm-proxy*' --no-legend").stdout == ""
    assert alice.run(f"curl -s http://127.0.0.1:{port}/health", check=False).returncode == 7
    assert shown(carol, "MainPID") == pid_of_carol

    machine.run("dpkg", "-i", packages[OLD])
    alice.run(f"systemctl --user enable --now --quiet {BOTH}")
    assert called(alice, port, provider) == "200" and health(alice, port)["version"] == OLD
    machine.run("dpkg", "-P", "llm-proxy")
    kept = alice.run("ls -d .llm-provider-logs .local/state/llm-proxy").stdout.split()
    assert kept == [".llm-provider-logs", ".local/state/llm-proxy"]
    assert [path for path in machine.run("sh", "-c", LEFT).stdout.split() if not _THEIRS.match(path)] == []


def enabled(user):
    return user.run("systemctl --user is-enabled llm-proxy.service", check=False).stdout.strip()


def health(user, port):
    return json.loads(user.run(f"curl -s -m 20 http://127.0.0.1:{port}/health").stdout)


def called(user, port, provider):
    url = f"http://127.0.0.1:{port}/anthropic/127.0.0.1:{provider}/v1/messages"
    return user.run(f"curl -s -m 20 -o /dev/null -w '%{{http_code}}' -d '{BODY}' {url}").stdout


def set_up(user):
    """`--setup` with the package's command: its units and none besides, and a new shell that is led to it; the port."""
    user.run("llm-proxy --setup", **PATH)
    files = user.run("find .config/systemd -type f -o -type l -printf '%l\\n'").stdout.split()
    assert files == ["/usr/lib/systemd/user/llm-proxy.service"]
    assert shown(user, "FragmentPath") == files[0] and enabled(user) == "enabled"
    assert ".local/bin" not in user.run("sed -n '/>>> llm-proxy/,/<<< llm-proxy/p' .bashrc").stdout
    said = user.run("bash -ic 'echo $ANTHROPIC_BASE_URL; command -v llm-proxy' 2>/dev/null", **PATH).stdout.split()
    assert said[1] == "/usr/bin/llm-proxy"
    again = json.loads(user.run("llm-proxy --setup --json", **PATH).stdout)["steps"]
    assert [step["outcome"] for step in again if step["name"] in ("unit", "daemon")] == ["unchanged"] * 2
    assert user.run("llm-proxy doctor", check=False, **PATH).stdout.count("XX") == 0
    return int(re.fullmatch(r"http://127\.0\.0\.1:(\d+)/.*", said[0])[1])


EARLIER = """\
from pathlib import Path
from llm_proxy import paths
from llm_proxy.service import receipt, units
kept = receipt.Receipt(paths.state_folder(), autostart="systemd")
for name, text in ((units.SAFE, units.safe("/gone")), (units.SERVICE, units.service("/gone"))):
    kept.write(Path.home() / ".config/systemd/user" / name, text.encode())
"""


def moves_over(user):
    """Units that the setup of another installation wrote give way to the package's; a socket unit on a port of the user's own
    is beside them, and all of it can be undone."""
    user.run(f"/usr/lib/llm-proxy/bin/python -I -c '{EARLIER}'")
    user.run("llm-proxy --setup --no-shell --socket-activation", **PATH)
    assert user.run("cd .config/systemd/user && find . -type f").stdout == "./llm-proxy.socket\n"
    assert shown(user, "FragmentPath") == "/usr/lib/systemd/user/llm-proxy.service"
    at = int(user.run("cut -d ' ' -f 2 .local/state/llm-proxy/run").stdout)
    user.run("systemctl --user stop --quiet llm-proxy.service")
    assert health(user, at)["status"] == "ok"
    user.run("llm-proxy --uninstall", **PATH)
    assert user.run("find .config .local -name '*llm*'", check=False).stdout == ""


def somebody_elses_unit(user):
    """Of the same name and not the package's, as scripts/install.sh makes one."""
    user.run(
        "mkdir -p .config/systemd/user; printf '[Service]\\nExecStart=/bin/sleep infinity\\n' "
        "> .config/systemd/user/llm-proxy.service; systemctl --user daemon-reload; systemctl --user start llm-proxy"
    )


def by_hand(user):
    """A daemon that no systemd has started, as new shells do where there is none."""
    user.run("setsid -f llm-proxy --service </dev/null >/dev/null 2>&1", **PATH)
    wait(user, "/usr/bin/llm-proxy --env | grep -q 127.0.0.1")


LOAD = """\
import http.client, os, sys, time
port, provider, body = int(sys.argv[1]), sys.argv[2], sys.argv[3].encode()
while not os.path.exists("enough"):
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        link.request("POST", f"/anthropic/127.0.0.1:{provider}/v1/messages", body)
        answer = link.getresponse()
        text = answer.read()
        print("good" if answer.status == 200 and b"message_stop" in text else f"{answer.status} {text}", flush=True)
    except (OSError, http.client.HTTPException) as exc:
        print(repr(exc), flush=True)
    link.close()
    time.sleep(0.01)
"""


def upgraded_under_load(user, port, provider, package):
    """Calls that failed in the meantime, and the text of one that streams while the daemon is replaced. In two steps, as
    apt does it: unpacked, so that the old daemon runs on beside the new files; then configured."""
    user.run(f"cat > load.py <<'END'\n{LOAD}END\n{PYTHON} load.py {port} {provider} '{BODY}' > load 2>&1 </dev/null &")
    more(user)
    user.machine.run("dpkg", "--unpack", package, timeout=120)
    more(user)
    url = f"http://127.0.0.1:{port}/anthropic/127.0.0.1:{provider}/v1/messages"
    user.run(f"curl -sN -m 60 -H 'X-Fake: words=100; slow=30' -d '{BODY}' {url} > stream 2>&1 </dev/null &")
    wait(user, "grep -q message_start stream")
    user.machine.run("dpkg", "--configure", "llm-proxy", timeout=120)
    more(user)
    user.run(": > enough")
    wait(user, "! pgrep -u $(id -u) -f 'load[.]py|curl -[s]N'")
    lines = user.run("cat load").stdout.splitlines()
    text = user.run("cat stream; rm stream load load.py enough").stdout
    return [line for line in lines if line != "good"], text


def more(user):
    """Wait for some more good calls."""
    wait(user, '[ -n "${n=$(grep -c good load)}" ] && [ $(grep -c good load) -gt $((n + 5)) ]')


# Of what was made or changed since the start, what useradd, dpkg and the machine itself write.
_THEIRS = re.compile(r"/etc/((passwd|group|g?shadow|sub[ug]id)-?|ld\.so\.cache|\.pwd\.lock)$|/var/lib/(dpkg|systemd)/")
