"""`--env`: right exports in every shell, nothing on any doubt, never an error, never a wait."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_proxy.service import environment, state

INSTANCE = "0123456789abcdef0123456789abcdef"
VARIABLES = ("ANTHROPIC_BASE_URL", "OPENAI_BASE_URL", "OPENAI_API_BASE", "GOOGLE_GEMINI_BASE_URL")
WIDE = 5.0  # the promise is 0.3 s; this catches a wait for something


@pytest.fixture
def home(tmp_path):
    state.prepare(str(tmp_path / ".local/state/llm-proxy"))
    return tmp_path


@pytest.fixture
def alive(home):
    """This test process plays the daemon: it listens, and the state file says so."""
    with socket.create_server(("127.0.0.1", 0)) as link:
        run = state.this_run(link.getsockname()[1], INSTANCE)
        _state(home, run.line())
        yield run


def _state(home, line):
    state.write(str(home / ".local/state/llm-proxy"), "run", line)


def _env(home, *arguments, **variables):
    """Run the command; its output. It must exit 0, keep stderr empty and be quick."""
    environ = {"HOME": str(home), "PATH": os.environ["PATH"], **variables}
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-I", "-m", "llm_proxy", "--env", *arguments], env=environ, capture_output=True, timeout=10
    )
    assert time.monotonic() - start < WIDE
    assert done.returncode == 0 and done.stderr == b""
    return done.stdout.decode()


def test_a_live_daemon_is_exported(home, alive):
    """The four variables, on 127.0.0.1, OpenAI's with /v1, as plain quoted export lines."""
    base = f"http://127.0.0.1:{alive.port}"
    assert _env(home).splitlines() == [
        f"export ANTHROPIC_BASE_URL='{base}/anthropic/api.anthropic.com'",
        f"export OPENAI_BASE_URL='{base}/openai/api.openai.com/v1'",
        f"export OPENAI_API_BASE='{base}/openai/api.openai.com/v1'",
        f"export GOOGLE_GEMINI_BASE_URL='{base}/gemini/generativelanguage.googleapis.com'",
    ]


def test_bedrock_is_asked_for_alone(home, alive):
    """--bedrock gives Claude Code's three variables; without it none of them is ever given."""
    bedrock = (
        "export CLAUDE_CODE_USE_BEDROCK='1'\n"
        f"export ANTHROPIC_BEDROCK_BASE_URL='http://127.0.0.1:{alive.port}'\n"
        "export CLAUDE_CODE_SKIP_BEDROCK_AUTH='1'\n"
    )
    assert _env(home, "--bedrock") == bedrock
    assert "BEDROCK" not in _env(home) + _env(home, "--shell", "bash")
    assert _env(home, "--bedrock", "--shell", "fish").startswith("set -gx CLAUDE_CODE_USE_BEDROCK '1'\n")
    moved = f"http://127.0.0.1:{alive.port + 1}"
    assert _env(home, "--bedrock", ANTHROPIC_BEDROCK_BASE_URL=moved) == bedrock
    for theirs in ("https://gateway.example", "http://127.0.0.1:99/path", "http://localhost:8080/x:1"):
        assert _env(home, "--bedrock", ANTHROPIC_BEDROCK_BASE_URL=theirs) == ""
        assert _env(home, "--bedrock", "--unset", ANTHROPIC_BEDROCK_BASE_URL=theirs) == ""


def test_bedrock_is_not_switched_on_where_nothing_would_be_signed(start, environ):
    """A daemon without a region: no line, and words for the person."""
    plain = start("--service")
    assert plain.port
    command = [sys.executable, "-I", "-m", "llm_proxy", "--env", "--bedrock"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=10)
    assert (done.returncode, done.stdout) == (0, "")
    assert "bedrock.region" in done.stderr
    plain.stop()
    signing = start("--service", env={"BEDROCK_REGION": "us-west-2"})
    assert signing.port
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=10)
    assert f"export ANTHROPIC_BEDROCK_BASE_URL='http://127.0.0.1:{signing.port}'" in done.stdout
    assert done.stderr == ""


