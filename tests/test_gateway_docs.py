"""What the gateway's pages tell a reader to type works as it stands there, in one terminal and in their order.

Only the port is another, and the providers' hosts are the fake provider's, by the variables that the pages name.
Leaves out the blocks of `gateway-store.md`, which need a TokenTracer (`test_gateway_import`).
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.fakeprovider import FakeProvider
from tests.fakeprovider.answers import SENTENCE
from tests.gatewaybed import Gateway
from tests.teambed import eventually

ROOT = Path(__file__).parent.parent
PAGES = ("gateway", "gateway-accounts", "gateway-aliases", "gateway-providers")
START = "llm-proxy gateway --port 8080"
FOR_OTHERS = "llm-proxy gateway --host 0.0.0.0 --port 8080"
MARK = "=== block ==="
PROVIDERS_KEY = "sk-ant-of-the-team-0123456789"
# Anthropic's SDK and OpenAI's, as the exports lead them; a warning is an error.
CLIENTS = """\
import anthropic, openai
said = [{"role": "user", "content": "hello"}]
with anthropic.Anthropic(max_retries=0) as claude, openai.OpenAI(max_retries=0) as gpt:
    print(claude.messages.create(model="smart", max_tokens=9, messages=said).content[0].text)
    print(gpt.chat.completions.create(model="smart", messages=said).choices[0].message.content)
"""


def blocks(page: str) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", (ROOT / f"docs/{page}.md").read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture
def shell(environ: dict[str, str]) -> dict[str, str]:
    """The environment of a terminal that has `llm-proxy` on its PATH, and a provider's key."""
    launcher = Path(environ["HOME"], ".local/bin/llm-proxy")
    launcher.parent.mkdir(parents=True)
    launcher.write_text((ROOT / "packaging/launcher.sh").read_text().replace("@PYTHON@", sys.executable))
    launcher.chmod(0o755)
    return environ | {"PATH": f"{launcher.parent}:{environ['PATH']}", "ANTHROPIC_API_KEY": PROVIDERS_KEY}


async def test_the_pages_can_be_typed(start: Any, shell: dict[str, str], fake: FakeProvider, free_port: int) -> None:
    """Every block, one after the other, in one bash: each says what its page promises, nothing fails, no warning."""
    typed = [block for page in PAGES for block in blocks(page)]
    for command in (START, FOR_OTHERS):
        assert typed.count(f"{command}\n") == 1
        typed.remove(f"{command}\n")
    script = "\n".join(f"{block}\necho; echo {MARK!r}" for block in typed).replace(":8080", f":{free_port}")
    script += f"\n{sys.executable} -W error -c '{CLIENTS}'"
    bases = {f"{name}_BASE_URL": fake.url for name in ("ANTHROPIC", "OPENAI")}
    gateway = Gateway(start(*START.replace("8080", str(free_port)).split()[1:], env=bases))
    assert gateway.port == free_port  # it has said where it is; its process may still be starting
    done = await asyncio.to_thread(run, script, shell)
    assert (done.returncode, done.stderr) == (0, ""), done
    told = [part.strip() for part in done.stdout.split(MARK)]
    words = "".join(SENTENCE)
    (signed_up, alias, called, invitation, ada, key, chained, kept, rotated, clients) = told
    assert json.loads(signed_up) == {"message": "User created"}
    assert json.loads(alias)["alias"] == "smart"
    assert json.loads(called)["choices"][0]["message"]["content"] == words
    assert invitation.startswith("llmi_")
    message, _, adas = ada.partition("}")
    assert message == '{"message":"User created"' and json.loads(adas)["scopes"] == ["models"]
    assert json.loads(key)["scopes"] == ["models", "usage"]
    assert [step["model"] for step in json.loads(chained)["chain"]] == ["gpt-5"]
    assert json.loads(kept)["tested_at"] and json.loads(kept)["readable"]
    assert rotated.startswith("provider keys encrypted with the new key: 3 now, 0 before")
    assert clients.count(words.strip()) == 2
    paid = [request.header("x-api-key") for request in fake.requests if request.target == "/v1/messages"]
    assert paid == [PROVIDERS_KEY] * 3


def run(script: str, shell: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", f"set -eu\n{script}"], env=shell, capture_output=True, text=True, timeout=60)


def test_a_field_that_is_not_there_is_shown(shell: dict[str, str]) -> None:
    """`field` hides no error: what has not what was asked for goes to the terminal."""
    defined = next(line for line in blocks("gateway")[1].splitlines() if line.startswith("field()"))
    done = run(f"""{defined}\nprintf '{{"error":{{"code":"x"}}}}' | field token""", shell)
    assert (done.stdout, done.stderr.strip()) == ("", '{"error":{"code":"x"}}')


def test_other_machines_reach_it(start: Any, shell: dict[str, str], free_port: int) -> None:
    """The line for a team is taken, and only who is invited may sign up behind the first."""
    gateway = Gateway(start(*FOR_OTHERS.replace("8080", str(free_port)).split()[1:])).wait()
    assert gateway.daemon.wait_for_line("who is invited may sign up")
    assert gateway.admin
    refused = gateway.ask("POST", "/auth/signup", {"email": "eve@example.com", "password": "a long and private one"})
    assert (refused.status, refused.code) == (403, "invitation_needed")
    told = {"email": "ada@example.com", "password": "a long and private one"}
    told["invitation"] = gateway.want(201, "POST", "/manage/invitations", {}, gateway.admin)["token"]
    gateway.want(201, "POST", "/auth/signup", told)
    again = gateway.ask("POST", "/auth/signup", told)
    assert (again.status, again.code) == (403, "invalid_invitation")


def test_another_encryption_key_serves_nothing_and_says_why(start: Any, shell: dict[str, str], free_port: int) -> None:
    """503 to every request; the terminal, the log and `check` tell."""
    arguments = START.replace("8080", str(free_port)).split()[1:]
    gateway = Gateway(start(*arguments)).wait()
    gateway.daemon.signal(signal.SIGINT)
    assert gateway.daemon.wait() == 0
    other = Gateway(start(*arguments, env={"ENCRYPTION_KEY": "another one"}))
    assert other.port == free_port and other.daemon.wait_for_line("written with another encryption key")
    with ThreadPoolExecutor(1) as pool:  # who asks waits a while, for it might be starting
        asked = pool.submit(other.ask, "GET", "/v1/models")
        check = run("llm-proxy gateway check || true", shell | {"ENCRYPTION_KEY": "another one"})
    assert asked.result().status == 503
    # Each of its tries begins the log anew.
    eventually(lambda: "written with another encryption key" in other.log.read_text(), 30)
    assert "written with another encryption key" in check.stdout
