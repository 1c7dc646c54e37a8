"""/metrics: what was asked, what it cost and how long it took, as Prometheus' own tools read it; the dashboard and the rules."""

import asyncio
import contextlib
import http.client
import http.server
import json
import re
import subprocess
import threading
import time
import urllib.parse
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from llm_proxy.proxy.authority import parse_base
from llm_proxy.proxy.callers import Guard
from llm_proxy.proxy.front import Front
from llm_proxy.proxy.models import Models, NamedModel
from tests.fakeloki import FakeLoki
from tests.grafana import laid_out
from tests.recorded import converse

ROOT = Path(__file__).parent.parent
DASHBOARD = json.loads((ROOT / "packaging/grafana/llm-proxy.json").read_text())
ALERTS = ROOT / "packaging/grafana/alerts.yml"
LIMITS = {
    "anthropic-ratelimit-requests-limit": "50",
    "anthropic-ratelimit-requests-remaining": "40",
    "anthropic-ratelimit-requests-reset": "2125-01-01T00:00:00Z",
    "anthropic-ratelimit-unified-5h-utilization": "0.25",
    "x-codex-primary-used-percent": "75",
}
ANSWER = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-4-6",
    "content": [{"type": "text", "text": "yes"}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 1000, "output_tokens": 10},
}


