"""Help, man page and the list in docs/commands.md say what the command line does, and read well."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

from llm_proxy import __version__, settings
from llm_proxy.cli import commands, grammar, options, usage
from llm_proxy.errors import UsageError
from llm_proxy.formats import dataset
from llm_proxy.service import clients
from tests.shellbed import program

ROOT = Path(__file__).parent.parent
MANUAL = runpy.run_path(str(ROOT / "scripts/manual"))
PAGE = ROOT / "packaging/llm-proxy.1"
OWN = {command.word for command in grammar.COMMANDS if command.name and not command.flag}


def test_the_grammar_has_the_words_that_are_commands():
    """Neither a command without a description nor a description without a command."""
    assert set(commands.WORDS) == OWN
    assert {f"--{name.replace('_', '-')}" for name in commands.COMMANDS} - {"--serve"} == {
        command.name for command in grammar.COMMANDS if command.flag
    } - {"--env", "--target-url"}


def test_what_it_lists_is_what_there_is():
    """Clients, styles and settings are known elsewhere; help must not wait for that."""
    assert set(grammar.CLIENTS) == set(clients.CLIENTS)
    assert set(grammar.STYLES) == set(dataset.STYLES)
    names = {row.name for row in settings.TABLE}
    assert {"port", "host", "log_dir", *options._TARGET.values()} <= names


def test_examples_can_be_read():
    """Every example's options are options of its command."""
    for command in grammar.COMMANDS:
        for example in command.examples:
            assert "llm-proxy" in example
            for option in re.findall(r"(?<=\s)--?[a-z][a-z-]*", example.partition("llm-proxy")[2].partition(" -- ")[0]):
                given = {name for one in grammar.forms(command.word) for row in one.options for name in row.names}
                given |= {name for row in command.options for name in row.names} | {command.name, "-role"}
                assert option in given, example


def test_the_page_of_help_is_one_screenful():
    """Under 40 lines of 80 columns; each row is one line; the words on it are commands."""
    lines = usage.page().splitlines()
    assert len(lines) < 40 and max(map(len, lines)) <= 80
    rows = sum(map(len, grammar.PAGE.values())) + len(grammar.EXAMPLES)
    assert sum(line.startswith("  ") for line in lines) == rows


@pytest.mark.parametrize("command", grammar.COMMANDS, ids=lambda command: command.name or "bare")
def test_every_help_is_made_alike(command):
    """Usage, a sentence, what it takes, examples: nothing wider than a terminal but an example."""
    told = usage.about([command.word or "--port"])
    assert f"Usage  {usage.usage(command)}\n\n{usage.sentence(command.says)[:30]}" in told
    for option in command.options:
        assert f"  {usage.spelled(option)}" in told
    assert all(len(line) <= 80 or line.startswith("  llm-proxy") for line in told.splitlines())


@pytest.mark.parametrize("word", sorted(OWN))
def test_help_of_a_word(command, word):
    """After the word, before it, with either spelling: the same, and nothing is done."""
    for arguments in ((word, "--help"), ("-help", word)):
        shown = command(*arguments)
        assert (shown.returncode, shown.stderr, shown.stdout) == (0, "", usage.about([word]))


def test_help_of_a_flag(command):
    """Wherever it stands beside a flag, nothing is done but telling what the flag does."""
    told = usage.about(["--setup"])
    for arguments in (["--setup", "--help"], ["--setup", "--dry-run", "-h"], ["-setup", "-help"], ["help", "setup"]):
        assert command(*arguments).stdout == told
    assert command("help", "all").stdout == usage.about(["all"])
    assert command("help").stdout == command("--help").stdout == usage.page()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sesions"], "there is no command 'sesions'; did you mean sessions?"),
        (["status"], "there is no command 'status'; did you mean --status?"),
        (["--stauts"], "there is no option '--stauts'; did you mean --status?"),
        (["-target-ulr=http://a"], "there is no option '--target-ulr'; did you mean --target-url?"),
        (["view", "--rwa"], "view: there is no option '--rwa'; did you mean --raw?"),
        (["zzzz"], "there is no command 'zzzz'; llm-proxy --help shows what there is"),
        (["\x1b[31m"], "there is no command '\\x1b[31m'; llm-proxy --help shows what there is"),
        (
            ["doctor", "me"],
            "doctor: there is nothing to be done with 'me'; llm-proxy doctor --help shows what there is",
        ),
        (["help", "exprot"], "there is no command 'exprot'; did you mean export?"),
        (
            ["tail", "-n", "x"],
            "tail: argument -n/--lines: invalid number value: 'x'; llm-proxy tail --help shows what there is",
        ),
    ],
)
def test_what_is_misspelt_is_one_line(command, arguments, said):
    """With what comes nearest, exit status 2, and nothing of the terminal's control characters."""
    done = command(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"llm-proxy: {said}\n")


