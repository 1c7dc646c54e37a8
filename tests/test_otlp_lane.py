"""The OTLP sink through a real daemon to a real receiver: every call once, whatever becomes of either."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

import anthropic
import openai
import pytest

from llm_proxy.dialects.digest import Usage
from llm_proxy.lanes.otlp import Otlp
from llm_proxy.lanes.sink import Declined, Refused, Unusable
from llm_proxy.service import passing
from llm_proxy.settings import load
from tests.calls import call
from tests.fakeprovider.certificate import CERTIFICATE, tls_context
from tests.otlpbed import Receiver, Reply, attributes
from tests.test_sinks_lanes import ask, configured, passed, running, states, until

DURATION = "gen_ai.client.operation.duration"
TOKENS = "gen_ai.client.token.usage"
KEY = "otlp-secret-0123456789"


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


# --- the sink alone, with real sockets


def calls(count, **about):
    return [
        call({"model": "m", "max_tokens": 5}, number, usage=Usage(10, output=5), **about) for number in range(count)
    ]


@pytest.fixture
def sink(receiver):
    made = []

    def make(**options):
        made.append(Otlp(Path(), {"endpoint": receiver.url, **options}))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_busy_receiver_is_left_alone_as_long_as_it_says(sink, receiver):
    """503 and 429: the same calls again, not before `Retry-After`, as seconds or as a date; each answer is one request."""
    date = formatdate(time.time() + 100, usegmt=True)
    answers = [(503, "7", 7.0), (429, date, 100.0), (503, "", 0.0), (429, "soon", 0.0), (503, "99999", 300.0)]
    otlp = sink()
    for status, retry_after, seconds in answers:
        receiver.replies["/v1/traces"].append(Reply(status, {"Retry-After": retry_after}))
        with pytest.raises(Refused, match=rf"127\.0\.0\.1:{receiver.port} answered {status}") as told:
            otlp.write(calls(1))
        assert told.value.after == pytest.approx(seconds, abs=3) and not told.value.lasting
    assert len(receiver.got) == len(answers)
    otlp.write(calls(1))
    assert len(receiver.spans()) == 1


@pytest.mark.parametrize("status", [301, 401, 403, 404])
def test_what_only_a_person_can_change_is_told_and_loses_nothing(sink, receiver, status):
    """A wrong address or key, or a redirect, which is no success: the calls wait."""
    receiver.replies["/v1/traces"].append(Reply(status, {"Location": "http://127.0.0.1:1/"}, message="bad key k-123"))
    otlp = sink()
    with pytest.raises(Refused, match=f"answered {status}") as told:
        otlp.write(calls(2))
    assert (told.value.lasting and "k-123" not in str(told.value)) or status not in (401, 403)
    otlp.write(calls(2))
    assert len(receiver.spans()) == 2


@pytest.mark.parametrize("status", [400, 413])
def test_what_a_receiver_will_never_take_is_the_call_s_own_fault(sink, receiver, status):
    """Its words are passed on, without control characters and without our key."""
    receiver.replies["/v1/traces"].append(Reply(status, message=f"\x1b[31mno\x07 thanks, {KEY}\u202e"))
    with pytest.raises(Declined, match=rf"answered {status} .*no  ?thanks, \[masked\]") as told:
        sink(headers=[["Authorization", f"Bearer {KEY}"]]).write(calls(1))
    assert not set("\x1b\x07\u202e") & set(str(told.value))


def test_what_was_thrown_away_of_a_batch_is_counted_and_not_sent_again(sink, receiver, capfd):
    """The protocol forbids to: nobody knows which spans they were."""
    receiver.replies["/v1/traces"].append(Reply(rejected=2, message="too old"))
    receiver.replies["/v1/metrics"].append(Reply(message="temporality is fine, but beware"))
    otlp = sink()
    otlp.write(calls(3))
    assert [one.path for one in receiver.got] == ["/v1/traces", "/v1/metrics"]
    assert otlp.counted["rejected_spans"] == 2 and otlp.counted["rejected_points"] == 0
    assert "beware" in otlp.warning
    assert "threw away 2 spans: too old" in capfd.readouterr().err


def test_a_backend_without_metrics_gets_its_spans(sink, receiver):
    """Many take traces alone; that is said once and holds nothing up."""
    receiver.judge = lambda path, request: Reply(404) if path == "/v1/metrics" else None
    otlp = sink()
    otlp.write(calls(1))
    otlp.write(calls(1, id="another"))
    assert len(receiver.spans()) == 2
    assert "takes no metrics (404" in otlp.warning and "otlp.metrics" in otlp.warning
    receiver.got.clear()
    alone = sink(metrics=False)
    alone.write(calls(1))
    assert [one.path for one in receiver.got] == ["/v1/traces"] and alone.ledger == {}


def test_a_call_counts_once_however_often_it_is_tried(sink, receiver):
    """Metrics refused after the spans were taken; then the lane cannot remember that all went well; then a restart."""
    receiver.replies["/v1/metrics"].append(Reply(503))
    otlp = sink()
    with pytest.raises(Refused):
        otlp.write(calls(3))
    otlp.write(calls(3))
    assert len(receiver.spans()) == 3  # not sent again with the metrics
    otlp.write(calls(3))
    remembered = json.loads(json.dumps(otlp.ledger))
    assert counted(receiver) == 3
    otlp.write(calls(5)[3:])
    again = sink()  # killed after sending, before the last batch was remembered
    again.resume(remembered)
    again.write(calls(5)[3:])
    assert counted(receiver) == 5
    points = receiver.points(DURATION)
    assert {point.start_time_unix_nano for point in points} == {calls(1)[0].row.started_ns}
    assert {len(ids) for ids in receiver.calls().values()} == {1}
    instances = {
        attributes(one.resource_metrics[0].resource).get("service.name") for one in receiver.taken("/v1/metrics")
    }
    assert instances == {"llm-proxy"}


def test_a_series_that_was_quiet_tells_its_old_value_first(sink, receiver):
    """Backends compute increases from two points; each is later than the one before."""
    otlp = sink()
    otlp.write(calls(1))
    otlp.write(calls(1, id="second"))
    points = sorted(receiver.points(DURATION), key=lambda one: one.time_unix_nano)
    assert [point.count for point in points] == [0, 1, 2]
    assert len({point.time_unix_nano for point in points}) == 3
    quiet = sink()
    ledger = json.loads(json.dumps(otlp.ledger))
    for series in ledger["series"]:
        series[-1] -= 61 * 10**9
    quiet.resume(ledger)
    quiet.write(calls(1, id="third"))
    points = sorted(receiver.points(DURATION), key=lambda one: one.time_unix_nano)
    assert [point.count for point in points] == [0, 1, 2, 2, 3]


def test_much_content_goes_in_portions(sink, receiver):
    """Receivers take 4 MB at least: no request is much longer than half of that."""
    said = [{"role": "user", "content": "x" * 60_000}] * 8
    long = [call({"model": "m", "messages": said}, number) for number in range(10)]
    sink(content=True, metrics=False).write(long)
    assert len(receiver.spans()) == 10
    assert len(receiver.got) > 1 and max(len(one.raw) for one in receiver.got) < 3 << 20


def test_nobody_there_a_hang_and_an_endless_answer(sink, receiver):
    """Said in words without the address's path, within the time that was given."""
    receiver.replies["/v1/traces"].append(Reply(hangs=True))
    begun = time.monotonic()
    with pytest.raises(Refused, match=r"cannot be reached: .*timed out"):
        sink(timeout=0.5).write(calls(1))
    assert time.monotonic() - begun < 5
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    with pytest.raises(Refused, match=rf"^127\.0\.0\.1:{port} cannot be reached: Connection refused$"):
        sink(endpoint=f"http://127.0.0.1:{port}/secret-path").write(calls(1))
    receiver.replies["/v1/traces"].append(Reply(503, {"X-Long": "x" * 1000}, message="y" * 5_000_000))
    with pytest.raises(Refused) as told:
        sink().write(calls(1))
    assert len(str(told.value)) < 500


