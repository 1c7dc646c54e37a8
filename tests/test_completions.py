"""Completions: the committed files are those the grammar makes, and bash, zsh and fish complete by them as they should.

bash and zsh are driven by a person's keys under a pty; fish answers `complete -C`, which is what its Tab shows.
"""

import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

from llm_proxy.cli import completions, grammar
from tests.shellbed import PATIENCE, program

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "packaging/completions"
FILES = runpy.run_path(str(ROOT / "scripts/completions"))["FILES"]
BASH_COMPLETION = Path("/usr/share/bash-completion/bash_completion")

# What is typed, what must be offered, and what must not. One word that is offered is completed.
TYPED = {
    "a flag": ("llm-proxy --st", {"--status"}, {"--setup"}),
    "a command": ("llm-proxy sess", {"sessions"}, {"search"}),
    "commands": ("llm-proxy re", {"reindex", "reprice", "retention"}, {"run"}),
    "clients": ("llm-proxy attach ", set(grammar.CLIENTS), {"sessions"}),
    "one more client": ("llm-proxy detach codex aid", {"aider"}, {"codex"}),
    "formats": ("llm-proxy export --format ", set(grammar.FORMATS), {"--json"}),
    "a joined value": ("llm-proxy export --format=ha", {"har"}, {"csv"}),
    "options of a command": ("llm-proxy view --r", {"--raw", "--recordings"}, {"--format"}),
    "a flag that is also an option": ("llm-proxy stats --status ", {"5xx", "none"}, {"--json"}),
    "what goes with a flag": ("llm-proxy --setup --no", {"--no-shell"}, {"--purge"}),
    "options of a bare run": ("llm-proxy --port 80 --ho", {"--host"}, {"--status"}),
    "options of a target": ("llm-proxy -t http://a -l x.csv --csv-", {"--csv-header", "--csv-defuse"}, {"--config"}),
    "a second word": ("llm-proxy prices ", {"show", "update", "import"}, {"prices", "other.jsonl"}),
    "help": ("llm-proxy help setup", {"setup", "setup-shell"}, {"--setup"}),
    "files": ("llm-proxy import o", {"old logs.jsonl", "other.jsonl"}, {"codex"}),
    "a file with a space": ("llm-proxy scan old", {"old logs.jsonl"}, {"other.jsonl"}),
    "folders": ("llm-proxy tail --log-dir o", {"our-folder"}, {"other.jsonl"}),
    "a command line": ("llm-proxy run -- seq", {"seq"}, {"sessions"}),
    "nothing to offer": ("llm-proxy stats --model ", set(), {"other.jsonl", "--json"}),
}


@pytest.mark.parametrize("shell", FILES)
def test_the_committed_files_are_those_of_the_grammar(shell, command):
    """scripts/completions makes them, and the command prints the same for who installs by script."""
    made = completions.script(shell)
    assert (FOLDER / FILES[shell]).read_text() == made, "run scripts/completions"
    assert command("completions", shell).stdout == made


@pytest.mark.parametrize("shell", FILES)
def test_every_option_and_command_is_in_it(shell):
    """Of a command that is added to the grammar nothing is forgotten."""
    script = completions.script(shell)
    for one in grammar.COMMANDS:
        words = [one.word.removeprefix("--"), *(option.name.removeprefix("--") for option in one.options)]
        assert [word for word in words if word not in script] == []


def test_other_shells_are_refused(command):
    """By name, with those that there are."""
    done = command("completions", "tcsh")
    assert (done.returncode, done.stderr) == (2, "llm-proxy: completions are made for bash, zsh, fish, got 'tcsh'\n")


@pytest.fixture
def place(tmp_path):
    """A folder with files of names that a shell must quote, and something of every kind."""
    for name in ("old logs.jsonl", "other.jsonl"):
        (tmp_path / name).touch()
    (tmp_path / "our-folder").mkdir()
    return tmp_path


def environ(place):
    return {"PATH": os.environ["PATH"], "HOME": str(place), "TERM": "dumb", "LANG": "C.UTF-8", "INPUTRC": "/dev/null"}