def test_bedrock_is_undone(home, alive):
    """--unset, and --shell where no daemon is: all three go, if the base URL is ours."""
    ours = {"ANTHROPIC_BEDROCK_BASE_URL": f"http://127.0.0.1:{alive.port}"}
    names = ("CLAUDE_CODE_USE_BEDROCK", "ANTHROPIC_BEDROCK_BASE_URL", "CLAUDE_CODE_SKIP_BEDROCK_AUTH")
    lines = "".join(f"unset {name}\n" for name in names)
    assert _env(home, "--bedrock", "--unset", **ours) == lines
    assert _env(home, "--bedrock", "--unset") == ""
    _state(home, "gone")
    assert _env(home, "--bedrock", "--shell", "bash", **ours) == lines
    assert _env(home, "--bedrock", **ours) == "" == _env(home, "--bedrock", "--shell", "bash")


@pytest.mark.parametrize("shell", ["sh", "dash", "bash", "zsh", "fish"])
def test_real_shells_take_it(home, alive, shell):
    """Each shell evaluates the lines and hands the variables to its children; --unset takes them away again."""
    program = shutil.which(shell)
    assert program, f"{shell} is missing: scripts/test.sh installs it"
    command = f"{sys.executable} -I -m llm_proxy --env"
    form = "" if shell in ("sh", "dash") else f" --shell {shell}"
    show = f'{sys.executable} -c "import json, os; print(json.dumps(dict(os.environ)))"'
    if shell == "fish":
        script = f"{command}{form} | source; {show}; {command}{form} --unset | source; {show}"
    else:
        script = f'eval "$({command}{form})"; {show}; eval "$({command}{form} --unset)"; {show}'
    environ = {"HOME": str(home), "PATH": os.environ["PATH"]}
    done = subprocess.run([program, "-c", script], env=environ, capture_output=True, timeout=30, check=True)
    assert done.stderr == b""
    during, after = (json.loads(line) for line in done.stdout.splitlines())
    for name in VARIABLES:
        assert during[name] == environment.base_url(name, alive.port)
        assert name not in after


def test_the_users_own_value_stays(home, alive):
    """A variable that points elsewhere is not printed, nor unset; one of ours with an old port is renewed."""
    text = _env(
        home,
        ANTHROPIC_BASE_URL="https://gateway.example",
        OPENAI_BASE_URL="http://127.0.0.1:1/openai/api.openai.com/v1",
        OPENAI_API_BASE="http://localhost:4000",
    )
    assert "ANTHROPIC_BASE_URL" not in text and "OPENAI_API_BASE" not in text
    assert f"OPENAI_BASE_URL='http://127.0.0.1:{alive.port}/" in text
    assert _env(home, "--unset", ANTHROPIC_BASE_URL="https://gateway.example") == ""


def test_it_can_be_switched_off(home, alive):
    """NO_LLM_PROXY=1 prints nothing."""
    assert _env(home, NO_LLM_PROXY="1") == ""


def test_wrong_usage_is_silent_too(home, alive):
    """Even an unknown shell must not put an error into somebody's start-up."""
    assert _env(home, "--shell", "tcsh") == "" and _env(home, "--shell") != ""


@pytest.mark.parametrize("closed", ["stdout", "full"])
def test_output_nobody_takes_is_no_error(home, alive, closed):
    """A reader that has gone, or a full disk behind the redirection."""
    out = os.open("/dev/full", os.O_WRONLY) if closed == "full" else os.pipe()[1]
    environ = {"HOME": str(home), "PATH": os.environ["PATH"]}
    command = [sys.executable, "-I", "-m", "llm_proxy", "--env"]
    done = subprocess.run(command, env=environ, stdout=out, stderr=subprocess.PIPE, timeout=10)
    os.close(out)
    assert done.returncode == 0 and done.stderr == b""