def test_certificates_of_ones_own(tmp_path, sink):
    """`certificate` is trusted, others are not, and the reason is told."""
    tls = Receiver(context=tls_context())
    try:
        url = tls.url.replace("127.0.0.1", "localhost")
        sink(endpoint=url, certificate=str(CERTIFICATE)).write(calls(1))
        assert len(tls.spans()) == 1
        with pytest.raises(Refused, match="certificate verify failed"):
            sink(endpoint=url).write(calls(1))
        with pytest.raises(Refused, match="cannot be reached"):
            sink(endpoint=url, certificate=str(tmp_path / "nothing.pem")).write(calls(1))
    finally:
        tls.stop()


def test_standard_variables_count_where_settings_say_nothing(sink, receiver, monkeypatch):
    """Ours win; credentials for another place do not come along."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"x-api-key={KEY}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=staging,service.name=theirs")
    receiver.replies["/v1/traces"].append(Reply(400, message=f"what is {KEY}?"))
    theirs = sink(endpoint="", instance="the-instance")
    with pytest.raises(Declined) as told:
        theirs.write(calls(1))
    assert KEY not in str(told.value)
    theirs.write(calls(1))
    got = receiver.got[-1]
    assert got.headers["x-api-key"] == KEY and "content-encoding" not in got.headers
    resource = attributes(receiver.taken("/v1/traces")[0].resource_spans[0].resource)
    assert resource["deployment.environment.name"] == "staging" and resource["service.name"] == "theirs"
    assert resource["service.instance.id"] == "the-instance"
    ours = sink(compression="gzip", service_name="ours", headers=[["x-team", "blue"]])
    ours.write(calls(1, id="ours"))
    got = receiver.got[-1]
    assert "x-api-key" not in got.headers and got.headers["x-team"] == "blue"
    assert got.headers["content-encoding"] == "gzip"
    assert attributes(got.request.resource_metrics[0].resource)["service.name"] == "ours"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(Unusable, match="OTLP/HTTP"):
        sink(endpoint="")


SWITCHES = [
    ({}, {}, False),
    ({"otlp_endpoint": "http://127.0.0.1:4318"}, {}, True),
    ({"otlp_endpoint": "http://127.0.0.1:4318", "otlp_enabled": "false"}, {}, False),
    ({"otlp_enabled": "true"}, {}, True),
    ({"sinks": ("sessions", "otlp")}, {}, True),
    ({"sinks": ("sessions", "otlp"), "otlp_enabled": "false"}, {}, False),
    ({}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, True),
    ({"otlp_enabled": "false"}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, False),
    ({}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317"}, False),
    ({}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, False),
    ({}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h", "OTEL_SDK_DISABLED": "true"}, False),
    ({"otlp_enabled": "true"}, {"OTEL_SDK_DISABLED": "true"}, True),
    ({}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "localhost:4317"}, False),
    ({}, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://h", "OTEL_EXPORTER_OTLP_HEADERS": "a=b"}, False),
]


@pytest.mark.parametrize(("given", "env", "on"), SWITCHES)
def test_only_what_means_us_switches_it_on(monkeypatch, given, env, on):
    """Variables that other programs need tell how, and only one tells where."""
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    settings = replace(load({}, {}, None).settings, **given)
    assert ("otlp" in passing.sinks(settings)) is on
    assert any("OpenTelemetry" in line for line in passing.lines(settings)) is on


@pytest.mark.parametrize(
    ("setting", "variable", "content"),
    [
        ("auto", "", False),
        ("auto", "true", True),
        ("auto", "SPAN_ONLY", True),
        ("auto", "EVENT_ONLY", False),
        ("auto", "no_content", False),
        ("false", "true", False),
        ("true", "", True),
    ],
)
def test_content_is_asked_for(monkeypatch, setting, variable, content):
    """By the setting, else by the variable of the conventions."""
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", variable)
    settings = replace(load({}, {}, None).settings, otlp_enabled="true", otlp_content=setting)
    assert dict(passing.options(settings).sinks)["otlp"]["content"] is content


def test_no_key_in_what_is_shown():
    """Neither in the settings' own form nor on the command line of the process that sends."""
    settings = load({}, {"LLM_PROXY_OTLP_HEADERS": f"x-api-key: {KEY}", "LLM_PROXY_OTLP_ENDPOINT": "http://h"}, None)
    assert settings.settings.otlp_headers == (("x-api-key", KEY),)
    given = passing.options(settings.settings)
    assert KEY not in repr(settings) + repr(given) + given.to_json() + "".join(passing.lines(settings.settings))


