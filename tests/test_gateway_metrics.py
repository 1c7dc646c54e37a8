"""What a gateway tells Prometheus, and the dashboard, the alert rules and the page that name it."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.fakeprovider import FakeProvider
from tests.gatewaybed import SECRETS, Gateway
from tests.grafana import laid_out
from tests.postgresbed import SERVER
from tests.redisbed import a_redis
from tests.test_gateway_whole import CHAT, HELLO, eventually, furnished

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/metrics.md").read_text()
DASHBOARD = json.loads((ROOT / "packaging/grafana/llm-proxy-gateway.json").read_text())
ALERTS = ROOT / "packaging/grafana/alerts.yml"
RULES = {group["name"]: group["rules"] for group in yaml.safe_load(ALERTS.read_text())["groups"]}["llm-proxy-gateway"]
_NOBODYS = {"instance", "job"}  # Prometheus adds them


def documented() -> dict[str, tuple[str, frozenset[str]]]:
    """Of the page: name -> (type, labels)."""
    rows = re.findall(r"^\| `(llm_proxy_\w+)` \| (\w+) \| (.*?) \|", PAGE, re.MULTILINE)
    return {name: (kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def served(text: str) -> dict[str, tuple[str, frozenset[str]]]:
    """As `documented`; a family without samples has no labels."""
    kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    return {name: (kind, frozenset(labels.get(name, ()))) for name, kind in kinds.items()}


def value(text: str, name: str, **labels: str) -> float:
    """The sum of its samples with these labels; -1 where there are none."""
    found = [
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    return sum(found) if found else -1.0


def scrape(gateway: Gateway, key: str) -> str:
    return gateway.ask("GET", "/manage/metrics", None, key).body.decode()


async def test_the_page_tells_what_is_served(start: Any, fake: FakeProvider, tmp_path: Path) -> None:
    """Each metric has its name, type and labels there, at both paths; promtool finds nothing to complain of."""
    import asyncio

    database = await SERVER.create()
    try:
        with a_redis(tmp_path) as redis:
            env = SECRETS | {"DATABASE_URL": SERVER.url(database), "REDIS_URL": redis.url}
            env |= {"LLM_PROXY_UPSTREAMS_ALLOW": fake.url, "LLM_PROXY_GATEWAY_WORKERS": "2"}
            await asyncio.to_thread(_as_served, Gateway(start("gateway", "--port", "0", env=env)), fake)
    finally:
        await SERVER.drop(database)


def _as_served(gateway: Gateway, fake: FakeProvider) -> None:
    key = furnished(gateway.wait(), fake)
    watcher = gateway.key(name="prometheus", scopes=["usage"])
    provider = gateway.provider("openai", f"{fake.url}/fake=status=500")
    gateway.alias("failing", "gpt-4o-mini", provider)
    gateway.want(200, "POST", CHAT, HELLO, key)
    for _ in range(12):  # of either process so many that its circuit opens
        assert gateway.ask("POST", CHAT, HELLO | {"model": "failing"}, key).status >= 500
    for _ in range(4):
        assert gateway.ask("POST", CHAT, HELLO | {"model": "nothing"}, key).status == 404
    eventually(lambda: value(scrape(gateway, watcher), "llm_proxy_gateway_usage_written_total") >= 13, 20.0)
    text = scrape(gateway, watcher)
    own = {name: one for name, one in documented().items() if name.startswith("llm_proxy_gateway_")}
    proxys = {name: one for name, one in served(gateway.ask("GET", "/metrics").body.decode()).items() if name in own}
    assert {name.removeprefix("llm_proxy_gateway_") for name in proxys} == {"requests_total", "open", "worker_up"}
    gateways = {name: (kind, labels - {"worker"}) for name, (kind, labels) in served(text).items()}
    gateways["llm_proxy_gateway_worker_told"] = served(text)["llm_proxy_gateway_worker_told"]
    assert proxys | gateways == own
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    assert value(text, "llm_proxy_gateway_ready") == value(text, "llm_proxy_gateway_store_up") == 2
    assert value(text, "llm_proxy_gateway_store_bytes", worker="1") > 1_000_000
    assert value(text, "llm_proxy_gateway_refused_total", code="model_not_found") == 4
    assert value(text, "llm_proxy_gateway_circuit_open", key=str(provider)) >= 1


def test_a_stand_still_is_told(start: Any, tmp_path: Path, environ: dict[str, str]) -> None:
    """A deletion that waits, and a provider key that does not open: both until they are mended."""
    import sqlite3
    from contextlib import closing

    gateway = Gateway(start("gateway", "--port", "0", env=SECRETS)).wait()
    key = gateway.key(scopes=["models", "usage"])
    assert value(scrape(gateway, key), "llm_proxy_gateway_deletions_waiting") == 0
    gateway.alias("fast", "gpt-4o-mini", gateway.provider("openai", "https://api.example.com"))
    with closing(sqlite3.connect(gateway.log.with_name("gateway.db"), timeout=20)) as link, link:
        link.execute("UPDATE provider_keys SET encrypted_key = substr(encrypted_key, 5)")
        link.execute("UPDATE changes SET count = count + 1")
    time.sleep(1.0)  # until it has noticed, which nothing tells
    assert gateway.ask("POST", CHAT, HELLO, key).status == 502
    assert value(scrape(gateway, key), "llm_proxy_gateway_unreadable_keys_total") >= 1


def expressions() -> list[tuple[str, str]]:
    found = [(rule["alert"], rule["expr"]) for rule in RULES]
    return found + [(p["title"], target["expr"]) for p in DASHBOARD["panels"] for target in p.get("targets", ())]


def test_dashboard_and_rules_ask_only_for_metrics_that_exist() -> None:
    """Each name and label stands on the page; each metric of the gateway's is on the dashboard or has a rule."""
    known = documented()
    asked = set()
    for title, expression in expressions():
        for name, inside in re.findall(r"(llm_proxy_\w+)(?:\{([^}]*)\})?", expression):
            asked.add(name)
            assert name in known, title
            assert set(re.findall(r"(\w+)(?:=~|!~|!=|=)", inside)) <= known[name][1] | _NOBODYS, title
        for name, by in re.findall(r"by \(([^)]*)\)\s*\(\w*\(?(llm_proxy_\w+)", expression):
            assert {one.strip() for one in name.split(",")} <= known[by][1] | _NOBODYS, title
    ours = {name for name in known if name.startswith("llm_proxy_gateway_")}
    assert ours - asked == {"llm_proxy_gateway_worker_told"}


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    """As the other ones."""
    assert DASHBOARD["id"] is None and DASHBOARD["uid"] == "llm-proxy-gateway"
    laid_out(DASHBOARD["panels"])
    for panel in DASHBOARD["panels"]:
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"} and panel["targets"]
            assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    (_, machine) = DASHBOARD["templating"]["list"]
    assert machine["query"]["query"] == "label_values(llm_proxy_gateway_ready, instance)"


