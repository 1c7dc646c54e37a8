"""Services on a real systemd, as an ordinary user: setup, every way to fail, safe mode, reboot, upgrade, uninstall.

Each row is one state of a machine. After every one of them a new shell is opened: it prints no error, is quick, and
has a base URL only where something of ours answers.
"""

import json
import os
import re
import shlex
import socket
import sys
import textwrap
import time
from pathlib import Path

import pytest

from llm_proxy.service import units
from tests.sandbox import ROOT, Machine, why_not

PYTHON = f"{ROOT}/.venv/bin/python"
UNIT = ".config/systemd/user/llm-proxy.service"
DROP_IN = ".config/systemd/user/llm-proxy.service.d/own.conf"
SNAPSHOT = (
    "find . -path ./.llm-provider-logs -prune -o -printf '%p %y %m %U %l\\n' | sort; "
    "find . -path ./.llm-provider-logs -prune -o -type f -exec sha256sum {} + | sort"
)
CASES = []


def case(name):
    """A row of the table."""

    def add(function):
        CASES.append(pytest.param(function, id=name))
        return function

    return add


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    reason = why_not()
    if reason and os.environ.get("CI_REQUIRE_SYSTEMD") == "1":
        pytest.fail(f"a real systemd is required here: {reason}")
    if reason:
        pytest.skip(reason)
    booted = Machine(tmp_path_factory.mktemp("systemd"))
    try:
        booted.boot()
        yield booted
    finally:
        booted.close()


@pytest.fixture
def someone(machine):
    """A new user with a session. Whatever still runs of theirs is ended afterwards."""
    users = []

    def add(home=None):
        user = machine.user(f"user{time.monotonic_ns() % 10**9}", home=home)
        user.log_in()
        users.append(user)
        return user

    yield add
    for user in users:
        machine.run("loginctl", "disable-linger", user.name, check=False)
        user.log_out()
        machine.run("pkill", "-KILL", "-u", user.name, check=False)


@pytest.mark.parametrize("row", CASES)
def test_case(row, someone):
    """No state of the machine leaves a client or a new shell broken."""
    user = row(someone)
    started = time.monotonic()
    shell = user.run('eval "$(llm-proxy --env)"; printf %s "${ANTHROPIC_BASE_URL-}"')
    assert shell.stderr == "" and time.monotonic() - started < 5
    if shell.stdout:
        assert health(user, port=int(re.search(r":(\d+)/", shell.stdout)[1]))["app"] == "llm-proxy"


def setup(user, *options, status=0, **variables):
    """`--setup`; its steps by name and outcome."""
    done = user.run(f"llm-proxy --setup --no-shell --json {shlex.join(options)}", check=False, **variables)
    assert done.returncode == status, done.stdout + done.stderr
    assert done.stderr == ""
    return [(step["name"], step["outcome"], step["text"]) for step in json.loads(done.stdout)["steps"]]


def uninstall(user, *options, status=0):
    done = user.run(f"llm-proxy --uninstall --json {shlex.join(options)}", check=False)
    assert done.returncode == status and done.stderr == "", done.stdout + done.stderr
    return [(step["name"], step["outcome"], step["text"]) for step in json.loads(done.stdout)["steps"]]


def state(user, name="run"):
    return user.run(f"cat .local/state/llm-proxy/{name}").stdout


def port(user):
    return int(state(user).split()[1])


def health(user, port=None):
    return json.loads(user.run(f"curl -s -m 5 http://127.0.0.1:{port or state(user).split()[1]}/health").stdout)


def shown(user, name, unit="llm-proxy.service"):
    return user.run(f"systemctl --user show -P {name} {unit}").stdout.strip()


def wait(user, condition, limit=40):
    """A shell condition, as soon as it is true."""
    script = f"for i in $(seq {limit * 10}); do if {condition}; then exit 0; fi; sleep 0.1; done; exit 1"
    done = user.run(script, check=False, timeout=limit + 20)
    assert done.returncode == 0, (
        f"never: {condition}\n" + user.run("systemctl --user status 'llm-proxy*'", check=False).stdout
    )


