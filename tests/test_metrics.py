"""/metrics: what was asked, what it cost and how long it took, as Prometheus' own tools read it."""

import http.client
import shutil
import subprocess
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.recorded import Provider, converse


@pytest.fixture(scope="module")
def provider():
    started = Provider()
    yield started
    started.stop()


def ask(daemon, path="/metrics"):
    link = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=10)
    try:
        link.request("GET", path)
        answer = link.getresponse()
        return answer.status, answer.read().decode()
    finally:
        link.close()


def families(text):
    return {family.name: family for family in text_string_to_metric_families(text)}


def values(text, name, *labels):
    """{label values: value} of the samples of that name."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name:
                key = tuple(sample.labels[label] for label in labels)
                found[key] = found.get(key, 0) + sample.value
    return found


def until(daemon, true, limit=20):
    """/metrics, once that is true of it: the keeper says what it has counted at most once a second."""
    deadline = time.monotonic() + limit
    while True:
        status, text = ask(daemon)
        assert status == 200
        if true(text):
            return text
        assert time.monotonic() < deadline, text
        time.sleep(0.05)


def recorded(count):
    return lambda text: sum(values(text, "llm_proxy_requests_total").values()) >= count


def test_models_tokens_cost_and_times_of_real_calls(start, provider):
    """Nine calls of three SDKs: each counted once under its model, with its tokens, its price and its times."""
    daemon = start("--port", "0")
    converse(daemon, provider.port)
    text = until(daemon, recorded(9))
    calls = values(text, "llm_proxy_requests_total", "provider", "model", "status", "ending")
    print(text)
    assert sum(calls.values()) == 9
