"""Daemons without a service manager: ports, rivals, full disks, crash loops, and Homebrew's and launchd's ways.

launchd is simulated by a `launchctl` that replays its documented answers; everything else is real.
"""

import json
import os
import plistlib
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llm_proxy.errors import SetupFailed
from llm_proxy.service import crashes, launchd, listen, process, receipt, setup, state, uninstall, units
from llm_proxy.service.steps import Steps
from tests.conftest import Daemon


def exported(command):
    """What a new shell gets; it prints no error."""
    done = command("--env")
    assert done.returncode == 0 and done.stderr == ""
    return done.stdout


def run_of(daemon):
    assert daemon.port
    deadline = time.monotonic() + 60
    while (run := state.read_run(str(daemon.state))) is None or run.port != daemon.port:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return run


class TestD06LastPortTaken:
    def test_D06_a_new_port_is_taken_said_and_published(self, start, command):
        """Whoever holds the old port never gets our clients."""
        first = start("--service")
        port = run_of(first).port
        first.stop()
        with socket.create_server(("127.0.0.1", port)):
            second = start("--service")
            second.wait_for_line(rf":{port}: .*; port {second.port} is used instead")
            assert run_of(second).port == second.port != port
            assert state.read_port(str(second.state), "port") == second.port
            assert f":{second.port}/" in exported(command) and f":{port}/" not in exported(command)


class TestD08ManyAtOnce:
    def test_D08_thirty_starts_make_one_daemon(self, environ, command):
        """One serves; the others leave with status 0 and say why. It is no crash loop."""
        daemons = [Daemon(environ["HOME"], ("--service",), environ, {}) for _ in range(30)]
        try:
            deadline = time.monotonic() + 60
            while sum(d.process.poll() is None for d in daemons) > 1:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            (winner,) = [d for d in daemons if d.process.poll() is None]
            for daemon in daemons:
                if daemon is not winner:
                    assert daemon.wait() == 0, daemon.lines
                    daemon.wait_for_line(f"already running, pid {winner.pid}, port {winner.port}")
            assert f":{winner.port}/" in exported(command) and winner.health()["recording"] != "stopped"
            assert winner.stop() == 0
        finally:
            for daemon in daemons:
                if daemon.process.poll() is None:
                    daemon.kill()


class TestD10StateFolder:
    def test_D10_a_folder_that_cannot_be_used(self, start, command, environ):
        """It serves, says so, and new shells are not pointed at it, rather than wrongly."""
        folder = Path(environ["HOME"]) / ".local"
        folder.write_text("a file where the folder should be")
        daemon = start("--service")
        daemon.wait_for_line(r"cannot be used: .*`--env` and `--status` cannot find it")
        health = daemon.health()
        assert health["status"] == "ok" and health["recording"] == "stopped"
        assert exported(command) == ""
        daemon.wait_for_line("NOT RECORDING")
        assert daemon.stop() == 0


class TestD12CrashLoop:
    def test_D12_safe_mode_without_a_manager(self, start, command):
        """After five crashed starts in a minute the sixth carries calls on the same port and records nothing."""
        for _ in range(crashes.LIMIT):
            daemon = start("--service")
            port = run_of(daemon).port
            daemon.kill()
        safe = start("--service")
        safe.wait_for_line("5 starts within 60 s have crashed; safe mode")
        assert safe.port == port and run_of(safe).pid == safe.pid
        health = safe.health()
        assert health["recording"] == "stopped" and "safe mode" in health["reason"]
        status = json.loads(command("--status", "--json").stdout)
        assert status["safe_mode"] and "RUNNING in safe mode" in command("--status").stdout
        assert f":{port}/" in exported(command)
        assert safe.stop() == 0
        daemon = start("--service")
        assert run_of(daemon).port == port
        daemon.wait_for_recording()
        assert not json.loads(command("--status", "--json").stdout)["safe_mode"]

    def test_D12_clean_stops_are_no_crashes(self, start):
        """However often it is restarted."""
        for _ in range(crashes.LIMIT + 2):
            daemon = start("--service")
            run_of(daemon)
            assert daemon.stop() == 0
            assert not any("safe mode" in line for line in daemon.lines)

    def test_D12_old_crashes_and_other_boots_are_forgotten(self, tmp_path):
        """Only a minute counts, and a clock that starts anew."""
        folder = str(tmp_path / "state")
        state.prepare(folder)
        assert [crashes.looping(folder, 100.0 + n) for n in range(6)] == [False] * 5 + [True]
        assert not crashes.looping(folder, 300.0)
        assert not crashes.looping(folder, 5.0)
        state.write(folder, "starts", "garbage \x00")
        assert not crashes.looping(folder, 6.0)

    def test_D12_a_wrong_setting_under_launchd(self, start, environ):
        """launchd knows no status that means "do not try again"; calls are carried instead."""
        config = Path(environ["HOME"]) / ".config/llm-proxy/config.toml"
        config.parent.mkdir(parents=True)
        config.write_text("porrt = 1")
        daemon = start("--service", env={"XPC_SERVICE_NAME": units.LABEL})
        daemon.wait_for_line("there is no setting 'porrt'.*safe mode")
        assert daemon.health()["recording"] == "stopped"
        assert start("--service").wait() == 78