def new_pid(user, old):
    wait(
        user,
        f'p=$(systemctl --user show -P MainPID llm-proxy); [ "$p" != {old} ] && [ "$p" != 0 ] && [ "$(systemctl --user is-active llm-proxy)" = active ]',
    )
    return shown(user, "MainPID")


def outcomes(steps, name):
    return [outcome for step, outcome, _ in steps if step == name]


def write(user, path, text):
    user.run(
        f"mkdir -p {shlex.quote(os.path.dirname(path))}; printf %s {shlex.quote(textwrap.dedent(text))} > {shlex.quote(path)}"
    )


# -- the life of a service ------------------------------------------------------------------------------------------


@case("setup-twice")
def _(someone):
    """It runs when setup says so, and a second time nothing is done again."""
    user = someone()
    steps = setup(user)
    assert steps[-1] == ("running", "done", f"llm-proxy runs on http://127.0.0.1:{port(user)}")
    assert health(user)["recording"] == "ok" or outcomes(steps, "recording") == ["warning"]
    assert health(user)["pid"] == int(shown(user, "MainPID"))
    pid = shown(user, "MainPID")
    assert shown(user, "UnitFileState") == "enabled" and shown(user, "WatchdogUSec") == "30s"
    again = setup(user)
    assert {outcome for name, outcome, _ in again if name in ("file", "daemon")} == {"unchanged"}
    assert shown(user, "MainPID") == pid
    return user


@case("dry-run")
def _(someone):
    """It says what it would do and does none of it."""
    user = someone()
    before = user.run(SNAPSHOT).stdout
    assert {outcome for _, outcome, _ in setup(user, "--dry-run")} == {"would"}
    assert user.run(SNAPSHOT).stdout == before
    setup(user)
    installed = f"find .config -ls; sha256sum {UNIT} .local/state/llm-proxy/setup.json; cat .local/state/llm-proxy/run"
    during = user.run(installed).stdout
    uninstall(user, "--dry-run")
    assert user.run(installed).stdout == during
    return user


@case("kill-9")
def _(someone):
    """Back within a second, on the same port."""
    user = someone()
    setup(user)
    before, pid = port(user), shown(user, "MainPID")
    user.run(f"kill -9 {pid}")
    new_pid(user, pid)
    assert port(user) == before and shown(user, "NRestarts") == "1"
    return user


@case("D09-stopped-process")
def _(someone):
    """The watchdog sees a process that is there and serves nobody; drop-ins hold."""
    user = someone()
    write(user, DROP_IN, "[Service]\nWatchdogSec=2\n")
    setup(user)
    before, pid = port(user), shown(user, "MainPID")
    time.sleep(3)  # longer than the watchdog's patience: the daemon feeds it
    assert shown(user, "NRestarts") == "0" and shown(user, "MainPID") == pid
    user.run(f"kill -STOP {pid}")
    assert user.run("llm-proxy --env").stdout == ""
    new_pid(user, pid)
    assert port(user) == before
    return user


@case("never-ready")
def _(someone):
    """Setup says failed and exits 1, and does not wait for ever."""
    user = someone()
    write(user, DROP_IN, "[Service]\nExecStart=\nExecStart=/bin/sleep 1000\nTimeoutStartSec=1\n")
    steps = setup(user, status=1)
    assert "start llm-proxy.service" in steps[-2][2] and "failed" in outcomes(steps, "daemon")
    user.run("systemctl --user stop llm-proxy")
    return user


