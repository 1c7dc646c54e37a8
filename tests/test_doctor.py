"""`llm-proxy doctor`: each breakage is found, named, and mended by the command it gives.

Breakages are real ones in a home of their own; only macOS and Homebrew are simulated, by commands that answer as theirs.
"""

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from llm_proxy.service import doctor, environment, receipt, state, units
from llm_proxy.service.checks import machine
from tests.installbed import stub

DEAD = "http://127.0.0.1:1/anthropic/api.anthropic.com"


@pytest.fixture
def bed(tmp_path, environ, command, start, request):
    """A home, a PATH with `llm-proxy` on it, and the means to break things."""
    home = tmp_path / "home"
    stub(tmp_path / "bin", "llm-proxy", f'exec {shlex.quote(sys.prefix)}/bin/llm-proxy "$@"')
    (tmp_path / "bin/llm-proxy").unlink()
    (tmp_path / "bin/llm-proxy").symlink_to(f"{sys.prefix}/bin/llm-proxy")
    environ["PATH"] = f"{tmp_path}/bin:{os.environ['PATH']}"
    return SimpleNamespace(
        home=home,
        bin=tmp_path / "bin",
        state=home / ".local/state/llm-proxy",
        start=start,
        command=command,
        tmp=tmp_path,
    )


def examined(bed, *arguments, **environ):
    """The findings: severity, text and command, by the name of the check."""
    done = bed.command("doctor", "--json", *arguments, env=environ)
    assert done.stderr == ""
    report = json.loads(done.stdout)
    assert done.returncode == report["exit"]
    asked = [check.name for check in doctor.CHECKS if "--online" in arguments or not check.online]
    assert [check["name"] for check in report["checks"]] == asked  # what was not asked is not said to be good
    return {
        check["name"]: [(f["severity"], f["text"], f["mend"]) for f in check["findings"]] for check in report["checks"]
    }


def the_one(found, check):
    (finding,) = found[check]
    return finding


def serving(bed):
    """A real service, and what a shell of it has."""
    daemon = bed.start("--service")
    daemon.wait_for_recording()
    return daemon, {name: environment.base_url(name, daemon.port) for name in environment.VARIABLES}


def test_a_machine_in_order(bed):
    """With a daemon, a shell that uses it and a receipt nothing is wrong: exit 0."""
    _, variables = serving(bed)
    receipt.Receipt(str(bed.state), autostart="shell").save()
    found = examined(bed, **variables)
    assert {name: findings for name, findings in found.items() if findings} == {}
    done = bed.command("doctor", env=variables)
    assert done.returncode == 0 and [line[:2] for line in done.stdout.splitlines()] == ["ok"] * (len(doctor.CHECKS) - 1)
    assert bed.command("doctor", "--nonsense").returncode == 2


def test_no_daemon(bed):
    """Exit 1, and the command that starts one."""
    found = examined(bed)
    assert the_one(found, "daemon") == (
        "problem",
        "it does not run: no daemon has said that it runs",
        "llm-proxy --setup",
    )
    assert the_one(found, "service")[0] == "note"
    done = bed.command("doctor")
    assert done.returncode == 1 and done.stdout.splitlines()[-1] == "      llm-proxy --setup"


@pytest.mark.parametrize("alive", [True, False], ids=["daemon", "no-daemon"])
def test_a_dead_base_url(bed, alive):
    """The classic: a variable with a port where nothing of ours listens. Its command mends it."""
    variables = {"ANTHROPIC_BASE_URL": DEAD}
    if alive:
        serving(bed)
    severity, text, mend = the_one(examined(bed, **variables), "variables")
    assert severity == "problem" and DEAD in text
    script = f"export ANTHROPIC_BASE_URL={DEAD}; {mend}; llm-proxy doctor --json"
    done = subprocess.run(["sh", "-c", script], env=_shell(bed), capture_output=True, text=True, timeout=60)
    checks = {check["name"]: check["findings"] for check in json.loads(done.stdout)["checks"]}
    assert checks["variables"] == []