# Keys of units and since when systemd knows them (systemd.directives(7)). StateDirectory and the Protect… family are
# not among them on purpose: 247 and 252 ignore or move in a user's unit what 257 enforces.
KEYS = {
    "After": 1,
    "Backlog": 1,
    "Conflicts": 1,
    "Description": 1,
    "ExecStart": 1,
    "ExecStartPost": 1,
    "ExecStopPost": 1,
    "FileDescriptorStoreMax": 219,
    "KillMode": 187,
    "ListenStream": 1,
    "LockPersonality": 235,
    "NoNewPrivileges": 187,
    "NotifyAccess": 1,
    "OnFailure": 1,
    "Requires": 1,
    "Restart": 1,
    "RestartPreventExitStatus": 189,
    "RestartSec": 1,
    "RestrictRealtime": 231,
    "StartLimitBurst": 230,
    "StartLimitIntervalSec": 230,
    "TimeoutStartSec": 188,
    "TimeoutStopSec": 188,
    "Type": 1,
    "UMask": 1,
    "WantedBy": 1,
    "WatchdogSec": 177,
}


class TestD37Units:
    @pytest.mark.parametrize(
        "text",
        [units.service("/u/x", socket_activation=True), units.safe("/u/x"), units.socket("/u/x", 1, ipv6=True)],
        ids=["service", "safe", "socket"],
    )
    def test_D37_only_keys_that_every_manager_takes_alike(self, text):
        """Known since 247 at the latest, and to 257 the same. Those two do not run here: their manuals say so."""
        found = {line.partition("=")[0] for line in text.splitlines() if "=" in line and not line.startswith("#")}
        assert found and {key for key in found if KEYS.get(key, 999) > 247} == set()

    def test_D37_the_manager_holds_every_socket(self):
        """One more than it has room for would be closed."""
        (room,) = re.findall("^FileDescriptorStoreMax=(.*)$", units.service("/u/llm-proxy"), re.MULTILINE)
        found = listen.listen("127.0.0.1", 0)
        for link in found.sockets:
            link.close()
        assert int(room) >= len(found.sockets)

    @pytest.mark.parametrize(
        ("program", "value"),
        [
            ("/home/u/.local/bin/llm-proxy", '"/home/u/.local/bin/llm-proxy" --service'),
            ("/home/100%h/$x y", '"/home/100%%h/$x y" --service'),
            ("/home/o'neil/x", '/bin/sh -c "exec \\"$$0\\" \\"$$@\\"" "/home/o\'neil/x" --service'),
            ("/a\nb\x01$c", '/bin/sh -c "exec \\"$$0\\" \\"$$@\\"" "/a\\nb\\x01$$c" --service'),
        ],
    )
    def test_D31_any_path_is_quoted(self, program, value):
        """The line as systemd reads it."""
        assert units.command(program, "--service") == value

    def test_D31_a_path_that_is_no_text_is_refused(self):
        """A unit file is UTF-8."""
        with pytest.raises(SetupFailed, match="not UTF-8"):
            units.service("/home/\udcff/llm-proxy")

    def test_D37_the_units_in_the_repository_are_those_of_setup(self):
        """`systemd/` shows what setup writes, for a program in ~/.local/bin."""
        folder = Path(__file__).parent.parent / "systemd"
        program = "/home/you/.local/bin/llm-proxy"
        assert (folder / units.SERVICE).read_text() == units.service(program)
        assert (folder / units.SAFE).read_text() == units.safe(program)
        assert (folder / units.SOCKET).read_text() == units.socket(program, 8080, ipv6=True)