@case("D12-crash-loop")
def _(someone):
    """After ten crashes safe mode carries calls on the same port and says so; setup ends it."""
    user = someone()
    setup(user)
    before = port(user)
    write(user, DROP_IN, "[Service]\nExecStart=\nExecStart=/bin/false\n")
    user.run("systemctl --user daemon-reload; systemctl --user restart llm-proxy", check=False)
    wait(user, "[ -e .local/state/llm-proxy/safe ] && llm-proxy --status >/dev/null")
    assert port(user) == before and health(user)["recording"] == "stopped"
    assert "safe mode" in user.run("llm-proxy --status").stdout
    assert json.loads(user.run("llm-proxy --status --json").stdout)["safe_mode"] is True
    assert called(user, before) == "200"
    user.run(f"rm {DROP_IN}; systemctl --user daemon-reload")
    setup(user)
    assert port(user) == before and "safe mode" not in user.run("llm-proxy --status").stdout
    assert shown(user, "ActiveState", units.SAFE) == "inactive"
    return user


@case("wrong-setting")
def _(someone):
    """A configuration error is not tried again; calls are carried with the defaults."""
    user = someone()
    setup(user)
    before = port(user)
    write(user, ".config/llm-proxy/config.toml", "porrt = 1\n")
    user.run("systemctl --user restart llm-proxy", check=False)
    wait(user, "[ -e .local/state/llm-proxy/safe ] && llm-proxy --env | grep -q 127.0.0.1")
    assert shown(user, "NRestarts") == "0" and port(user) == before and called(user, before) == "200"
    return user


@case("reboot-without-login")
def _(someone):
    """With lingering it runs after a boot although nobody has logged in, on the same port."""
    user = someone()
    user.machine.run("loginctl", "enable-linger", user.name)
    assert outcomes(setup(user), "linger") == ["unchanged"]
    before = port(user)
    user.machine.off()
    user.machine.boot()
    wait(user, '[ "$(systemctl --user is-active llm-proxy)" = active ]')
    assert port(user) == before
    return user


@case("D13-upgrade-while-streaming")
def _(someone):
    """The call that is open ends as it would have, others are served meanwhile; the next one finds the new daemon on the
    same port."""
    user = someone()
    setup(user)
    before, pid = port(user), shown(user, "MainPID")
    provider = fake(user)
    ask = f"curl -s -m 20 http://127.0.0.1:{before}/health > answer"
    text = streamed(
        user,
        before,
        provider,
        f"systemctl --user restart llm-proxy & for i in $(seq 200); do [ -e .local/state/llm-proxy/run ] || break; sleep 0.02; done; {ask}",
    )
    assert text.rstrip().endswith("}") and "message_stop" in text
    assert json.loads(user.run("cat answer").stdout)["pid"] == int(pid)
    new_pid(user, pid)
    assert port(user) == before and called(user, before, provider) == "200"
    return user


@case("restart-refuses-nobody")
def _(someone):
    """systemd keeps the port while one daemon follows another: asked to, or killed. Then calls wait, and none is refused."""
    user = someone()
    setup(user)
    at = port(user)
    refused, reset = polled(user, at, "restart llm-proxy", "restart llm-proxy")
    assert (refused, reset) == (0, 0)
    refused, _ = polled(user, at, "kill -s KILL llm-proxy")
    assert refused == 0 and port(user) == at
    user.run("systemctl --user stop llm-proxy")
    assert user.run(f"curl -s http://127.0.0.1:{at}/health", check=False).returncode == 7
    return user


@case("restart-on-another-port")
def _(someone):
    """The port that systemd keeps is not the one that is wanted any more: it is let go."""
    user = someone()
    setup(user)
    old = port(user)
    with socket.create_server(("127.0.0.1", 0)) as link:
        wanted = link.getsockname()[1]
    write(user, ".config/llm-proxy/config.toml", f"port = {wanted}\n")
    user.run("systemctl --user restart llm-proxy")
    assert port(user) == wanted and health(user)["status"] == "ok"
    assert user.run(f"curl -s http://127.0.0.1:{old}/health", check=False).returncode == 7
    assert polled(user, wanted, "restart llm-proxy") == (0, 0)
    return user


