"""The OTLP sink through a real daemon to a real receiver: every call once, whatever becomes of either."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import anthropic
import openai
import pytest

from tests.otlpbed import Receiver, Reply, attributes
from tests.recorded import Provider
from tests.test_sinks_lanes import ask, configured, passed, running, states, until

DURATION = "gen_ai.client.operation.duration"
TOKENS = "gen_ai.client.token.usage"
KEY = "otlp-secret-0123456789"


@pytest.fixture(scope="module")
def provider():
    started = Provider()
    yield started
    started.stop()


@pytest.fixture
def receiver():
    started = Receiver()
    yield started
    started.stop()


def sending(start, environ, receiver, more="", **env):
    """A daemon that sends there."""
    text = f'[otlp]\nendpoint = "{receiver.url}"\n{more}'
    daemon = start("--port", "0", "--config", configured(environ, text), env=env)
    running(daemon, "otlp")
    return daemon


def counted(receiver):
    """Calls in the newest points."""
    return sum(point.count for point in receiver.last(DURATION).values())


def test_a_call_of_an_official_sdk_becomes_a_span_and_points(start, environ, receiver, provider):
    """End to end, compressed, with the headers that were asked for; and no word of what was said."""
    daemon = sending(start, environ, receiver, f'headers = {{ x-api-key = "{KEY}" }}\n')
    ask(daemon, provider, "what of the heron?")
    ask(daemon, provider, "and of the egret?", stream=True)
    with openai.OpenAI(
        base_url=f"{daemon.url}/openai/127.0.0.1:{provider.port}/v1", api_key="sk-proj-0123456789abcdef", max_retries=0
    ) as client:
        client.chat.completions.create(model="gpt-4.1-mini", messages=[{"role": "user", "content": "hello"}])
    receiver.wait(lambda it: len(it.spans()) >= 3 and counted(it) >= 3)
    assert daemon.stop() == 0
    whole, stream, chat = sorted(receiver.spans(), key=lambda span: span.start_time_unix_nano)
    assert whole.name == stream.name == "chat claude-sonnet-4-6"
    assert whole.kind == whole.SPAN_KIND_CLIENT
    told = attributes(whole)
    assert told["gen_ai.provider.name"] == "anthropic"
    assert told["gen_ai.request.max_tokens"] == 100
    assert told["server.address"] == "127.0.0.1" and told["server.port"] == provider.port
    assert told["http.response.status_code"] == 200
    assert "gen_ai.request.stream" not in told
    streamed = attributes(stream)
    assert streamed["gen_ai.request.stream"] is True
    assert 0 <= streamed["gen_ai.response.time_to_first_chunk"] < 20
    assert attributes(chat)["gen_ai.provider.name"] == "openai"
    assert attributes(chat)["openai.api.type"] == "chat_completions"
    assert len({span.trace_id for span in (whole, stream, chat)}) == 3
    for got in receiver.got:
        assert got.headers["x-api-key"] == KEY
        assert got.headers["content-encoding"] == "gzip"
        assert got.headers["content-type"] == "application/x-protobuf"
        assert b"heron" not in got.raw and b"egret" not in got.raw
    usage = {
        attributes(point)["gen_ai.token.type"]: point
        for attrs, point in receiver.last(TOKENS).items()
        if ("gen_ai.provider.name", "anthropic") in attrs
    }
    assert usage["input"].count == usage["output"].count == 2
    assert usage["input"].sum == told["gen_ai.usage.input_tokens"] + streamed["gen_ai.usage.input_tokens"]
    assert list(usage["input"].explicit_bounds) == [4.0**n for n in range(14)]
    assert sum(usage["input"].bucket_counts) == 2
    resource = attributes(receiver.taken("/v1/traces")[0].resource_spans[0].resource)
    assert resource["service.name"] == "llm-proxy" and resource["service.instance.id"]
    assert resource["telemetry.sdk.language"] == "python"
    # Nobody has to see the key: neither in what is written nor in the list of processes.
    for path in (*daemon.state.rglob("*"), *daemon.logs.rglob("*")):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path
    assert KEY not in "".join(daemon.lines)