class TestReceipt:
    def test_files_are_written_once_and_kept_when_edited(self, tmp_path):
        """done, unchanged, then warning with `.new` beside; a link is the user's too."""
        kept = receipt.Receipt(str(tmp_path / "state"))
        path = tmp_path / "a/b/unit"
        assert kept.write(path, b"1") == "done" and kept.write(path, b"1") == "unchanged"
        assert kept.write(path, b"2") == "done" and path.read_bytes() == b"2"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert str(tmp_path / "a") in kept.folders and str(tmp_path / "state") in kept.folders
        path.write_bytes(b"mine")
        assert kept.write(path, b"3") == "warning" and path.read_bytes() == b"mine"
        assert path.with_name("unit.new").read_bytes() == b"3"
        link = tmp_path / "link"
        link.symlink_to("nowhere")
        assert kept.write(link, b"4") == "warning" and os.readlink(link) == "nowhere"
        again = receipt.load(kept.folder)
        assert again is not None and again.files == kept.files

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"files": 3}', "\x00"])
    def test_a_broken_receipt_is_none(self, tmp_path, text):
        """It must not keep anybody from uninstalling."""
        (tmp_path / "setup.json").write_text(text)
        assert receipt.load(str(tmp_path)) is None


FORMULA = Path(__file__).parent.parent / "homebrew/llm-proxy.rb"
BREW = """\
#!{python}
# A brew whose `services stop` ends the job, as launchd's or systemd's would be ended.
import os, pathlib, signal, sys
folder = pathlib.Path({folder!r})
with (folder / "brewed.log").open("a") as file:
    print(*sys.argv[1:], file=file)
if (folder / "broken").exists():
    print("Error: it is broken", file=sys.stderr)
    sys.exit(1)
for job in (folder / "brewed", pathlib.Path({home!r}, ".config/systemd/user/homebrew.llm-proxy.service")):
    job.unlink(missing_ok=True)
os.kill(int((folder / "pid").read_text()), signal.SIGTERM)
"""


@pytest.fixture
def brewed(tmp_path, monkeypatch, environ, start):
    """`brew services start llm-proxy`, simulated: a daemon as the formula's service block describes it."""
    folder = tmp_path / "brew"
    folder.mkdir()
    program = folder / "brew"
    program.write_text(BREW.format(python=sys.executable, folder=str(folder), home=environ["HOME"]))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", environ["HOME"])
    unit = Path(environ["HOME"]) / ".config/systemd/user" / units.BREW_UNIT
    unit.parent.mkdir(parents=True)
    unit.write_text("[Service]\n")
    arguments, variables = service_block()
    daemon = start(*arguments, env={**variables, "SHELL": "/bin/bash"})
    assert daemon.port
    (folder / "pid").write_text(str(daemon.pid))
    return daemon, folder


def service_block():
    """Arguments and variables with which the formula has its service started."""
    text = FORMULA.read_text()
    arguments = re.search(r'^    run \[opt_bin/"llm-proxy", (.*)\]$', text, re.MULTILINE)[1]
    variables = re.search(r"^    environment_variables (.*)$", text, re.MULTILINE)[1]
    return json.loads(f"[{arguments}]"), dict(re.findall(r'(\w+): "(.*?)"', variables))