@case("socket-activation")
def _(someone):
    """No connection is refused while the daemon is stopped, killed and started again."""
    user = someone()
    setup(user)
    steps = setup(user, "--socket-activation")
    assert steps[-1][0] == "running"
    at = port(user)
    verbs = ("restart llm-proxy", "kill -s KILL llm-proxy", "restart llm-proxy", "stop llm-proxy")
    refused, _ = polled(user, at, *verbs)
    assert refused == 0 and port(user) == at
    assert "or at the first call" in user.run("llm-proxy --status").stdout
    return user


@case("socket-activation-env")
def _(someone):
    """The port is good while only systemd listens, and no longer once the socket unit is stopped."""
    user = someone()
    setup(user, "--socket-activation")
    at = port(user)
    user.run("systemctl --user stop llm-proxy")
    wait(user, "llm-proxy --env | grep -q ANTHROPIC")
    assert called(user, at) == "200"
    user.run("systemctl --user stop llm-proxy.socket llm-proxy")
    assert user.run("llm-proxy --env").stdout == ""
    user.run("systemctl --user start llm-proxy.socket")
    assert f":{at}/" in user.run("llm-proxy --env").stdout
    return user


@case("socket-activation-crash-loop")
def _(someone):
    """Safe mode takes the port over from a socket unit that has given up."""
    user = someone()
    setup(user, "--socket-activation")
    at = port(user)
    write(user, DROP_IN, "[Service]\nExecStart=\nExecStart=/bin/false\n")
    user.run("systemctl --user daemon-reload; systemctl --user restart llm-proxy", check=False)
    wait(user, "[ -e .local/state/llm-proxy/safe ] && llm-proxy --env | grep -q 127.0.0.1")
    assert port(user) == at and called(user, at) == "200"
    user.run(f"rm {DROP_IN}; systemctl --user daemon-reload")
    setup(user)
    assert port(user) == at and shown(user, "ActiveState", units.SOCKET) == "active"
    return user


@case("D10-full-disk")
def _(someone):
    """No room for the journal, nor for saying where it is: it carries, tells why, and makes up for it once there is room."""
    user = someone()
    setup(user)
    at, folder = port(user), own_disk(user, "64k")
    user.run(f"cat /dev/zero > {folder}/fill", check=False)
    user.run("systemctl --user start llm-proxy")
    assert called(user, at) == "200"
    facts = health(user, at)
    assert (facts["status"], facts["recording"]) == ("ok", "stopped")
    said = user.machine.run("journalctl", f"_UID={user.uid}", "-o", "cat").stdout
    assert "NOT RECORDING: the journal cannot be opened" in said and "No space left on device" in said
    assert "cannot be written: No space left on device; `--env` and `--status` cannot find this daemon" in said
    assert user.run("llm-proxy --env").stdout == ""
    told = user.run("llm-proxy --status", check=False)
    assert (
        told.returncode == 1
        and f"process {shown(user, 'MainPID')} is starting or stopping, or cannot write" in told.stdout
    )
    user.run(f"rm {folder}/fill")
    user.machine.run("mount", "-o", "remount,size=64m", folder)
    wait(user, 'llm-proxy --status --json | grep -q \'"recording": "ok"\'')
    assert port(user) == at
    return user


@case("D10-read-only-state")
def _(someone):
    """It carries on the port that was written down last, and says that it cannot be found."""
    user = someone()
    setup(user)
    at, folder = port(user), own_disk(user, "64m")
    user.machine.run("mount", "-o", "remount,ro", folder)
    user.run("systemctl --user start llm-proxy")
    assert called(user, at) == "200" and health(user, at)["recording"] == "stopped"
    said = user.machine.run("journalctl", f"_UID={user.uid}", "-o", "cat").stdout
    assert "Read-only file system; this daemon runs, but `--env` and `--status` cannot find it" in said
    assert user.run("llm-proxy --env").stdout == ""
    user.machine.run("mount", "-o", "remount,rw", folder)
    user.run("systemctl --user restart llm-proxy")
    assert port(user) == at
    return user