def test_another_tools_variable(bed, free_port):
    """What listens is a note, what does not a problem; a secret in the address is not shown; other doors are named."""
    serving(bed)
    with socket.create_server(("127.0.0.1", 0)) as link:
        url = f"http://user:secret@127.0.0.1:{link.getsockname()[1]}/x?key=secret"
        severity, text, mend = the_one(examined(bed, ANTHROPIC_BASE_URL=url), "variables")
    assert severity == "note" and "another tool's" in text and "secret" not in text
    assert mend == "unset ANTHROPIC_BASE_URL"
    severity, text, mend = the_one(examined(bed, OPENAI_BASE_URL=f"http://localhost:{free_port}/v1"), "variables")
    assert severity == "problem" and "where nothing listens" in text
    assert the_one(examined(bed, OPENAI_BASE_URL="http://localhost:1/v1", SHELL="/usr/bin/fish"), "variables")[2] == (
        "set -e OPENAI_BASE_URL"
    )
    found = examined(bed, ANTHROPIC_BASE_URL="https://gateway.example", CLAUDE_CODE_USE_BEDROCK="1", NO_LLM_PROXY="1")
    assert [mend for _, _, mend in found["variables"]] == [
        "unset ANTHROPIC_BASE_URL",
        "unset NO_LLM_PROXY",
        "unset CLAUDE_CODE_USE_BEDROCK",
    ]


def test_nothing_of_a_variable_reaches_the_terminal_as_it_is(bed):
    """Neither doctor nor --status shows a secret of an address, or lets a terminal obey it."""
    variables = {
        "ANTHROPIC_BASE_URL": "https://user:secret@x\x1bc\u202e.example/a?key=secret",
        "OPENAI_BASE_URL": "\x07",
    }
    for words in (["doctor"], ["--status"], ["--status", "--json"], ["doctor", "--json"]):
        said = bed.command(*words, env=variables).stdout
        assert ".example/a" in said and "secret" not in said and not set(said) & set("\x1b\x07\u202e")


def test_status_names_the_files_of_new_shells(bed):
    """Or says that there are none, and what changes that."""
    (bed.home / ".bashrc").write_text("# mine\n")
    assert "New shells: do not use it; `llm-proxy --setup-shell`" in bed.command("--status").stdout
    bed.command("--setup-shell", env={"SHELL": "/bin/bash"})
    assert f"New shells: {bed.home}/.bashrc, {bed.home}/.profile\n" in bed.command("--status").stdout
    assert "This shell: does not use it\n" in bed.command("--status").stdout + "\n"
    serving(bed)
    assert "This shell: does not use it, new ones do\n" in bed.command("--status").stdout + "\n"


def test_a_base_url_that_is_written_down(bed):
    """In an rc file, or where every program of a session gets it: file and line are named."""
    (bed.home / ".zshenv").write_text(f"# x\nexport ANTHROPIC_BASE_URL='{DEAD}'\n")
    folder = bed.home / ".config/environment.d"
    folder.mkdir(parents=True)
    (folder / "a.conf").write_text(
        "OPENAI_BASE_URL=http://127.0.0.1:1/v1\nOPENAI_API_BASE=https://gateway.example/v1\n"
    )
    found = examined(bed)["shell files"]
    assert [(severity, mend) for severity, _, mend in found] == [
        ("problem", f'"${{EDITOR:-vi}}" +2 {bed.home}/.zshenv'),
        ("problem", f'"${{EDITOR:-vi}}" +1 {folder}/a.conf'),
    ]


def test_half_a_block_and_none(bed):
    """A block without its end is a problem; no block at all after --setup is a note that --setup-shell mends."""
    rc = bed.home / ".bashrc"
    rc.write_text("# mine\n")
    receipt.Receipt(str(bed.state), autostart="shell").save()
    assert the_one(examined(bed), "shell files")[2] == "llm-proxy --setup-shell"
    assert bed.command("--setup-shell", env={"SHELL": "/bin/bash"}).returncode == 0
    assert examined(bed)["shell files"] == []
    rc.write_text("".join(line for line in rc.read_text().splitlines(keepends=True) if "<<<" not in line))
    severity, text, mend = the_one(examined(bed), "shell files")
    assert severity == "problem" and str(rc) in text and mend.endswith(str(rc))