@pytest.fixture(scope="module")
def limited():
    """A provider that tells what is left; its port."""

    class Answering(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            body = json.dumps(ANSWER).encode()
            self.send_response(200)
            for name, value in {**LIMITS, "Content-Type": "application/json", "Content-Length": len(body)}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def get(port, path, body=None):
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        link.request(
            "GET" if body is None else "POST", path, body, {"Content-Type": "application/json"} if body else {}
        )
        answer = link.getresponse()
        return answer.status, answer.read().decode()
    finally:
        link.close()


def message(daemon, port, model="claude-sonnet-4-6"):
    body = json.dumps({"model": model, "max_tokens": 9, "messages": [{"role": "user", "content": "well?"}]})
    assert get(daemon.port, f"/anthropic/127.0.0.1:{port}/v1/messages", body)[0] == 200


def values(text, name, *labels):
    """{label values: sum of the samples of that name}."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name:
                key = tuple(sample.labels[label] for label in labels)
                found[key] = found.get(key, 0) + sample.value
    return found


def until(daemon, true, limit=60):
    """/metrics, once that is true of it: the keeper and the lanes say what they have counted at most once a second."""
    deadline = time.monotonic() + limit
    while True:
        status, text = get(daemon.port, "/metrics")
        assert status == 200
        if true(text):
            return text
        assert time.monotonic() < deadline, text
        time.sleep(0.05)


def recorded(count):
    return lambda text: sum(values(text, "llm_proxy_requests_total").values()) >= count


@pytest.fixture
def loki():
    with FakeLoki() as server:
        yield server


@pytest.fixture
def busy(start, environ, provider, limited, loki):
    """A daemon of which every metric tells something: Messages, a chat with a fork, Responses, a failure, sinks, limits."""
    path = Path(environ["HOME"], "config.toml")
    text = f'[loki]\nenabled = true\nurl = "{loki.url}"\nbatch_wait = 0\n'
    path.write_text(f'sinks = ["sessions", "daily"]\n{text}[prices."claude*"]\ninput = 3\noutput = 15\n')
    daemon = start("--port", "0", "--config", str(path))
    until(daemon, lambda text: values(text, "llm_proxy_sink_ok", "sink") == {("daily",): 1, ("loki",): 1})
    converse(daemon, provider.port)
    message(daemon, limited)
    return daemon


def all_of(text):
    passed = values(text, "llm_proxy_sink_passed_total", "sink")
    return recorded(10)(text) and passed == {("daily",): 10, ("loki",): 10}


def test_models_tokens_cost_and_times_of_real_calls(busy):
    """Ten calls of three SDKs: each counted once under its model, with its tokens, its price, its limits and its times."""
    text = until(busy, all_of)
    calls = values(text, "llm_proxy_requests_total", "provider", "model", "status", "ending")
    assert calls == {
        ("anthropic", "claude-sonnet-4-6", "200", "complete"): 4,
        ("anthropic", "other", "0", "upstream_failed"): 1,
        ("openai", "gpt-4.1-mini", "200", "complete"): 3,
        ("openai", "gpt-5", "200", "complete"): 2,
    }
    assert values(text, "llm_proxy_errors_total", "provider", "kind") == {("anthropic", "upstream_failed"): 1}
    entries = [one for one in busy.entries() if one.get("type") == "response"]
    usages = [one["digest"]["usage"] for one in entries if "usage" in one.get("digest", {})]
    tokens = values(text, "llm_proxy_tokens_total", "class")
    assert tokens == {(name,): sum(one.get(name, 0) for one in usages) for (name,) in tokens}
    assert {"input", "output", "cache_read"} <= {name for (name,) in tokens}
    assert values(text, "llm_proxy_tokens_within_total", "class") == {
        ("reasoning",): sum(one.get("reasoning", 0) for one in usages)
    }
    cost = values(text, "llm_proxy_cost_usd_total", "model", "basis")
    usd = sum(one["price"]["usd"] or 0 for one in entries if "price" in one)
    assert usd > 0 and cost == {("claude-sonnet-4-6", "override"): pytest.approx(usd)}
    assert values(text, "llm_proxy_unpriced_calls_total", "model") == {("gpt-4.1-mini",): 3, ("gpt-5",): 2}
    assert values(text, "llm_proxy_first_token_seconds_count", "provider") == {("anthropic",): 3}
    assert values(text, "llm_proxy_exchange_seconds_count", "provider") == {("anthropic",): 5, ("openai",): 5}
    sent = values(text, "llm_proxy_body_bytes_total", "provider", "direction")
    sizes = [one["size"] for one in entries if one["_meta"]["host"] != "127.0.0.1:1"]
    assert sum(size for (_, direction), size in sent.items() if direction == "response") == sum(sizes)
    quotas = values(text, "llm_proxy_quota_used_ratio", "model", "quota")
    assert quotas == {
        ("claude-sonnet-4-6", "requests"): pytest.approx(0.2),
        ("", "unified-5h"): 0.25,
        ("", "codex-primary"): 0.75,
    }


def test_what_the_proxy_adds_is_measured_once_for_each_exchange(start, limited):
    """Requests on connections that stood ready, and the first bytes of every answer; both below what it took."""
    daemon = start("--port", "0")
    for _ in range(5):
        message(daemon, limited)
    _, text = get(daemon.port, "/metrics")
    counts = values(text, "llm_proxy_added_seconds_count", "direction")
    connects = values(text, "llm_proxy_upstream_connects_total")[()]
    assert counts == {("request",): 5 - connects, ("response",): 5}
    added = values(text, "llm_proxy_added_seconds_sum", "direction")
    assert 0 < added["response",] < values(text, "llm_proxy_exchange_seconds_sum")[()] < 5


def test_promtool_finds_nothing_to_complain_of(busy):
    """The linter of Prometheus itself."""
    text = until(busy, all_of)
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


# -- documentation, dashboard and rules name what there is --------------------------------------------------------


def _documented():
    """Without the gateway's (`test_gateway_metrics`)."""
    rows = re.findall(
        r"^\| `(llm_proxy_(?!gateway_)\w+)` \| (\w+) \| (.*?) \|", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE
    )
    return {name: (kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def _served(text):
    found = {}
    for line in re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE):
        found[line[0]] = line[1]
    labels = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = family.name if family.type == "histogram" else sample.name
            labels.setdefault(name, set()).add(frozenset(sample.labels) - {"le"})
    return found, labels


def test_the_page_tells_every_metric_as_it_is_served(busy):
    """Name, type and labels; each has at least one sample here, so that the labels are seen."""
    kinds, labels = _served(until(busy, all_of))
    assert {name: (kind, *labels.get(name, ())) for name, kind in kinds.items()} == _documented()


def _expressions():
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    (group,) = [one for one in yaml.safe_load(ALERTS.read_text())["groups"] if one["name"] == "llm-proxy"]
    for rule in group["rules"]:
        yield rule["alert"], rule["expr"]


def test_dashboard_and_rules_ask_only_for_metrics_that_exist():
    """Every name in them stands on the page, which is what is served; every label they use is one of that metric's."""
    names = {name for _, expression in _expressions() for name in re.findall(r"llm_proxy_\w+", expression)}
    documented = _documented()
    known = {name for name, (kind, _) in documented.items() if kind != "histogram"}
    known |= {
        f"{name}_{end}"
        for name, (kind, _) in documented.items()
        if kind == "histogram"
        for end in ("bucket", "count", "sum")
    }
    assert names and names - known == set()
    for title, expression in _expressions():
        for name, inside in re.findall(r"(llm_proxy_\w+?)(?:_bucket)?\{([^}]*)\}", expression):
            used = set(re.findall(r"(\w+)(?:=~|!=|=)", inside))
            assert used <= documented[name][1], title
    for variable in DASHBOARD["templating"]["list"][1:]:
        name, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).groups()
        assert label in documented[name][1]


def test_the_dashboard_is_one_that_grafana_takes():
    """No id of ours, unique panels within the grid of 24 columns that do not overlap, and the data source left to choose."""
    assert DASHBOARD["id"] is None and DASHBOARD["uid"] == "llm-proxy" and DASHBOARD["schemaVersion"] >= 36
    panels = DASHBOARD["panels"]
    laid_out(panels)
    for panel in panels:
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"} and panel["targets"]
            references = [target["refId"] for target in panel["targets"]]
            assert len(set(references)) == len(references)


def test_promtool_takes_the_rules():
    """Syntax of every expression and template."""
    done = subprocess.run(["promtool", "check", "rules", str(ALERTS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# -- a real Prometheus ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def prometheus(folder, port, target):
    """One that scrapes `target` every half second and evaluates our rules."""
    config = folder / "prometheus.yml"
    jobs = [{"job_name": "llm-proxy", "static_configs": [{"targets": [target]}]}]
    every = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"}
    config.write_text(yaml.safe_dump({"global": every, "rule_files": [str(ALERTS)], "scrape_configs": jobs}))
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder}/data"]
    with open(folder / "prometheus.log", "wb") as log:
        process = subprocess.Popen(
            [*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log, cwd=folder
        )
    try:
        yield lambda: (folder / "prometheus.log").read_text()
    finally:
        process.terminate()
        process.wait(20)


def query(port, expression):
    """The vector of an instant query; None while Prometheus is starting."""
    try:
        status, text = get(port, "/api/v1/query?query=" + urllib.parse.quote(expression))
    except OSError:
        return None
    assert status in (200, 503), (expression, text)
    return json.loads(text)["data"]["result"] if status == 200 else None


def test_a_real_prometheus_scrapes_and_asks(busy, tmp_path, free_port):
    """Its API gives the values back; every query of the dashboard and every rule is evaluated without an error."""
    until(busy, all_of)
    with prometheus(tmp_path, free_port, f"127.0.0.1:{busy.port}") as said:

        def ask(expression, true):
            deadline = time.monotonic() + 60
            while not (found := query(free_port, expression)) or not true(found):
                assert time.monotonic() < deadline, (expression, found, said())
                time.sleep(0.05)
            return found

        def value(found):
            return float(found[0]["value"][1])

        ask('up{job="llm-proxy"}', lambda found: value(found) == 1)
        ask('llm_proxy_requests_total{model="claude-sonnet-4-6",ending="complete"}', lambda found: value(found) == 4)
        ask("llm_proxy_recording_ok", lambda found: value(found) == 1)
        ask('llm_proxy_quota_remaining{quota="requests",model="claude-sonnet-4-6"}', lambda found: value(found) == 40)
        for title, expression in _expressions():
            plain = expression.replace("$__rate_interval", "1m").replace("$__range", "1m")
            plain = plain.replace('"$provider"', '".*"').replace('"$model"', '".*"')
            assert query(free_port, plain) is not None, title
        deadline = time.monotonic() + 60
        while True:
            groups = json.loads(get(free_port, "/api/v1/rules")[1])["data"]["groups"]
            rules = [rule for group in groups for rule in group["rules"]]
            if rules and all(rule["health"] == "ok" for rule in rules):
                break
            assert time.monotonic() < deadline, rules
            time.sleep(0.05)
        assert [rule["name"] for rule in rules if rule["state"] == "firing"] == []


async def test_a_request_that_is_taken_whole_is_measured_from_its_last_byte(rigs):
    """The client's own pause within it is not what the proxy added; finding and changing the model's name is."""
    rig = await rigs()
    upstream = rig.upstream()
    base = parse_base(f"http://127.0.0.1:{upstream.port}/v1")
    named = NamedModel(name="m", model="upstream", openai=base, anthropic=None, api_key="k", timeout=0.0, max_retries=0)
    served = await rigs(models=Models((named,), Guard(), Front(), 1 << 20))
    body = b'{"model":"m","messages":[]}'
    client, server = served.client(), None
    for _ in range(2):  # the second one finds a connection
        await client.send(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(body)
            + body[:9]
        )
        await served.until(lambda: served.core.relays)
        begun = time.monotonic()
        await asyncio.sleep(0.3)
        waited = time.monotonic() - begun
        await client.send(body[9:])
        server = server or await upstream.accept()
        assert (await server.message()).payload == body.replace(b'"m"', b'"upstream"')
        await server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        assert (await client.message()).payload == b"ok"
    text = served.core.metrics.text({})
    assert values(text, "llm_proxy_added_seconds_count", "direction")["request",] == 1
    assert 0 < values(text, "llm_proxy_added_seconds_sum", "direction")["request",] < waited