@case("D37-verified")
def _(someone):
    """systemd's own checker has nothing to say about the units, and nobody needs more than what 247 knows (see D37Units)."""
    user = someone()
    setup(user, "--socket-activation")
    units = "$(ls .config/systemd/user/llm-proxy*.*)"
    assert user.run(f"systemd-analyze --user verify {units} 2>&1").stdout == ""
    write(user, "wrong.service", "[Service]\nExecStart=/bin/true\nNoSuchKey=1\n")
    assert "NoSuchKey" in user.run("systemd-analyze --user verify ./wrong.service 2>&1", check=False).stdout
    return user


# -- environments ---------------------------------------------------------------------------------------------------


def _odd_home(name):
    def row(someone):
        """The unit holds the path, whatever is in it."""
        user = someone(home=f"/home/{name}")
        private_copy(user)
        setup(user)
        assert health(user)["log_dir"] == f"/home/{name}/.llm-provider-logs"
        assert ".local/bin/llm-proxy" in shown(user, "ExecStart")
        uninstall(user)
        return user

    return row


for _number, _name in enumerate(("with space", "o'neil", 'dou"ble', "100%h", "$HOME", "back\\slash", "nämé", "a;b")):
    case(f"D31-home-{_number}")(_odd_home(_name))


@case("D31-no-home")
def _(someone):
    """Without a HOME, or with a relative one, nothing is written anywhere."""
    user = someone()
    for home in (None, "", "relative", "/nowhere"):
        words = ["env", "-i", *([] if home is None else [f"HOME={home}"]), PYTHON, "-I", "-m", "llm_proxy", "--setup"]
        done = user.machine.run("setpriv", f"--reuid={user.name}", "--clear-groups", *words, check=False)
        assert done.returncode == 1 and "home" in done.stdout.lower() and done.stderr == ""
    return user


@case("D32-sudo")
def _(someone):
    """Root by sudo, or in somebody else's home, is refused before anything is written."""
    user = someone()
    before = user.run(SNAPSHOT).stdout
    for environ in (
        {"HOME": "/root", "SUDO_USER": user.name},
        {"HOME": user.home, "SUDO_USER": user.name},
        {"HOME": user.home},
    ):
        words = [f"{name}={value}" for name, value in environ.items()]
        for command in ("--setup", "--uninstall"):
            done = user.machine.run("env", "-i", *words, PYTHON, "-I", "-m", "llm_proxy", command, check=False)
            assert done.returncode == 1 and done.stderr == "", done.stdout
            assert "without sudo" in done.stdout or "belongs to user" in done.stdout
    assert user.run(SNAPSHOT).stdout == before
    return user


@case("D33-runtime-dir")
def _(someone):
    """Unset, somebody else's or stale: the place that logind made is used."""
    user = someone()
    setup(user)
    pid = shown(user, "MainPID")
    for wrong in (
        {"XDG_RUNTIME_DIR": None},
        {"XDG_RUNTIME_DIR": "/root"},
        {"DBUS_SESSION_BUS_ADDRESS": "unix:path=/nowhere"},
    ):
        steps = setup(user, **wrong)
        assert ("daemon", "unchanged", f"llm-proxy.service runs (pid {pid})") in steps
    return user


def _without_systemd(prepare, says, **variables):
    def row(someone):
        """The daemon runs all the same, setup says what is missing, and exits 4."""
        user = someone()
        changes = prepare(user) or {}
        started = time.monotonic()
        steps = setup(user, status=4, **(variables | changes))
        assert time.monotonic() - started < 20
        assert says in " ".join(text for _, outcome, text in steps if outcome == "warning")
        assert steps[-1][0] == "running" and health(user)["status"] == "ok"
        assert json.loads(state(user, "setup.json"))["autostart"] == "shell"
        return user

    return row


def _no_systemctl(user):
    user.run("mkdir bin; for t in sh env ls cat id setsid; do ln -s $(command -v $t) bin/; done")
    return {"PATH": f"{user.home}/bin:{ROOT}/.venv/bin"}


