"""What llm-proxy costs a new shell and each prompt, as scripts/install.sh leaves it in a new home."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import psutil

from bench_suite.contestants import PATIENCE, ROOT
from bench_suite.table import Row

# How each shell prints the time in seconds.
_CLOCKS = {"bash": "echo $EPOCHREALTIME", "zsh": "zmodload zsh/datetime; echo $EPOCHREALTIME", "fish": "date +%s.%N"}
_RC_FILES = (".bashrc", ".profile", ".zshrc", ".config/fish/config.fish")
_INSTALLERS = ("PIP_", "UV_", "SSL_", "REQUESTS_")  # how this machine reaches packages


def rows(*, quick: bool) -> list[Row]:
    runs = 15 if quick else 101
    with TemporaryDirectory(prefix="llm-proxy-bench-") as name:
        home = Path(name)
        environ = {"HOME": name, "PATH": os.environ["PATH"]}
        plain = environ | {"HOME": f"{name}/plain"}
        for file in _RC_FILES:
            for place in (home / file, home / "plain" / file):
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text("# mine\n")
        installers = {key: value for key, value in os.environ.items() if key.startswith(_INSTALLERS)}
        subprocess.run(
            ["sh", ROOT / "scripts/install.sh"],
            env=environ | installers | {"PYTHON": sys.executable},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        launcher = home / ".local/bin/llm-proxy"
        shells = [shell for shell in _CLOCKS if shutil.which(shell)]
        status = subprocess.run([launcher, "--status", "--json"], env=environ, capture_output=True, check=True)
        daemon = psutil.Process(int(json.loads(status.stdout)["pid"]))
        try:
            alive = _p50(launcher, environ, runs, says=True)
            hooked = _p50(launcher, environ, runs, "--shell", "bash", says=True)
            prompts = {shell: _prompt(shell, environ, runs * 10) for shell in shells}
            new = [_new_shell(shell, "alive", plain, environ, runs) for shell in shells]
            run = home / ".local/state/llm-proxy/run"
            statement = run.read_text()
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(PATIENCE)
        run.touch(0o600)
        run.write_text(statement)  # as a kill would leave it
        dead = _p50(launcher, environ, runs, says=False)
        _forget_autostart(home)
        new += [_new_shell(shell, "dead", plain, environ, runs) for shell in shells]
    return [
        Row("--env, daemon alive, p50", {"ours": f"{alive:.1f} ms"}, alive),
        Row("--env, daemon dead, p50", {"ours": f"{dead:.1f} ms"}, dead),
        Row("--env --shell bash, daemon alive, p50", {"ours": f"{hooked:.1f} ms"}),
        *(Row(f"prompt hook, {shell}, mean", {"ours": f"{mean:.2f} ms"}, mean) for shell, mean in prompts.items()),
        *new,
    ]


def _new_shell(shell: str, daemon: str, plain: dict[str, str], environ: dict[str, str], runs: int) -> Row:
    """What our lines add to a shell that opens, in turn with one in a home without them."""
    pairs = [(_opened(shell, plain, says=False), _opened(shell, environ, says=daemon == "alive")) for _ in range(runs)]
    without = median(one for one, _ in pairs)
    added = median(other for _, other in pairs) - without
    cells = {"direct": f"{without:.1f} ms", "ours": f"{added:+.1f} ms"}
    return Row(f"a new {shell}, daemon {daemon}, added p50", cells, added)


def _opened(shell: str, environ: dict[str, str], *, says: bool) -> float:
    """Milliseconds from start to end of an interactive shell that reads the user's files. Raises AssertionError where
    its environment is not what it must be."""
    begun = time.perf_counter()
    done = subprocess.run(
        [shell, "-i", "-c", "echo $ANTHROPIC_BASE_URL"],
        env=environ | {"TERM": "dumb"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        check=True,
    )
    taken = (time.perf_counter() - begun) * 1000
    assert (b"127.0.0.1" in done.stdout) is says, done.stdout
    return taken


def _forget_autostart(home: Path) -> None:
    """New shells no longer start the daemon."""
    receipt = home / ".local/state/llm-proxy/setup.json"
    receipt.write_text(receipt.read_text().replace('"autostart": "shell"', '"autostart": ""'))


def _prompt(shell: str, environ: dict[str, str], runs: int) -> float:
    """Milliseconds of the hook at a prompt where nothing has changed."""
    load = "llm-proxy --env --shell fish | source" if shell == "fish" else f'eval "$(llm-proxy --env --shell {shell})"'
    loop = (
        f"for i in (seq {runs}); _llm_proxy_prompt; end"
        if shell == "fish"
        else f'for i in $(seq {runs}); do _llm_proxy_prompt "$_"; done'
    )
    script = f"{load}\n{_CLOCKS[shell]}\n{loop}\n{_CLOCKS[shell]}\necho $ANTHROPIC_BASE_URL"
    path = f"{environ['HOME']}/.local/bin:{environ['PATH']}"
    command = [shell, "-c", script]
    done = subprocess.run(command, env=environ | {"PATH": path}, capture_output=True, check=True, text=True)
    begun, ended, url = done.stdout.split()
    assert "127.0.0.1" in url
    return (float(ended) - float(begun)) * 1000 / runs


def _p50(launcher: Path, environ: dict[str, str], runs: int, *words: str, says: bool) -> float:
    """Milliseconds from start to end of one command. Raises AssertionError where it does not say what it must."""
    times = []
    for _ in range(runs):
        begun = time.perf_counter()
        done = subprocess.run([launcher, "--env", *words], env=environ, stdout=subprocess.PIPE, check=True)
        times.append((time.perf_counter() - begun) * 1000)
        assert (b"ANTHROPIC_BASE_URL" in done.stdout) is says, done.stdout
    return median(times)
