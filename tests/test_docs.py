"""The documentation says what the program does: settings, options, variables."""

import ast
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

from llm_proxy import settings
from llm_proxy.cli import usage
from llm_proxy.service import environment
from tests.logpage import PAGE, untold

ROOT = Path(__file__).parent.parent
DOCS = (ROOT / "docs/settings.md").read_text()


def _section(name):
    found = re.search(rf"^### `{re.escape(name)}`\n\n(.*?)(?=^##|\Z)", DOCS, re.MULTILINE | re.DOTALL)
    assert found, f"docs/settings.md has no heading for {name}"
    return found[1]


def _shown(row):
    if isinstance(row.default, bool):
        return "true" if row.default else "false"
    if isinstance(row.default, tuple):
        return ", ".join(row.default) or "none"
    if row.rule.words.startswith("a size"):
        return settings.size_text(row.default)
    return f"{row.default:g}" if isinstance(row.default, float) else str(row.default)


@pytest.mark.parametrize("row", settings.TABLE, ids=lambda row: row.name)
def test_every_setting_is_documented_as_it_is(row):
    """Heading, sentence, default, rule and environment variable agree with the table."""
    section = _section(row.name)
    assert row.sentence in section
    assert f"Default: {_shown(row)}" in section
    assert f"Environment: `{row.env}`" in section
    assert row.rule.words in section


def test_no_setting_is_documented_that_does_not_exist():
    """A heading in that form is a setting."""
    assert re.findall(r"^### `(.+)`$", DOCS, re.MULTILINE) == [row.name for row in settings.TABLE]


def test_the_readme_names_the_two_commands_and_the_variables():
    """Whoever reads the first page can install, test and point a client at it."""
    readme = (ROOT / "README.md").read_text()
    for words in (
        "sh scripts/install.sh",
        "sh scripts/test.sh",
        "llm-proxy --env",
        "docs/settings.md",
        *environment.VARIABLES,
    ):
        assert words in readme, words


def test_help_names_what_the_quick_way_of_env_parses():
    """It reads its options itself, before anything else is imported."""
    parsed = set(re.findall(r'"(--[a-z-]+)"', (ROOT / "llm_proxy/service/environment.py").read_text()))
    assert {flag for flag in parsed if flag not in usage.about(["env"])} == {"--service"}  # which autostart passes on


def test_every_option_on_the_page_of_installation_exists():
    """Of the command or of install.sh; and the exit statuses are those that install.sh names."""
    page, script = (ROOT / "docs/install.md").read_text(), (ROOT / "scripts/install.sh").read_text()
    options = set(re.findall(r"`(?:llm-proxy )?(--[a-z-]+)", page)) | set(
        re.findall(r"llm-proxy[a-z -]* (--[a-z-]+)", page)
    )
    assert len(options) > 6 and {option for option in options if option not in usage.about(["all"]) + script} == set()
    said = re.search(r"^# Exit status: (.*?)\n\n", script, re.MULTILINE | re.DOTALL)
    assert said and re.findall(r"(\d) ", said[1]) == re.findall(r"(\d) ", page.partition("Exit status: ")[2])[:4]


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").glob("*.md")), ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(page):
    """Every relative link names a file that is there."""
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_examples_of_log_entries_show_documented_fields_only():
    """The page's own lines; that no other field is ever written is seen wherever tests read the log of real calls."""
    lines = [json.loads(line) for line in re.findall(r"^```json\n(.*)\n```$", PAGE, re.MULTILINE)]
    assert [line["type"] for line in lines] == ["session_start", "request", "response"]
    assert [untold(line) for line in lines] == [[], [], []]
    assert untold(lines[1] | {"answer": 42}) == ["request.answer"]


def _codes():
    """Every code of an error of ours, as the proxy's source has them: beside a status, or of a failed connection."""
    for path in (ROOT / "llm_proxy/proxy").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            given = [part.value if isinstance(part, ast.Constant) else None for part in node.args]
            if given and ast.unparse(node.func) == "DialFailed":
                yield given[0]
            for status, code in pairwise(given):
                if isinstance(status, int) and 400 <= status < 600 and isinstance(code, str):
                    yield code


def test_every_error_of_ours_can_be_looked_up():
    """The page that goes by what one sees has each code, and none that does not exist."""
    page = (ROOT / "docs/troubleshooting.md").read_text()
    table = re.search(r"^\| code \|.*?\n\n", page, re.MULTILINE | re.DOTALL)[0]
    told = {code for row in table.strip().splitlines()[2:] for code in re.findall(r"`([a-z0-9_]+)`", row.split("|")[1])}
    made = set(_codes()) | {"not_signed"}  # whose status comes from the path's grammar
    assert len(made) > 25 and told == made


def test_the_index_names_every_page():
    """docs/README.md leads to each page beside it."""
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages == set(re.findall(r"\]\(([a-z-]+\.md)\)", (ROOT / "docs/README.md").read_text()))


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")) + sorted((ROOT / "docs").glob("*.md")), ids=lambda p: p.name)
def test_links_within_pages_lead_to_headings(page):
    """What stands behind # is a heading of that page, as forges name them."""
    for file, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", page.read_text()):
        target = page.parent / file if file else page
        headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
        assert anchor in {_anchor(heading) for heading in headings}, f"{page.name}: {file}#{anchor}"


def _anchor(heading):
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