def test_the_place_is_shown_without_what_may_be_secret(monkeypatch):
    """Of a variable too."""
    told = load({}, {"LLM_PROXY_OTLP_ENABLED": "true"}, None).settings
    assert passing.lines(told) == ("OpenTelemetry: http://localhost:4318",)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"https://me:{KEY}@otlp.example:8443/{KEY}?k={KEY}")
    assert passing.lines(told) == ("OpenTelemetry: https://otlp.example:8443",)
    own = load({}, {"LLM_PROXY_OTLP_ENDPOINT": "http://[::1]:4318/api"}, None).settings
    assert passing.lines(own) == ("OpenTelemetry: http://[::1]:4318",)


# --- through a daemon, in trouble


def test_what_was_called_while_the_receiver_was_dead_arrives(start, environ, provider):
    """And counts once; the time it was away is told."""
    away = Receiver()
    away.stop()
    daemon = sending(start, environ, away)
    ask(daemon, provider, *"abcde")
    until(lambda: "Connection refused" in states(daemon)["otlp"]["last_error"], lambda: states(daemon), 60)
    assert states(daemon)["otlp"]["state"] == "retrying"
    back = Receiver(away.port)
    try:
        back.wait(lambda it: len(it.calls()) == 5 and counted(it) == 5, 60)
        passed(daemon, "otlp", 5)
        assert states(daemon)["otlp"]["parked"] == 0
    finally:
        back.stop()