SITUATIONS = {
    "GatewayDown": ('up{job="llm-proxy-gateway"}', "0"),
    "GatewayNotReady": ("llm_proxy_gateway_ready", "0"),
    "GatewayWorkerDown": ('llm_proxy_gateway_worker_up{worker="2"}', "0"),
    "GatewayStoreAway": ("llm_proxy_gateway_store_up", "0"),
    "GatewayRedisAway": ("llm_proxy_gateway_limits_degraded", "1"),
    "GatewayUsageWaiting": ("llm_proxy_gateway_usage_spool_bytes", "4e7"),
    "GatewayUsageLost": ("llm_proxy_gateway_usage_lost_total", "0+10x100"),
    "GatewayProviderFailing": ('llm_proxy_gateway_circuit_open{key="1",model=""}', "1"),
    "GatewayKeysUnreadable": ("llm_proxy_gateway_unreadable_keys_total", "0+1x100"),
    "GatewayBudgetBlown": ('llm_proxy_gateway_limited_total{limit="spend_month",subject="team"}', "0+1x100"),
    "GatewayLimitsRefuse": ('llm_proxy_gateway_limited_total{limit="requests_minute",subject="user"}', "0+60x100"),
    "GatewayLogInsFail": ('llm_proxy_gateway_refused_total{code="invalid_token"}', "0+120x100"),
    "GatewayDeletionsWait": ("llm_proxy_gateway_deletions_waiting", "1"),
}


@pytest.fixture
def situations(tmp_path: Path) -> Path:
    """For `promtool test rules`: each rule fires in its situation, and none of the others does."""
    tests = []
    for name, (series, values) in SITUATIONS.items():
        steady = values if "x" in values else f"{values}x100"
        tests.append(
            {
                "interval": "1m",
                "input_series": [
                    {"series": series, "values": steady.replace("x", "+0x") if "x" not in values else steady}
                ],
                "promql_expr_test": [
                    {
                        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                        "eval_time": "95m",
                        "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1}],
                    }
                ],
            }
        )
    path = tmp_path / "situations.yml"
    path.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": tests}))
    return path


def test_each_rule_fires_in_its_situation_alone(situations: Path) -> None:
    """By Prometheus' own tester of rules."""
    assert SITUATIONS.keys() == {rule["alert"] for rule in RULES}
    done = subprocess.run(["promtool", "test", "rules", str(situations)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