class TestBrew:
    """A simulation: there is no Homebrew here."""

    def test_the_formula(self):
        """What Homebrew makes of these lines is in its manual: restarted for ever, not throttled, time to drain."""
        text = FORMULA.read_text()
        service = text[text.index("  service do") : text.index("  def caveats")]
        for line in ("keep_alive true", "process_type :interactive", "throttle_interval 5", "stop_timeout 30"):
            assert f"\n    {line}\n" in service
        assert "def post_install" not in text and "brew services start llm-proxy" in text
        assert service_block() == (["--service"], {"LLM_PROXY_FIRST_RUN": "shell"})
        if shutil.which("ruby"):
            assert subprocess.run(["ruby", "-c", FORMULA], capture_output=True).returncode == 0

    def test_the_first_start_sets_up_the_shells_once(self, start, environ, command):
        """Homebrew cannot do it at installation; a second start leaves alone what the user has done since."""
        rc = Path(environ["HOME"]) / ".bashrc"
        rc.write_text("# mine\n")
        arguments, variables = service_block()
        variables["SHELL"] = "/bin/bash"
        daemon = start(*arguments, env=variables)
        daemon.wait_for_line("first run: .*bashrc")
        assert "llm-proxy" in rc.read_text()
        assert json.loads((daemon.state / "setup.json").read_text())["autostart"] == "brew"
        assert "Homebrew's service" in command("--status").stdout
        daemon.stop()
        rc.write_text("# mine again\n")
        daemon = start(*arguments, env=variables)
        daemon.wait_for_recording()
        daemon.stop()
        assert rc.read_text() == "# mine again\n"

    def test_without_the_variable_no_shell_is_touched(self, start, environ):
        """A person who starts the service by hand asks for nothing."""
        rc = Path(environ["HOME"]) / ".bashrc"
        rc.write_text("# mine\n")
        daemon = start("--service", env={"SHELL": "/bin/bash"})
        daemon.wait_for_recording()
        assert daemon.stop() == 0 and rc.read_text() == "# mine\n"

    def test_uninstall_stops_homebrews_service(self, brewed, environ):
        """Or it would start the daemon again at once; the home is what it was."""
        daemon, folder = brewed
        daemon.wait_for_line("first run: ")
        status, told = steps_of(lambda steps: uninstall.run(steps, environ, purge=True, platform="linux"))
        assert status == 0, told
        assert (folder / "brewed.log").read_text() == "services stop llm-proxy\n"
        assert daemon.wait() == 0 and not daemon.state.exists()
        assert not any("llm-proxy" in path.read_text() for path in Path(environ["HOME"]).glob(".*rc"))

    def test_where_it_cannot_be_stopped_nothing_is_removed_under_it(self, brewed, environ):
        """It goes on with its state; uninstalling can be repeated."""
        daemon, folder = brewed
        (folder / "broken").touch()
        status, told = steps_of(lambda steps: uninstall.run(steps, environ, purge=False, platform="linux"))
        assert status == 1 and told[-1] == ("service", "failed")
        assert daemon.health()["status"] == "ok" and run_of(daemon).pid == daemon.pid
        (folder / "broken").unlink()
        assert steps_of(lambda steps: uninstall.run(steps, environ, purge=False, platform="linux"))[0] == 0


LAUNCHCTL = """\
#!{python}
# A launchctl that answers as documented: bootout is not done when it returns, bootstrap says EIO meanwhile.
import os, pathlib, subprocess, sys
folder = pathlib.Path({folder!r})
said = folder / "said"
with said.open("a") as file:
    print(*sys.argv[1:], file=file)
loaded, leaving = folder / "loaded", folder / "leaving"
verb = sys.argv[1]
if verb == "print":
    if "mxcl" in sys.argv[2]:
        sys.exit(0 if (folder / "brewed").exists() else 113)
    if leaving.exists():
        left = int(leaving.read_text()) - 1
        leaving.write_text(str(left))
        if left <= 0:
            leaving.unlink()
            loaded.unlink()
    sys.exit(0 if loaded.exists() else 113)
if verb == "bootout":
    leaving.write_text("3")
    sys.exit(0)
if verb == "bootstrap":
    busy = folder / "busy"
    if loaded.exists() or busy.exists():
        busy.unlink(missing_ok=True)
        print("Bootstrap failed: 5: Input/output error", file=sys.stderr)
        sys.exit(5)
    loaded.write_text(sys.argv[3])
    sys.exit(0)
sys.exit(64)
"""