def test_the_order_of_the_path(bed):
    """Another `llm-proxy` that comes first is a problem, none at all a note; the command given puts this one first."""
    other = bed.tmp / "other"
    stub(other, "llm-proxy", "exit 0")
    severity, text, mend = the_one(examined(bed, PATH=f"{other}:{bed.bin}:/usr/bin:/bin"), "path")
    assert severity == "problem" and f"{other}/llm-proxy" in text
    assert the_one(examined(bed, PATH="/usr/bin:/bin"), "path")[0] == "note"
    done = subprocess.run(
        ["sh", "-c", f"PATH={other}:/usr/bin:/bin; {mend}; command -v llm-proxy"],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.stdout == f"{sys.prefix}/bin/llm-proxy\n"


def test_two_installations(bed):
    """install.sh and Homebrew together (the latter simulated): both are named, and one command removes one."""
    prefix = bed.tmp / "brew"
    (prefix / "opt/llm-proxy").mkdir(parents=True)
    stub(prefix / "bin", "brew", "exit 0")
    path = f"{bed.bin}:{prefix}/bin:/usr/bin:/bin"
    assert examined(bed, PATH=path)["installations"] == []
    (bed.home / ".local/share/llm-proxy/versions/1").mkdir(parents=True)
    stub(bed.home / ".local/bin", "llm-proxy", "exit 0")
    severity, text, mend = the_one(examined(bed, PATH=path), "installations")
    assert severity == "problem" and "by install.sh" in text and f"by Homebrew in {prefix}" in text
    assert mend in ("brew uninstall llm-proxy", f"{bed.home}/.local/bin/llm-proxy --uninstall")


def test_two_services(bed):
    """Homebrew's unit beside ours."""
    units = bed.home / ".config/systemd/user"
    units.mkdir(parents=True)
    (units / "llm-proxy.service").touch()
    assert examined(bed)["services"] == []
    (units / "homebrew.llm-proxy.service").touch()
    assert the_one(examined(bed), "services")[2] == "brew services stop llm-proxy"


def test_the_port_in_other_hands(bed):
    """With no daemon, whoever holds the port that clients still name is named too; a port of the configuration as well."""
    state.prepare(str(bed.state))
    with socket.create_server(("127.0.0.1", 0)) as link:
        port = link.getsockname()[1]
        state.write(str(bed.state), "last_port", f"{port}\n")
        severity, text, mend = the_one(examined(bed), "port")
        assert severity == "problem" and f"(pid {os.getpid()})" in text and mend == "llm-proxy --setup"
        assert "configuration" in the_one(examined(bed, LLM_PROXY_PORT=str(port)), "port")[1]
    assert examined(bed)["port"] == []


def test_stale_and_strange_state(bed):
    """Left over from a kill: a note. A file that others may write: a problem, and its command mends it."""
    daemon, _ = serving(bed)
    daemon.kill()
    severity, text, _ = the_one(examined(bed), "state")
    assert severity == "note" and "not stopped cleanly" in text
    (bed.state / "last_port").chmod(0o666)
    mends = [mend for severity, _, mend in examined(bed)["state"] if severity == "problem"]
    assert len(mends) == 2
    subprocess.run(["sh", "-c", " && ".join(mends)], check=True, timeout=20)
    assert [severity for severity, _, _ in examined(bed)["state"]] == ["note"]


def test_logs_that_others_can_read(bed):
    """Prompts are in them: a problem, and its command mends it."""
    logs = bed.home / ".llm-provider-logs/api.anthropic.com"
    logs.mkdir(parents=True)
    (logs / "a.jsonl").write_text("{}\n")
    for path in (logs, logs.parent):
        path.chmod(0o700)
    (logs / "a.jsonl").chmod(0o644)
    severity, text, mend = the_one(examined(bed), "logs")
    assert severity == "problem" and "a.jsonl" in text
    subprocess.run(["sh", "-c", mend], check=True, timeout=20)
    assert examined(bed)["logs"] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can leave root's files behind")
def test_files_of_somebody_else(bed):
    """What sudo leaves behind."""
    logs = bed.home / ".llm-provider-logs"
    logs.mkdir(mode=0o700)
    (logs / "a.jsonl").touch(0o600)
    os.chown(logs / "a.jsonl", 12345, 12345)
    severity, text, mend = the_one(examined(bed), "logs")
    assert severity == "problem" and "somebody else" in text and mend.startswith("sudo chown -R")


def test_attached_clients(bed, environ):
    """A client led to another port is found and attached again; Codex that nobody has attached is a note."""
    stub(bed.bin, "codex", "exit 0")
    serving(bed)
    assert the_one(examined(bed), "attached")[2] == "llm-proxy attach codex"
    assert bed.command("attach", "codex").returncode == 0
    assert examined(bed)["attached"] == []
    journal = bed.state / "attached.json"
    facts = json.loads(journal.read_text())
    facts["attachments"][0]["port"] = 1
    journal.write_text(json.dumps(facts))
    severity, text, mend = the_one(examined(bed), "attached")
    assert severity == "problem" and "attached to port 1" in text and mend == "llm-proxy attach codex"


def test_forward_proxies(bed):
    """A proxy that would be asked for this machine is a problem; one the daemon does not know of is a note."""
    serving(bed)
    variables = {"HTTP_PROXY": "http://user:secret@proxy.example:3128", "NO_PROXY": "example"}
    severity, text, mend = the_one(examined(bed, **variables), "proxies")
    assert severity == "problem" and "secret" not in text + mend
    words = [f"{name}={value}" for name, value in variables.items()]
    done = subprocess.run(
        ["env", *words, "sh", "-c", f"{mend}; echo $NO_PROXY"], capture_output=True, text=True, timeout=20
    )
    assert done.stdout == "127.0.0.1,localhost,example\n"
    assert examined(bed, **variables | {"NO_PROXY": done.stdout.strip()})["proxies"] == []
    severity, _, mend = the_one(examined(bed, HTTPS_PROXY="http://proxy.example:3128"), "proxies")
    assert severity == "note" and "secret" not in mend


def test_a_wrong_setting(bed):
    """In the file or in the environment, with the command for each; the other checks still run."""
    config = bed.home / ".config/llm-proxy/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text("prot = 1\n")
    found = examined(bed)
    severity, text, mend = the_one(found, "configuration")
    assert severity == "problem" and "did you mean 'port'" in text and mend.endswith(str(config))
    assert found["daemon"]
    config.unlink()
    assert the_one(examined(bed, LLM_PROXY_PORT="x"), "configuration")[2] == "unset LLM_PROXY_PORT"


def test_a_setting_that_is_not_in_force_yet(bed):
    """The file is younger than the daemon: a note, and its command starts the daemon anew, which takes the setting."""
    config = bed.home / ".config/llm-proxy/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text("")
    os.utime(config, (1e9, 1e9))
    daemon, _ = serving(bed)
    assert examined(bed)["configuration"] == []
    config.write_text("log_dir = '~/elsewhere'\n")
    os.utime(config, (time.time() + 3,) * 2)
    severity, text, mend = the_one(examined(bed), "configuration")
    assert severity == "note" and str(config) in text
    mending = subprocess.Popen(["sh", "-c", mend], env=_shell(bed) | {"SHELL": "/bin/sh"}, stdout=subprocess.DEVNULL)
    assert daemon.wait() == 0, "it was asked to stop, not killed"
    assert mending.wait(60) == 3  # there is no shell here whose files it could edit
    facts = json.loads(bed.command("--status", "--json").stdout)
    try:
        assert facts["running"] and facts["logs"]["folder"] == f"{bed.home}/elsewhere"
    finally:
        os.kill(facts["pid"], signal.SIGTERM)
        run = state.read_run(str(bed.state))
        while run is not None and state.alive(run):
            time.sleep(0.02)


def test_certificates(bed):
    """A variable that names a file that is not there breaks every TLS connection."""
    found = the_one(examined(bed, SSL_CERT_FILE="/nonexistent/ca.pem"), "certificates")
    assert found[0] == "problem" and found[2] == "unset SSL_CERT_FILE"


def test_the_network_is_asked_only_when_told(bed):
    """Without --online nothing is resolved or connected; with it an unreachable provider is a note, so exit 0 can stay."""
    program = shutil.which("strace")
    assert program, "strace is missing: scripts/test.sh installs it"
    trace = bed.tmp / "trace"
    words = [program, "-f", "-e", "trace=connect", "-o", trace, sys.executable, "-I", "-m", "llm_proxy", "doctor"]
    for more, expected in ([], False), (["--online"], True):
        subprocess.run([*words, *more], env=_shell(bed), capture_output=True, timeout=60)
        asked = [line for line in trace.read_text().splitlines() if "AF_INET" in line and "127.0.0.1" not in line]
        proxied = bool(asked)
        assert not proxied or expected, asked
    # A forward proxy that refuses stands for a network that does.
    found = examined(bed, "--online", HTTPS_PROXY="http://127.0.0.1:1")["providers"]
    assert [severity for severity, _, _ in found] == ["note"] * len(machine.PROVIDERS)


def test_the_clock_and_the_disk(monkeypatch, bed):
    """A clock before the installation; a disk (a file system of a few kB, where it can be had) with nothing left."""
    scene = SimpleNamespace(platform="linux", state=str(bed.home), status=SimpleNamespace(logs=None), environ={})
    assert list(machine.clock(scene)) == []
    monkeypatch.setattr(machine.time, "time", lambda: 1e9)
    (finding,) = machine.clock(scene)
    assert finding.severity == "problem" and finding.mend == "sudo timedatectl set-ntp true"
    monkeypatch.undo()
    if os.geteuid() == 0 and shutil.which("unshare"):
        words = [sys.executable, "-I", "-m", "llm_proxy", "doctor", "--json"]
        mount = f'mount -t tmpfs -o size=64k tmpfs {shlex.quote(str(bed.home))} && exec "$@"'
        done = subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", mount, "sh", *words],
            env=_shell(bed),
            capture_output=True,
            text=True,
            timeout=60,
        )
        if "unshare" not in done.stderr:
            checks = {check["name"]: check["findings"] for check in json.loads(done.stdout)["checks"]}
            assert checks["disk"][0]["severity"] == "problem" and "is full" in checks["disk"][0]["text"]


