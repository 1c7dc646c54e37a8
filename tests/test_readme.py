"""What the README tells a reader to type works as it stands there; only upstream hosts are replaced by the fake provider."""

from __future__ import annotations

import ast
import asyncio
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llm_proxy.service import environment
from tests.fakeprovider import FakeProvider
from tests.fakeprovider.answers import SENTENCE

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def block(language: str, words: str) -> str:
    """The code block of that language which contains `words`."""
    found = [text for text in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if words in text]
    assert len(found) == 1, words
    return str(found[0])


@pytest.fixture
def shell(environ: dict[str, str]) -> dict[str, str]:
    """The environment of a shell that has `llm-proxy` on its PATH, put there as the installer does."""
    launcher = Path(environ["HOME"], ".local/bin/llm-proxy")
    launcher.parent.mkdir(parents=True)
    launcher.write_text((ROOT / "packaging/launcher.sh").read_text().replace("@PYTHON@", sys.executable))
    launcher.chmod(0o755)
    return environ | {"PATH": f"{launcher.parent}:{environ['PATH']}"}


def run(shell: dict[str, str], name: str, text: str) -> str:
    done = subprocess.run([name, "-c", text], env=shell, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("name", ["sh", "bash", "zsh", "fish"])
def test_the_line_for_the_shell(start: Any, shell: dict[str, str], name: str) -> None:
    """With the daemon it sets the four variables, without it nothing; it never fails."""
    if not shutil.which(name):
        pytest.fail(f"{name} is missing; scripts/test.sh installs it")
    line = block("sh", "eval")
    if name == "fish":
        found = re.search(r"In fish: `(.*?)`", README)
        assert found
        line = found[1]
    show = line + "\n" + "\n".join(f'echo "${variable}"' for variable in environment.VARIABLES)
    assert run(shell, name, show).split() == []
    daemon = start("--service")
    assert daemon.wait_for_line("session logs")
    assert run(shell, name, show).split() == [f"{daemon.url}{path}" for path in environment.VARIABLES.values()]


async def test_the_python_example(daemon: Any, fake: FakeProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its clients get their answers through the daemon, and the record is where the README says."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    text = block("python", "Anthropic(").replace(":PORT", f":{daemon.port}")
    text, count = re.subn(r"api\.(anthropic|openai)\.com", f"127.0.0.1:{fake.port}", text)
    assert count == 2
    names: dict[str, Any] = {}
    tree = ast.parse(text)
    exec(
        compile(ast.Module([node for node in tree.body if isinstance(node, ast.ImportFrom)], []), "README", "exec"),
        names,
    )
    claude, gpt = (eval(ast.unparse(node), names) for node in tree.body if isinstance(node, ast.Expr))
    said = [{"role": "user", "content": "hi"}]
    with claude, gpt:
        message = await asyncio.to_thread(claude.messages.create, model="m", max_tokens=9, messages=said)
        assert message.content[0].text == "".join(SENTENCE)
        response = await asyncio.to_thread(gpt.responses.create, model="m", input="hi")
        assert response.output_text == "".join(SENTENCE)
    entries = await asyncio.to_thread(
        daemon.entries, 20, lambda entries: sum(entry["type"] == "response" for entry in entries) == 2
    )
    assert {entry["path"] for entry in entries if entry["type"] == "request"} == {"/v1/messages", "/v1/responses"}
    listed = run({"HOME": str(daemon.home), "PATH": "/usr/bin:/bin"}, "sh", block("sh", "tail"))
    assert [json.loads(line)["type"] for line in listed.splitlines()] == ["response"] * 2


def test_the_line_for_codex_is_the_url_we_publish() -> None:
    """Codex reads no variable; what its user writes by hand is what the variable would say."""
    assert f'openai_base_url = "http://127.0.0.1:PORT{environment.VARIABLES["OPENAI_BASE_URL"]}"' in README


def test_removing_it_leaves_nothing_but_the_logs(start: Any, shell: dict[str, str]) -> None:
    """The daemon has ended when the commands have; its files are gone, the record is not."""
    daemon = start("--service")
    daemon.wait_for_recording()
    daemon.logs.mkdir(exist_ok=True)
    run(shell, "sh", block("sh", "stop the daemon"))
    assert daemon.wait() == 0
    assert not daemon.state.exists() and not Path(shell["HOME"], ".local/bin/llm-proxy").exists()
    assert daemon.logs.is_dir()