class Keys:
    """A shell at its prompt, and somebody at the keyboard."""

    def __init__(self, place, arguments, lines):
        program(arguments[0])
        pty = pexpect.spawn(
            arguments[0],
            arguments[1:],
            env=environ(place),
            cwd=str(place),
            encoding="utf-8",
            timeout=PATIENCE,
            dimensions=(200, 200),
        )
        pty.delaybeforesend = None
        self.pty, self.done = pty, 0
        for line in lines:
            self.enter(line)

    def enter(self, line):
        """All that is shown until the line was carried out."""
        self.done += 1
        self.pty.send(f"{line}\recho D''ONE{self.done}.\r")
        self.pty.expect_exact(f"DONE{self.done}.")
        return self.pty.before

    def tab(self, line):
        """What is shown after Tab, twice; the line itself is thrown away."""
        self.enter("")
        self.pty.send(f"{line}\t\t\x15")
        shown = self.enter("")
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x07", "", shown)


def bash(place, *lines):
    return Keys(
        place,
        ["bash", "--norc", "--noprofile", "-i"],
        [
            "bind 'set enable-bracketed-paste off'; bind 'set completion-query-items 0'; bind 'set page-completions off'",
            "bind 'set bell-style none'; PS1='> '",
            *lines,
            f"source {shlex.quote(str(FOLDER / FILES['bash']))}",
        ],
    )


def zsh(place, *lines):
    return Keys(
        place,
        ["zsh", "-d", "-f", "-i"],
        [
            "PS1='> '; LISTMAX=10000; unsetopt prompt_sp prompt_cr beep",
            *lines,
        ],
    )


def fish_answers(place, line):
    done = subprocess.run(
        [program("fish"), "--no-config", "-c", f"source {FOLDER / FILES['fish']}; complete -C {shlex.quote(line)}"],
        env=environ(place),
        cwd=place,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stderr == ""
    return done.stdout


def judged(line, shown, wanted, unwanted):
    """Words that are offered stand by themselves, or complete what was typed."""
    words = set(re.split(r"[\s=]+", shown.replace("\\ ", "_").replace("'", "").replace("old logs", "old_logs")))
    words |= {word.rstrip("/") for word in words}
    wanted, unwanted = ({word.replace(" ", "_") for word in some} - set(line.split()) for some in (wanted, unwanted))
    assert wanted <= words, f"{line!r} shows {shown!r}"
    assert not unwanted & words, f"{line!r} shows {shown!r}"


@pytest.mark.parametrize("package", [False, True], ids=["alone", "with bash-completion"])
def test_bash(place, package):
    """With the package bash-completion and without it, as on macOS."""
    assert BASH_COMPLETION.exists() or not package, "bash-completion is missing: scripts/test.sh installs it"
    keys = bash(place, *([f"source {BASH_COMPLETION}"] if package else []))
    for line, wanted, unwanted in TYPED.values():
        judged(line, keys.tab(line), wanted, unwanted)


@pytest.mark.parametrize("way", ["fpath", "sourced"])
def test_zsh(place, way):
    """Found by compinit in a folder of fpath, as packages install it, or sourced."""
    ways = {
        "fpath": [f"fpath=({shlex.quote(str(FOLDER))} $fpath); autoload -Uz compinit && compinit -u -D"],
        "sourced": [f"autoload -Uz compinit && compinit -u -D; source {shlex.quote(str(FOLDER / FILES['zsh']))}"],
    }
    keys = zsh(place, *ways[way])
    for line, wanted, unwanted in TYPED.values():
        judged(line, keys.tab(line), wanted, unwanted)


@pytest.mark.parametrize("case", TYPED)
def test_fish(place, case):
    """`complete -C` says what Tab would show, with what each means."""
    line, wanted, unwanted = TYPED[case]
    answers = fish_answers(place, line)
    judged(line, "\n".join(answer.split("\t")[0] for answer in answers.splitlines()), wanted, unwanted)


def test_fish_says_what_each_means(place):
    """The sentence of the grammar stands beside the word."""
    assert "sessions\tconversations, the one used last first\n" in fish_answers(place, "llm-proxy sess")


def test_nothing_heavy_is_imported_for_them():
    """A shell's start may print them, and a person waits for help."""
    code = "import sys; from llm_proxy.cli import completions, usage; completions.script('zsh'); usage.page(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    heavy = {"aiohttp", "rich", "sqlite3", "msgspec", "asyncio", "llm_proxy.settings", "llm_proxy.service"}
    assert not heavy & set(done.stdout.split())