def _hanging_systemctl(user):
    user.run("mkdir bin; printf '#!/bin/sh\\nexec sleep 1000\\n' > bin/systemctl; chmod +x bin/systemctl")
    return {"PATH": f"{user.home}/bin:{ROOT}/.venv/bin:/usr/bin:/bin"}


case("D34-no-systemctl")(_without_systemd(_no_systemctl, "no systemctl"))
case("D34-hanging-systemctl")(_without_systemd(_hanging_systemctl, "did not answer within 5 s"))
case("D36-no-session")(_without_systemd(lambda user: user.log_out(), "no session", XDG_RUNTIME_DIR=None))


@case("D34-degraded")
def _(someone):
    """A manager with some failed unit is as good as any."""
    user = someone()
    user.run("systemd-run --user --quiet --wait false", check=False)
    user.run(
        "systemctl --user reset-failed; systemd-run --user --unit bad -p RemainAfterExit=no false; sleep 0.2",
        check=False,
    )
    wait(user, '[ "$(systemctl --user is-system-running)" = degraded ]')
    setup(user)
    return user


@case("D35-no-polkit")
def _(someone):
    """Lingering refused is a warning with the one command that allows it, and the receipt does not claim it."""
    user = someone()
    user.machine.run("systemctl", "mask", "--runtime", "--now", "polkit.service", check=False)
    steps = setup(user)
    user.machine.run("systemctl", "unmask", "--runtime", "polkit.service", check=False)
    (text,) = [text for name, outcome, text in steps if name == "linger" and outcome == "warning"]
    assert f"sudo loginctl enable-linger {user.name}" in text
    assert json.loads(state(user, "setup.json"))["linger"] is False
    return user


# -- what is the user's ---------------------------------------------------------------------------------------------


@case("D44-edited-unit")
def _(someone):
    """An edited unit is neither replaced nor removed; the new one lies beside it and is said."""
    user = someone()
    setup(user)
    user.run(f"echo '# mine' >> {UNIT}")
    steps = setup(user)
    assert any(outcome == "warning" and text.endswith("llm-proxy.service.new") for _, outcome, text in steps)
    assert user.run(f"tail -n 1 {UNIT}").stdout == "# mine\n"
    steps = uninstall(user)
    assert any(outcome == "warning" and UNIT in text for _, outcome, text in steps)
    assert user.run("ls -A .config/systemd/user").stdout == "llm-proxy.service\n"
    assert user.run("systemctl --user is-active llm-proxy", check=False).stdout == "inactive\n"
    return user


@case("D45-drop-ins")
def _(someone):
    """They hold, and stay through setup and uninstall."""
    user = someone()
    write(user, DROP_IN, "[Service]\nEnvironment=LLM_PROXY_LOG_DIR=%h/elsewhere\n")
    setup(user)
    assert health(user)["log_dir"] == f"{user.home}/elsewhere"
    uninstall(user)
    assert user.run(f"cat {DROP_IN}").stdout.startswith("[Service]\nEnvironment")
    return user


@case("D46-homebrew-on-linux-simulated")
def _(someone):
    """The unit that `brew services start` writes is the only one; uninstall has brew stop it. brew itself is simulated."""
    user = someone()
    before = user.run(SNAPSHOT).stdout
    unit = ".config/systemd/user/homebrew.llm-proxy.service"
    stop = f"systemctl --user disable --now --quiet homebrew.llm-proxy; rm {unit}; rmdir -p .config/systemd/user"
    write(user, "bin/brew", f'#!/bin/sh\n[ "$*" = "services stop llm-proxy" ] && cd && {{ {stop}; true; }}\n')
    write(
        user,
        unit,
        f"""\
        [Install]
        WantedBy=default.target
        [Service]
        Type=simple
        ExecStart={ROOT}/.venv/bin/llm-proxy --service
        Restart=on-failure
        Environment=LLM_PROXY_FIRST_RUN=shell
        """,
    )
    user.run("chmod 755 bin/brew; systemctl --user enable --now --quiet homebrew.llm-proxy")
    wait(user, "grep -q llm-proxy .bashrc && llm-proxy --status")
    pid = shown(user, "MainPID", "homebrew.llm-proxy.service")
    steps = setup(user)
    assert "unchanged" in outcomes(steps, "service") and user.run(f"ls {UNIT}", check=False).returncode != 0
    assert "Homebrew's service" in user.run("llm-proxy --status").stdout
    assert health(user)["pid"] == int(pid)
    path = f"{user.home}/bin:{ROOT}/.venv/bin:/usr/bin:/bin"
    done = user.run("llm-proxy --uninstall", PATH=path)
    assert "stop Homebrew's service: brew services stop llm-proxy" in done.stdout
    assert user.run("systemctl --user list-units --all '*llm-proxy*' --no-legend").stdout == ""
    user.run("rm -r bin")
    assert user.run(SNAPSHOT).stdout == before
    return user