@pytest.fixture
def mac(tmp_path, monkeypatch, environ):
    """A simulated launchd. The folder in which it keeps what it was told."""
    folder = tmp_path / "mac"
    folder.mkdir()
    program = folder / "launchctl"
    program.write_text(LAUNCHCTL.format(python=sys.executable, folder=str(folder)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", environ["HOME"])
    return folder


def test_uninstall_names_datasets_and_purges_them(environ, monkeypatch):
    """They hold prompts and answers as the logs do: they stay and are named, or go with the logs; a folder somebody chose stays."""
    home = Path(environ["HOME"])
    for name in ("HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, environ[name]) if name in environ else monkeypatch.delenv(name, raising=False)
    (dataset := home / ".llm-provider-dataset" / "streams").mkdir(parents=True)
    (chosen := home / "chosen").mkdir()
    environ = {name: value for name, value in environ.items() if name != "LLM_PROXY_DATASET_FOLDER"}

    def told(purge, **more):
        steps = Steps(lambda step: None)
        assert uninstall.run(steps, environ | more, purge=purge, platform="linux") == 0
        return " ".join(f"{step.outcome}: {step.text}" for step in steps.all)

    assert f"unchanged: datasets stay in {dataset.parent}" in told(False) and dataset.exists()
    assert f"warning: {chosen} was chosen by you" in told(True, LLM_PROXY_DATASET_FOLDER=str(chosen))
    assert chosen.exists() and dataset.exists()
    assert f"remove {dataset.parent}" in told(True) and not dataset.parent.exists()


def steps_of(function):
    steps = Steps(lambda step: None)
    return function(steps), [(step.name, step.outcome) for step in steps.all]


class TestLaunchd:
    """A simulation: there is no macOS here."""

    def test_the_agent_is_what_launchd_takes(self):
        """Absolute program, no shell characters to expand, restarted for ever, not throttled."""
        agent = plistlib.loads(units.agent("/Users/a b/.local/bin/llm-proxy", "/Users/a b/Library/Logs/llm-proxy"))
        assert agent["ProgramArguments"] == ["/Users/a b/.local/bin/llm-proxy", "--service"]
        assert agent["KeepAlive"] is True and agent["RunAtLoad"] is True and agent["ProcessType"] == "Interactive"
        assert agent["Label"] == units.LABEL and agent["Umask"] == 0o077 and agent["ExitTimeOut"] > 25
        assert all("~" not in str(value) and "$" not in str(value) for value in agent.values())

    def test_loading_waits_for_what_goes_and_tries_again(self, mac):
        """bootout, polled until it is gone, then bootstrap through an EIO."""
        launchd.load("x", "/a.plist")
        (mac / "busy").touch()
        launchd.load("x", "/b.plist")
        assert (mac / "loaded").read_text() == "/b.plist"
        assert [line.split()[0] for line in (mac / "said").read_text().splitlines()].count("bootstrap") == 3

    def test_setup_and_uninstall(self, mac, start, environ):
        """The agent is written, loaded, asked, and gone again; a second setup does nothing."""
        daemon = start("--service", env={"XPC_SERVICE_NAME": units.LABEL})
        run_of(daemon)
        wishes = setup.Wishes(shell=False)
        (mac / "loaded").touch()  # as if launchd had started that daemon
        status, told = steps_of(lambda steps: setup.run(steps, wishes, environ, platform="darwin"))
        assert status == 0, told
        assert setup.agent_path().exists() and (mac / "loaded").read_text() == str(setup.agent_path())
        status, told = steps_of(lambda steps: setup.run(steps, wishes, environ, platform="darwin"))
        assert status == 0 and ("file", "unchanged") in told
        status, told = steps_of(lambda steps: uninstall.run(steps, environ, purge=False, platform="darwin"))
        assert status == 0, told
        assert not (mac / "loaded").exists() and not setup.agent_path().exists()
        assert not (Path(environ["HOME"]) / "Library").exists()

    def test_D46_homebrews_service_is_the_only_one(self, mac, start, environ):
        """Where brew's job is loaded, no agent of ours is added."""
        (mac / "brewed").touch()
        run_of(start("--service"))
        status, _ = steps_of(lambda steps: setup.run(steps, setup.Wishes(shell=False), environ, platform="darwin"))
        assert status == 0 and not setup.agent_path().exists()
        assert "bootstrap" not in (mac / "said").read_text()


class TestStopping:
    def test_a_daemon_that_drains_is_found_by_its_lock(self, start):
        """It has withdrawn its statement; the kernel still knows who holds the lock."""
        daemon = start("--service")
        run_of(daemon)
        state.remove(str(daemon.state), "run")
        assert process.owner(str(daemon.state)) == daemon.pid
        process.stop(str(daemon.state), daemon.pid)
        assert daemon.wait() == 0 and process.owner(str(daemon.state)) == 0

    def test_nobody_else_is_stopped(self, start, tmp_path):
        """A statement left over names a process that is another by now."""
        daemon = start("--service")
        line = run_of(daemon).line().split()
        daemon.kill()
        with subprocess.Popen(["sleep", "60"]) as other:
            line[2] = str(other.pid)
            state.write(str(daemon.state), "run", " ".join(line) + "\n")
            assert process.owner(str(daemon.state)) == 0
            other.send_signal(signal.SIGKILL)