def test_a_daemon_that_does_not_answer(bed):
    """Stopped, it listens and says nothing: doctor still ends, and says how to start it anew."""
    daemon, _ = serving(bed)
    daemon.signal(signal.SIGSTOP)
    started = time.monotonic()
    severity, text, mend = the_one(examined(bed), "daemon")
    assert severity == "problem" and "does not answer" in text and time.monotonic() - started < 15
    assert mend == f"kill -9 {daemon.pid}; llm-proxy --setup"
    with contextlib.suppress(ProcessLookupError):
        daemon.signal(signal.SIGCONT)


LAUNCHCTL = """case $1 in
print) case " $LOADED " in *" ${2##*/} "*) exit 0 ;; esac; echo "Could not find service" >&2; exit 113 ;;
*) exit 64 ;;
esac"""


def test_macos_simulated(bed, monkeypatch):
    """A `launchctl` that answers as the real one: 113 for what is not loaded. Two services are a problem, one is none."""
    stub(bed.bin, "launchctl", LAUNCHCTL)
    environ = {"HOME": str(bed.home), "PATH": f"{bed.bin}:/usr/bin:/bin", "SHELL": "/bin/zsh"}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    receipt.Receipt(str(bed.state), autostart="launchd").save()
    for loaded, services, service in (
        ("", [], ["problem"]),
        (units.LABEL, [], []),
        (f"{units.LABEL} {units.BREW_LABEL}", ["brew services stop llm-proxy"], []),
    ):
        monkeypatch.setenv("LOADED", loaded)
        found = {result.name: result.findings for result in doctor.examine(environ, online=False, platform="darwin")}
        assert [finding.mend for finding in found["services"]] == services
        assert [finding.severity for finding in found["service"]] == service
    stub(bed.bin, "launchctl", "exit 64")
    assert doctor.exit_status(doctor.examine(environ, online=False, platform="darwin")) == 1


def _shell(bed):
    return {"HOME": str(bed.home), "PATH": f"{bed.bin}:{os.environ['PATH']}"}