@case("D47-uninstall-twice-and-half")
def _(someone):
    """While calls run, when half is gone already, and when nothing is left."""
    user = someone()
    setup(user, "--socket-activation")
    at, provider = port(user), fake(user)
    assert "message_stop" in streamed(user, at, provider, "llm-proxy --uninstall")
    assert user.run("cat .llm-provider-logs/*/*/*.jsonl | wc -l").stdout.strip() != "0"
    uninstall(user)
    setup(user)
    user.run(f"rm {UNIT} .local/state/llm-proxy/setup.json")
    uninstall(user)
    assert user.run("systemctl --user list-units --all 'llm-proxy*' --no-legend").stdout == ""
    assert user.run("pgrep -u $(id -u) -f 'llm.prox[y] --service|llm_proxy.keepe[r]'", check=False).stdout == ""
    return user


@case("D47-uninstall-without-manager")
def _(someone):
    """Nothing is left although there is no manager to tell."""
    user = someone()
    before = user.run(SNAPSHOT).stdout
    user.machine.run("loginctl", "disable-linger", user.name)
    setup(user)
    user.machine.run("loginctl", "disable-linger", user.name)
    user.log_out()
    steps = uninstall(user)
    assert "warning" in outcomes(steps, "service")
    assert user.run(SNAPSHOT).stdout == before
    return user


@case("D48-byte-for-byte")
def _(someone):
    """The home folder is what it was before the installation, logs aside."""
    user = someone()
    write(user, ".bash_profile", "echo hello\r\n")
    user.run("mkdir -p .config; ln -s nowhere .config/link; chmod 750 .config")
    before = user.run(SNAPSHOT).stdout
    private_copy(user)
    setup(user)
    assert called(user, port(user)) == "200"
    user.run("systemctl --user restart llm-proxy; kill -9 $(systemctl --user show -P MainPID llm-proxy)")
    wait(user, '[ "$(systemctl --user is-active llm-proxy)" = active ]')
    uninstall(user)
    assert user.run(SNAPSHOT).stdout == before
    assert user.run("ls .llm-provider-logs", check=False).returncode == 0
    return user


# -- helpers --------------------------------------------------------------------------------------------------------

BODY = '{"model":"m","max_tokens":9,"stream":true,"messages":[{"role":"user","content":"hi"}]}'

POLL = """\
import signal, socket, sys, time
asked = refused = reset = 0
def tell(*_):
    print(asked, refused, reset, flush=True)
    sys.exit()
signal.signal(signal.SIGTERM, tell)
request = b"GET /health HTTP/1.1\\r\\nHost: 127.0.0.1:%d\\r\\nConnection: close\\r\\n\\r\\n" % int(sys.argv[1])
while True:
    asked += 1
    try:
        with socket.create_connection(("127.0.0.1", int(sys.argv[1])), 20) as link:
            link.sendall(request)
            reset += not link.recv(100).startswith(b"HTTP/1.1 200")
    except ConnectionRefusedError:
        refused += 1
    except ConnectionResetError:
        reset += 1
    time.sleep(0.002)
"""


