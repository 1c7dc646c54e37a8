"""The runbook's commands work as they stand there, on a gateway with PostgreSQL and Redis; its alerts and log lines are real.

Leaves out Docker's lines, which are held against the set-up they are for.
"""

from __future__ import annotations

import ast
import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fakeprovider import FakeProvider
from tests.gatewaybed import Gateway
from tests.postgresbed import SERVER
from tests.redisbed import a_redis
from tests.test_gateway_whole import CHAT, HELLO, eventually

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/gateway-runbook.md").read_text()
PASSWORD = "correct horse battery"
SMART = HELLO | {"model": "smart"}


def sections() -> dict[str, list[str]]:
    """The page's headings, and the blocks of commands below each."""
    found = {}
    for part in PAGE.split("\n## ")[1:]:
        heading, _, text = part.partition("\n")
        found[heading] = re.findall(r"^ *```sh\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    return found


class Terminal:
    """One in which the page is typed, section by section: what it is told stays."""

    def __init__(self, environ: dict[str, str], port: int) -> None:
        self._environ, self._port = environ, port
        self._typed = "set -eu -o pipefail\n"
        self.left = sections()

    def section(self, heading: str, *blocks: int) -> str:
        """Type its blocks, all where none is named; what they say."""
        all = self.left[heading]
        script = "\n".join(all[number] for number in blocks or range(len(all)))
        self.left[heading] = [] if not blocks else ["" if n in blocks else one for n, one in enumerate(all)]
        return self.type(script)

    def type(self, script: str) -> str:
        kept = Path(self._environ["HOME"], "kept")
        script = script.replace(":8080", f":{self._port}")
        before = f". {kept}\n" if kept.exists() else ""
        after = f"\ndeclare -p GATEWAY JSON SESSION > {kept}; declare -f field >> {kept}\n"
        done = subprocess.run(
            ["bash", "-c", self._typed + before + script + after],
            cwd=self._environ["HOME"],
            env=self._environ,
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert done.returncode == 0 and '"error":' not in done.stdout, (script, done)
        return done.stdout

    @property
    def untyped(self) -> list[str]:
        return [block for blocks in self.left.values() for block in blocks if block]


@pytest.fixture
def shell(environ: dict[str, str]) -> dict[str, str]:
    launcher = Path(environ["HOME"], ".local/bin/llm-proxy")
    launcher.parent.mkdir(parents=True)
    launcher.write_text((ROOT / "packaging/launcher.sh").read_text().replace("@PYTHON@", sys.executable))
    launcher.chmod(0o755)
    return environ | {"PATH": f"{launcher.parent}:{environ['PATH']}", "OPENAI_API_KEY": "sk-other-0123456789"}


async def test_every_command_can_be_typed(
    start: Any, shell: dict[str, str], fake: FakeProvider, free_port: int, tmp_path: Path
) -> None:
    """Each section in its situation, and it is over afterwards."""
    database = await SERVER.create()
    try:
        with a_redis(tmp_path) as redis:
            env = {"DATABASE_URL": SERVER.url(database), "REDIS_URL": redis.url, "LLM_PROXY_GATEWAY_SIGNUP": "open"}
            env |= {f"{name}_BASE_URL": fake.url for name in ("ANTHROPIC", "OPENAI")}
            await asyncio.to_thread(_played, start, shell | env, env, fake, free_port)
    finally:
        await SERVER.drop(database)


def _played(start: Any, shell: dict[str, str], env: dict[str, str], fake: FakeProvider, port: int) -> None:
    def begin() -> Gateway:
        return Gateway(start("gateway", "--port", str(port), env=env)).wait()

    gateway = begin()
    for who in ("me", "ada"):
        gateway.want(201, "POST", "/auth/signup", {"email": f"{who}@example.com", "password": PASSWORD})
    gateway._admin = gateway.sign_in("me@example.com", PASSWORD)
    ada = gateway.sign_in("ada@example.com", PASSWORD)
    key = gateway.key(ada, name="leaked")
    provider = gateway.provider("anthropic", "", api_key="sk-ant-the-old-one-0123456789", shared=True)
    gateway.alias("smart", "claude-sonnet-4-5", provider, shared=True)
    terminal = Terminal(shell, port)

    told = terminal.section("First look")
    assert (
        '"status":"ready"' in told
        and "llm_proxy_gateway_store_up 1" in told
        and "the encryption key is the store's" in told
    )
    told = terminal.section("A provider's key has leaked")
    assert json.loads(told)["tested_at"]
    gateway.want(200, "POST", CHAT, SMART, key)
    assert fake.requests[-1].header("x-api-key") == "sk-ant-THE-NEW-ONE-0123456789"

    terminal.section("A user's key has leaked")
    assert gateway.ask("POST", CHAT, SMART, key).code == "revoked_key"
    other = gateway.key(ada)
    told = terminal.section("A provider is down")
    assert json.loads(told)["chain"][0]["model"] == "gpt-5"
    terminal.section("A budget is blown, or a limit refuses")
    (row,) = gateway.want(200, "GET", "/manage/limits", None, gateway.admin)
    assert (row["subject"], row["spend_month"]) == ("everybody", 500)

    full, backup, restore = range(3)
    told = terminal.section("The database is away", full, backup)
    assert "DELETE 0" in told and "VACUUM" in told
    gateway.want(200, "PATCH", "/manage/aliases/smart", {"target_model": "claude-of-after"}, gateway.admin)
    assert gateway.daemon.stop() == 0
    terminal.section("The database is away", restore)
    gateway = begin()
    gateway._admin = gateway.sign_in("me@example.com", PASSWORD)
    (alias,) = gateway.want(200, "GET", "/manage/aliases", None, gateway.admin)
    assert alias["target_model"] == "claude-sonnet-4-5"

    terminal.section("A process or a machine hangs")
    eventually(lambda: gateway.ask("POST", CHAT, SMART, other).status == 200, 30.0)
    assert "provider keys encrypted with the new key: 2 now, 0 before" in terminal.section("Rotate everything")
    gateway.want(200, "POST", CHAT, SMART, other)
    told = terminal.section("Somebody has left")
    assert '"active":false' in told and '"machine":' in told
    eventually(lambda: gateway.ask("POST", CHAT, SMART, other).status == 401, 10.0)
    assert '"status":"ready"' in terminal.section("Upgrade, and the way back")

    assert gateway.daemon.stop() == 0
    env["ENCRYPTION_KEY"] = shell["ENCRYPTION_KEY"] = "another one, after all copies were lost"
    refused = subprocess.run(["llm-proxy", "gateway", "check"], env=shell, capture_output=True, text=True, timeout=60)
    assert "the store was written with another encryption key" in refused.stdout
    assert "UPDATE 2" in terminal.section("The encryption key is lost or wrong")
    gateway = begin()
    gateway._admin = gateway.sign_in("me@example.com", PASSWORD)
    assert not gateway.want(200, "GET", "/manage/providers", None, gateway.admin)[0]["readable"]
    gateway.want(200, "PATCH", f"/manage/providers/{provider}", {"api_key": "sk-ant-anew-0123456789"}, gateway.admin)
    gateway.want(200, "POST", CHAT, SMART, gateway.key())
    assert terminal.untyped == []


# -- words


def texts() -> set[str]:
    """All texts of the gateway, of what stands before it and of what starts it."""
    found = set()
    for folder in ("gateway", "proxy", "service"):
        for path in (ROOT / "llm_proxy" / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.add(node.value.replace("%%", "%"))
    return found


def test_log_lines_and_answers_are_the_programs() -> None:
    """Every word between the gaps of each stands in the code."""
    known = "\0".join(texts())
    rows = re.findall(r"^\| (?:log|callers|over) \| (.*) \|$", PAGE, re.MULTILINE)
    lines = [one for row in rows for one in re.findall(r"`([^`]*)`", row) if " " in one and "llm-proxy" not in one]
    assert len(lines) >= 12
    for line in lines:
        parts = [part.strip(" ():") for part in line.split("…")]
        assert any(parts)
        for part in parts:
            assert part in known, (line, part)


def test_alerts_are_the_rules() -> None:
    """Each alert on the page exists, and each of the gateway's is on the page."""
    groups = yaml.safe_load((ROOT / "packaging/grafana/alerts.yml").read_text())["groups"]
    rules = {rule["alert"]: group["name"] for group in groups for rule in group["rules"]}
    told = set(re.findall(r"`((?:Gateway|LlmProxy)[A-Z]\w+)`", PAGE))
    assert told <= rules.keys()
    assert {name for name, group in rules.items() if group == "llm-proxy-gateway"} <= told


def test_metrics_and_codes_on_the_page_exist() -> None:
    """Names of metrics are on their page, codes of refusals in the code."""
    page = (ROOT / "docs/metrics.md").read_text()
    for name in re.findall(r"`(llm_proxy_gateway_\w+)`", PAGE):
        assert f"`{name}`" in page
    codes = re.findall(r"(?:401|409|429|503) `(\w+)`", PAGE)
    assert len(codes) >= 4 and set(codes) <= texts()


def test_dockers_lines_name_the_set_ups_services() -> None:
    """Of the form that `docker compose` takes, and with services that are there."""
    services = yaml.safe_load((ROOT / "packaging/compose/gateway-team/compose.yaml").read_text())["services"]
    (block,) = re.findall(r"^```console\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    for line in block.splitlines():
        named = re.fullmatch(r"docker compose (?:build|up --detach --no-deps --wait ([\w-]+))", line)
        assert named and (named[1] is None or named[1] in services), line