class TestNothing:
    """No state of the machine leaves a shell with a base URL at which nothing of ours listens."""

    def test_without_a_state_folder(self, tmp_path):
        """Nothing was ever started."""
        assert _env(tmp_path) == ""

    def test_without_a_home(self, tmp_path):
        """HOME relative or empty: no relative path is looked at."""
        folder = tmp_path / "x/.local/state/llm-proxy"
        state.prepare(str(folder))
        done = subprocess.run(
            [sys.executable, "-I", "-m", "llm_proxy", "--env"],
            env={"HOME": "x", "PATH": os.environ["PATH"]},
            cwd=tmp_path,
            capture_output=True,
            timeout=10,
        )
        assert (done.returncode, done.stderr) == (0, b"")

    def test_after_kill_9(self, home):
        """The file is left over, its process is gone."""
        code = (
            "import socket; from llm_proxy.service import state\n"
            "s = socket.create_server(('127.0.0.1', 0))\n"
            f"print(state.this_run(s.getsockname()[1], '{INSTANCE}').line(), end='', flush=True); input()"
        )
        daemon = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        _state(home, daemon.stdout.readline().decode())
        assert _env(home) != ""
        daemon.kill()
        daemon.communicate()
        assert _env(home) == ""

    def test_when_the_pid_is_somebody_elses_now(self, home, alive):
        """Same pid, other start time."""
        alive.ticks += 1
        _state(home, alive.line())
        assert _env(home) == ""

    def test_when_the_port_has_a_silent_new_owner(self, home):
        """Something listens there and never answers: nothing is printed, and quickly."""
        with socket.create_server(("127.0.0.1", 0)) as link:
            run = state.this_run(link.getsockname()[1], INSTANCE)
            run.pid, run.ticks = os.getppid(), state._process(os.getppid(), "/proc")[1]
            _state(home, run.line())
            assert _env(home) == ""

    def test_when_it_moved_out_of_our_network(self, home, alive):
        """The process lives, but the port is not among its sockets."""
        alive.port = 1
        _state(home, alive.line())
        assert _env(home) == ""

    @pytest.mark.parametrize("where", ["run", "."])
    def test_when_others_could_have_written_it(self, home, alive, where):
        """A file open to others; a link in its place."""
        path = home / ".local/state/llm-proxy/run"
        if where == "run":
            path.chmod(0o666)
        else:
            path.rename(home / "run")
            path.symlink_to(home / "run")
        assert _env(home) == ""


@settings(max_examples=300)
@given(st.one_of(st.binary(max_size=300), st.text("01 $();`'\"\n-ab", max_size=120).map(str.encode)))
def test_no_state_bytes_reach_a_shell(tmp_path_factory, raw):
    """Whatever stands in the file: plain export lines or nothing."""
    home = tmp_path_factory.mktemp("home")
    folder = home / ".local/state/llm-proxy"
    state.prepare(str(folder))
    fd = os.open(folder / "run", os.O_CREAT | os.O_WRONLY, 0o600)
    os.write(fd, raw)
    os.close(fd)
    before = os.environ["HOME"]
    os.environ["HOME"] = str(home)
    try:
        text = environment._answer([], {})
    finally:
        os.environ["HOME"] = before
    assert re.fullmatch(r"(export [A-Z_]+='[^']*'\n)*", text)
    shutil.rmtree(home)


def test_it_imports_nothing_that_costs(home, alive):
    """Every new shell waits for it: none of the modules that take milliseconds are loaded."""
    code = (
        "import sys; sys.argv = ['llm-proxy', '--env']\n"
        "from llm_proxy.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "print(*sorted(sys.modules), file=sys.stderr)"
    )
    environ = {"HOME": str(home), "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-I", "-c", code], env=environ, capture_output=True, check=True, timeout=30)
    assert done.stdout.startswith(b"export ")
    bare = subprocess.run(
        [sys.executable, "-I", "-c", "import sys; print(*sys.modules)"], capture_output=True, check=True, timeout=30
    )
    added = set(done.stderr.decode().split()) - set(bare.stdout.decode().split())
    assert {name for name in added if not name.startswith("llm_proxy")} <= {"__future__"}
    assert not added & {"llm_proxy.settings", "llm_proxy.service.daemon", "llm_proxy.cli.commands"}