def polled(user, port, *verbs):
    """Ask again and again while the unit is told these things: how often nobody listened, and how often the answer was
    cut off."""
    write(user, "poll.py", POLL)
    user.run(f"rm -f polled; {PYTHON} poll.py {port} > polled 2>&1 </dev/null & echo $! > poller")
    for verb in verbs:
        time.sleep(0.3)  # some calls of the poller between two events
        user.run(f"systemctl --user {verb}")
        wait(user, '[ "$(systemctl --user is-active llm-proxy)" = active ]')
    time.sleep(0.3)
    user.run("kill $(cat poller); for i in $(seq 100); do [ -s polled ] && break; sleep 0.05; done")
    asked, refused, reset = map(int, user.run("cat polled").stdout.split())
    assert asked > 20
    return refused, reset


def fake(user):
    """Start the fake provider on the machine; its port."""
    script = f"cd {ROOT} && {{ {PYTHON} -m tests.fakeprovider > $HOME/provider 2>&1 </dev/null & }}; for i in $(seq 200); do grep -q PORT $HOME/provider && break; sleep 0.05; done"
    user.run(script)
    return int(user.run("cut -d ' ' -f 2 provider; rm provider").stdout)


def own_disk(user, size):
    """Stop the daemon and give its state folder a small disk of its own; the folder."""
    folder = f"{user.home}/.local/state/llm-proxy"
    user.run("systemctl --user stop llm-proxy")
    user.machine.run(
        "sh",
        "-c",
        f"cp -a {folder} /root/{user.name} && mount -t tmpfs -o size={size},mode=700,uid={user.uid} tmpfs {folder} && "
        f"cp -a /root/{user.name}/setup.json /root/{user.name}/last_port {folder}",
    )
    return folder


def called(user, port, provider=None):
    """The status of one call through the daemon."""
    provider = provider or fake(user)
    url = f"http://127.0.0.1:{port}/anthropic/127.0.0.1:{provider}/v1/messages"
    return user.run(f"curl -s -m 20 -o /dev/null -w '%{{http_code}}' -d '{BODY}' {url}").stdout


def streamed(user, port, provider, meanwhile):
    """What a client gets of a streaming answer (about 2 s) while something happens."""
    url = f"http://127.0.0.1:{port}/anthropic/127.0.0.1:{provider}/v1/messages"
    user.run(
        f"curl -sN -m 60 -H 'X-Fake: words=60; slow=30' -d '{BODY}' {url} > stream 2>&1 & "
        f"for i in $(seq 200); do grep -q message_start stream && break; sleep 0.05; done; {meanwhile}; wait"
    )
    return user.run("cat stream; rm stream").stdout


def private_copy(user):
    """What the installer makes: a version of its own and the launcher, in the user's home."""
    version = f"{user.home}/.local/share/llm-proxy/versions/0.0.1"
    made = [
        f"{user.home}/.local",
        f"{user.home}/.local/share",
        f"{user.home}/.local/share/llm-proxy",
        f"{user.home}/.local/bin",
        f"{user.home}/.local/state",
    ]
    site = f"lib/python{'.'.join(map(str, sys.version_info[:2]))}/site-packages"
    launcher = (ROOT / "packaging/launcher.sh").read_text().replace("@PYTHON@", shlex.quote(f"{version}/bin/python"))
    write(user, f"{user.home}/launcher", launcher)
    user.run(
        f"v={shlex.quote(version)}; mkdir -p .local/bin .local/state; mkdir -m 700 .local/state/llm-proxy\n"
        f'{Path(PYTHON).resolve()} -m venv --without-pip "$v"\n'
        f"printf '%s\\n%s\\n' {ROOT} {ROOT}/.venv/{site} > \"$v/{site}/checkout.pth\"\n"
        "mv launcher .local/bin/llm-proxy; chmod 755 .local/bin/llm-proxy"
    )
    write(user, f"{user.home}/.local/state/llm-proxy/made", "".join(f"{folder}\n" for folder in made))