def test_words_behind_two_dashes_are_words():
    """A search for what begins with a dash."""
    assert usage.parse("search", ["--", "-foo", "--bar"]).words == ["-foo", "--bar"]
    assert usage.parse("tail", ["-n5", "-provider", "openai"]).lines == 5
    with pytest.raises(UsageError):
        usage.parse("search", ["-foo"])


@pytest.mark.parametrize(("changes", "bold"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_titles_are_bold_where_a_person_looks(environ, changes, bold):
    """On a terminal, unless it says that it is a plain one or NO_COLOR is set; never into a pipe."""
    run = pexpect.run(
        f"{sys.executable} -I -m llm_proxy --help", env=environ | {"TERM": "xterm"} | changes, encoding="utf-8"
    )
    assert ("\x1b[1mRun it\x1b[0m" in run) is bold and ("\x1b" in run) is bold
    assert re.sub(r"\x1b\[\d?m", "", run).replace("\r", "") == usage.page()
    assert "\x1b" not in usage.page()


# --- what is made of it


def test_the_man_page_is_that_of_the_grammar():
    """scripts/manual makes it."""
    assert PAGE.read_text() == MANUAL["man_page"](), "run scripts/manual"


def test_the_list_of_commands_is_that_of_the_grammar():
    """docs/commands.md ends with it, and tells more of each word above."""
    page = (ROOT / "docs/commands.md").read_text()
    assert MANUAL["with_list"](page) == page, "run scripts/manual"
    prose = page.partition("## Every command")[0]
    assert {word for word in OWN | set(grammar.BY_NAME) if not re.search(rf"(?<![\w-]){word}(?![\w-])", prose)} <= {
        "--setup-shell",
        "--unsetup-shell",
        "--announce-socket",
        "--service",
        "--explore",
        "--version",
    } | {name for name in grammar.BY_NAME if " " in name}


def checked(*arguments):
    done = subprocess.run([program(arguments[0]), *arguments[1:]], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_both_formatters_take_the_man_page():
    """mandoc and groff, with all their warnings."""
    checked("mandoc", "-Tlint", "-W", "warning", str(PAGE))
    checked("groff", "-ww", "-man", "-Tutf8", "-z", str(PAGE))


def test_the_man_page_shows_what_is_typed():
    """Dashes, quotes and backslashes can be copied from it; every command and option is there."""
    done = subprocess.run(
        [program("mandoc"), "-Tutf8", "-O", "width=1000", str(PAGE)],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    text = re.sub(r".\x08", "", done.stdout)
    for command in grammar.COMMANDS:
        assert usage.usage(command) in text
        for option in command.options:
            assert usage.spelled(option) in text
    assert 'eval "$(llm-proxy --env)"' in text and "'timeout project:ledger'" in text


# --- the project's own papers


def test_the_changelog_can_be_read_by_a_script():
    """Versions in falling order, each dated or said to be unreleased; this one is among them."""
    text = (ROOT / "CHANGELOG.md").read_text()
    first, *released = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert first == "[Unreleased]"
    found = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (Unreleased|\d{4}-\d\d-\d\d)", heading) for heading in released]
    assert all(found) and [match[2] == "Unreleased" for match in found[1:]] == [False] * len(found[1:])
    versions = [tuple(map(int, match[1].split("."))) for match in found]
    assert versions == sorted(versions, reverse=True) and tuple(map(int, __version__.split(".")[:3])) in versions


def test_what_a_source_release_must_have():
    """Packages take completions and man page from it, and a stranger the papers."""
    listed = re.search(
        r"\[tool\.hatch\.build\.targets\.sdist\]\s*include = \[([^]]*)\]", (ROOT / "pyproject.toml").read_text()
    )
    included = set(re.findall(r'"([^"]+)"', listed[1]))
    assert {"packaging", "docs", "scripts", "README.md", "LICENSE", "CHANGELOG.md"} <= included
    for name in (
        "packaging/llm-proxy.1",
        "packaging/completions/_llm-proxy",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "LICENSE",
    ):
        assert (ROOT / name).stat().st_size > 500