def test_killed_again_and_again_every_call_has_one_span_and_counts_once(start, environ, receiver, provider):
    """SIGKILL between sending and remembering: what comes twice is the same, and the sums are true."""
    daemon = sending(start, environ, receiver)
    pids = [0]

    def another():
        pid = json.loads((daemon.state / "sinks.json").read_text())["pid"]
        return pid if pid not in pids else None

    for round in range(3):
        pids.append(until(another, lambda: pids))
        before = len(receiver.got)
        ask(daemon, provider, *(f"{round}-{number}" for number in range(4)))
        receiver.wait(lambda it, before=before: len(it.got) > before, 30)
        os.kill(pids[-1], signal.SIGKILL)
    receiver.wait(lambda it: len(it.calls()) == 12 and counted(it) == 12, 60)
    passed(daemon, "otlp", 1)
    assert daemon.stop() == 0
    assert {len(ids) for ids in receiver.calls().values()} == {1}
    assert counted(receiver) == 12
    resources = [one.resource_metrics[0].resource for one in receiver.taken("/v1/metrics")]
    assert len({attributes(one)["service.instance.id"] for one in resources}) == 1


def test_one_that_cannot_be_taken_is_parked_and_the_others_arrive(start, environ, receiver, provider):
    """400 for one of five: found, tried three times, put aside with the receiver's words."""

    def judge(path, request):
        if path != "/v1/traces":
            return None
        spans = [span for one in request.resource_spans for scope in one.scope_spans for span in scope.spans]
        return (
            Reply(400, message="poison")
            if any(attributes(one)["gen_ai.request.max_tokens"] == 66 for one in spans)
            else None
        )

    receiver.judge = judge
    daemon = sending(start, environ, receiver)
    with anthropic.Anthropic(
        base_url=f"{daemon.url}/anthropic/127.0.0.1:{provider.port}",
        api_key="sk-ant-api03-0123456789abcdef",
        max_retries=0,
    ) as client:
        for limit in (1, 2, 66, 4, 5):
            said = [{"role": "user", "content": "hello"}]
            client.messages.create(model="claude-sonnet-4-6", max_tokens=limit, messages=said)
    receiver.wait(lambda it: len(it.calls()) == 4, 40)
    until(lambda: states(daemon)["otlp"]["parked"] == 1, lambda: states(daemon))
    (parked,) = (daemon.state / "parked/otlp.jsonl").read_text().splitlines()
    assert json.loads(parked)["error"] == f"127.0.0.1:{receiver.port} answered 400 Bad Request: poison"
    assert daemon.stop() == 0


def test_a_receiver_that_hangs_does_not_hold_up_the_end(start, environ, receiver, provider):
    """What it did not take is sent by the next daemon."""
    receiver.judge = lambda path, request: Reply(hangs=True)
    daemon = sending(start, environ, receiver)
    ask(daemon, provider, "one")
    receiver.wait(lambda it: it.got)
    begun = time.monotonic()
    assert daemon.stop(40) == 0
    assert time.monotonic() - begun < 25  # ten for what is left, the rest for a machine with much to do
    receiver.judge = lambda path, request: None
    sending(start, environ, receiver)
    receiver.wait(lambda it: len(it.calls()) == 1)


BLOCK = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""


def test_without_the_packages_it_says_how_to_get_them(start, environ, receiver, provider, tmp_path):
    """In the status, with the command; calls are carried and recorded all the same."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(BLOCK)
    text = f'[otlp]\nendpoint = "{receiver.url}"\n'
    path = configured(environ, text)
    daemon = start("--port", "0", "--config", path, env={"PYTHONPATH": str(site)}, isolated=False)
    running(daemon, "otlp")
    ask(daemon, provider, "one")
    told = states(daemon)["otlp"]
    assert told["state"] == "broken"
    assert "OpenTelemetry is not installed" in told["last_error"]
    assert f"{sys.executable} -m pip install 'opentelemetry-sdk" in told["last_error"]
    assert daemon.entries(60, lambda found: any(one["type"] == "response" for one in found))


def test_it_is_imported_only_where_it_is_wanted(tmp_path):
    """The SDK costs a second and 30 MB: nobody else pays that."""
    code = "import sys, llm_proxy.lanes.otlp, llm_proxy.lanes.__main__, llm_proxy.service.passing; print([m for m in sys.modules if m.startswith(('opentelemetry', 'requests', 'google'))])"
    said = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=60)
    assert said.stdout.strip() == "[]", said
