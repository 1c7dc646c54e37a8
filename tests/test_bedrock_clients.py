"""Real clients of Bedrock through a real daemon: what reached Bedrock, what they got, what stands in the logs."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path

import pytest
from anthropic import AnthropicBedrock
from botocore.exceptions import ClientError, EventStreamError
from urllib3.exceptions import ProtocolError

from tests.bedrockbed import ASKED, CREDENTIALS, HI, MODEL, Answer, ask, begin, boto, chunk, told, variables
from tests.fakebedrock import Account, FakeBedrock, Plan, frames, replies
from tests.fakebedrock.server import KEY, SECRET

INVOKE, STREAM = f"/model/{MODEL}/invoke", f"/model/{MODEL}/invoke-with-response-stream"
CONVERSE_STREAM = f"/model/{MODEL}/converse-stream"
ROOT = os.geteuid() == 0


@pytest.fixture
def bedrock():
    with FakeBedrock() as fake:
        yield fake


@pytest.fixture
def door(start, bedrock):
    """A daemon whose Bedrock is the fake."""
    running = start("--port", "0", env=variables(bedrock))
    assert running.port
    running.wait_for_recording()
    return running


@pytest.fixture
def client(door):
    """Amazon's client before the door."""
    with contextlib.closing(boto(door.url)) as made:
        yield made


def answers(daemon, number=1):
    """The response entries, once there are that many. The keeper stands last in line on a busy machine."""
    entries = daemon.entries(60, lambda found: sum(one["type"] == "response" for one in found) >= number)
    found = [one for one in entries if one["type"] == "response"]
    assert len(found) == number
    return sorted(found, key=lambda one: one["_meta"]["request_id"])


def raws(entry):
    return "".join(item.get("raw", "") for item in entry["chunks"])


# --- clients as they are


def test_amazons_library(bedrock, door, client):
    """Every operation: signed by the daemon's keys and not the client's, answered as without us, recorded with what it was."""
    assert client.converse(modelId=MODEL, messages=HI)["output"]["message"]["content"][0]["text"] == replies.TEXT
    events = told(client.converse_stream(modelId=MODEL, messages=HI)["stream"])
    assert (
        "".join(event["contentBlockDelta"]["delta"]["text"] for event in events if "contentBlockDelta" in event)
        == replies.TEXT
    )
    assert json.loads(client.invoke_model(modelId=MODEL, body=ASKED)["body"].read()) == replies.invoked(MODEL)
    chunks = told(client.invoke_model_with_response_stream(modelId=MODEL, body=ASKED)["body"])
    assert [json.loads(one["chunk"]["bytes"]) for one in chunks] == list(replies.invoke_events(MODEL))
    assert client.count_tokens(modelId=MODEL, input={"converse": {"messages": HI}})["inputTokens"] == replies.INPUT
    with contextlib.closing(boto(door.url, "bedrock")) as control:
        assert control.list_inference_profiles(typeEquals="SYSTEM_DEFINED")["inferenceProfileSummaries"]
        assert control.list_foundation_models()["modelSummaries"]
    assert [(one.key, one.refused) for one in bedrock.requests] == [(KEY, None)] * 7
    assert all(
        "AKIACLIENT" not in str(one.head.raw) and not one.get("x-amz-security-token") for one in bedrock.requests
    )
    found = answers(door, 7)
    assert {(one["ending"], one["status"], one["transport"]) for one in found} == {("complete", 200, "bedrock")}
    understood = {one["digest"]["api"] for one in found if "digest" in one}
    assert understood == {"bedrock.converse", "bedrock.invoke", "bedrock.count_tokens"}
    paid = [one for one in found if "price" in one]
    usage = {"input": replies.INPUT, "cache_read": replies.CACHED, "output": replies.OUTPUT}
    assert [one["digest"]["usage"] for one in paid] == [usage] * 4
    price = 1.1e-6 * replies.INPUT + 0.11e-6 * replies.CACHED + 5.5e-6 * replies.OUTPUT
    assert [one["price"]["usd"] for one in paid] == [pytest.approx(price)] * 4
    assert not any(
        secret in file.read_text() for file in door.logs.rglob("*.jsonl") for secret in (SECRET, "of the client")
    )


@pytest.mark.parametrize(
    "model",
    [
        "amazon.nova-pro-v1:0",
        "meta.llama3-3-70b-instruct-v1:0",
        f"arn:aws:bedrock:us-west-2:123456789012:inference-profile/{MODEL}",
    ],
)
def test_models_of_all_makers(bedrock, door, client, model):
    """And profiles by their ARN, which travel percent-encoded."""
    chunks = told(client.invoke_model_with_response_stream(modelId=model, body=ASKED)["body"])
    assert [json.loads(one["chunk"]["bytes"]) for one in chunks] == list(replies.invoke_events(model))
    (entry,) = answers(door)
    assert entry["digest"]["usage"]["output"] == replies.OUTPUT and entry["price"]["usd"] > 0
    assert entry["digest"]["model"] == (MODEL if model.startswith("arn:") else model)


def test_the_anthropic_sdk(bedrock, door):
    """Plain and streamed."""
    keys = {"aws_access_key": "AKIACLIENT", "aws_secret_key": "client", "aws_region": "us-east-1"}
    asked = {"model": MODEL, "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
    with AnthropicBedrock(base_url=door.url, max_retries=0, **keys) as sdk:
        message = sdk.messages.create(**asked)
        assert message.content[0].text == replies.TEXT and message.usage.output_tokens == replies.OUTPUT
        with sdk.messages.stream(**asked) as stream:
            assert "".join(stream.text_stream) == replies.TEXT
            assert stream.get_final_message().usage.output_tokens == replies.OUTPUT
        bedrock.plan = Plan(status=429)
        with pytest.raises(Exception, match="Too many requests"):
            sdk.messages.create(**asked)
    assert {one.key for one in bedrock.requests} == {KEY}
    found = answers(door, 3)
    assert [one["digest"]["stop_reason"] for one in found[:2]] == ["end_turn"] * 2 and found[2]["status"] == 429


CLAUDE_CODE = {
    "User_Agent": "claude-cli/2.1.80 (external, cli)",
    "Accept": "application/json",
    "X_Claude_Code_Session_Id": "4f6c0d1e-0000-4000-8000-000000000001",
    "X_App": "cli",
    "X_Stainless_Lang": "js",
    "Anthropic_Beta": "interleaved-thinking-2025-05-14",
    "X_Amzn_Bedrock_Trace": "ENABLED",
}


def test_claude_code_without_credentials(bedrock, door):
    """It asks for profiles, probes, and streams; a colon stands as it is in its paths. One conversation, one session."""
    listed = ask(door.port, "/inference-profiles?type=SYSTEM_DEFINED", method="GET", **CLAUDE_CODE)
    assert json.loads(listed.body)["inferenceProfileSummaries"][0]["inferenceProfileId"] == MODEL
    probe = ask(door.port, INVOKE, ASKED, **CLAUDE_CODE)
    answer = ask(door.port, STREAM, ASKED, **CLAUDE_CODE)
    assert probe.status == answer.status == 200
    listing, probed, streamed = bedrock.requests
    assert answer.body == streamed.sent and probe.body == probed.sent
    assert streamed.path == STREAM.replace(":", "%3A") and listing.head.query == "type=SYSTEM_DEFINED"
    assert {one.key for one in bedrock.requests} == {KEY} and streamed.body == ASKED
    for name, value in CLAUDE_CODE.items():
        assert streamed.get(name.lower().replace("_", "-")) == value
    signed = streamed.get("authorization").partition("SignedHeaders=")[2].partition(",")[0].split(";")
    assert {"accept", "anthropic-beta", "content-type", "host", "x-amz-date", "x-amzn-bedrock-trace"} <= set(signed)
    found = answers(door, 3)
    assert answer.headers["x-amzn-requestid"] == found[2]["headers"]["X-Amzn-Requestid"][0]
    sessions = {one["_meta"]["session"] for one in found if one.get("digest")}
    (start,) = [one for one in door.entries() if one["type"] == "session_start" and one["_meta"]["session"] in sessions]
    assert (start["client_session"], start["provider"]) == (CLAUDE_CODE["X_Claude_Code_Session_Id"], "bedrock")
    assert raws(found[2]).count("data: ") == len(list(replies.invoke_events(MODEL)))


# --- streams


@pytest.mark.parametrize("target", [STREAM, CONVERSE_STREAM])
def test_each_frame_passes_when_it_comes(bedrock, door, target):
    """Alone, whole, before the next one is there; and the record knows when."""
    gate = threading.Semaphore(0)
    bedrock.plan = Plan(gate=gate)
    sent = list(replies.converse_stream() if target == CONVERSE_STREAM else replies.invoke_stream(MODEL))
    link, file = begin(door.port, target)
    with link, file:
        got, times = [], []
        for _ in sent:
            times.append(time.time())
            gate.release()
            got.append(chunk(file))
            times.append(time.time())
        assert got == sent and chunk(file) == b""
    (entry,) = answers(door)
    seen = [datetime.fromisoformat(item["ts"]).timestamp() for item in entry["chunks"] if item["raw"].endswith("\n\n")]
    assert len(seen) == len(sent)
    for number, at in enumerate(seen):
        assert times[2 * number] - 0.01 <= at <= times[2 * number + 1] + 0.01


def test_a_very_long_stream(bedrock, door, client):
    """Thousands of frames: the client gets each, and each stands in the log."""
    bedrock.plan = Plan(words=5_000)
    events = told(client.converse_stream(modelId=MODEL, messages=HI)["stream"])
    assert sum("contentBlockDelta" in event for event in events) == 5_000
    (entry,) = answers(door)
    assert (
        raws(entry).count("event: contentBlockDelta\n") == 5_000
        and entry["digest"]["usage"]["output"] == replies.OUTPUT
    )
    assert entry["size"] == len(bedrock.requests[0].sent)


def test_an_answer_of_25_megabytes(bedrock, door):
    """To the last byte, at a pace at which a busy machine writes them down."""
    body = b'{"output":"' + os.urandom(12_500_000).hex().encode() + b'"}'
    bedrock.plan = Plan(body=body, pause=0.02)
    assert ask(door.port, INVOKE).body == body
    (entry,) = answers(door)
    assert entry["body"].encode() == body and entry["size"] == len(body)


def test_a_request_of_nearly_25_megabytes_and_one_beyond(bedrock, door):
    """The one is sent whole and signed, the other is refused with what is too much."""
    body = ASKED[:-1] + b',"pad":"' + b"x" * 24_900_000 + b'"}'
    assert ask(door.port, INVOKE, body).status == 200
    assert bedrock.requests[0].body == body and bedrock.requests[0].key == KEY
    beyond = ask(door.port, INVOKE, body + b" " * 2_000_000)
    assert beyond.status == 413 and "bedrock.max_body" in beyond.message
    assert len(bedrock.requests) == 1
    _, entry = answers(door, 2)
    assert (entry["ending"], entry["answered"], entry["status"]) == ("refused", 413, None)


# --- troubles of Bedrock's


def test_throttling_passes_as_it_is(bedrock, door, client):
    """Status, type and words are AWS's."""
    bedrock.plan = Plan(status=429)
    with pytest.raises(ClientError, match="ThrottlingException") as caught:
        client.converse(modelId=MODEL, messages=HI)
    assert caught.value.response["Error"]["Message"] == bedrock.plan.message
    (entry,) = answers(door)
    assert entry["status"] == 429 and entry["digest"]["error_type"] == "ThrottlingException"
    assert entry["headers"]["X-Amzn-Errortype"][0].startswith("ThrottlingException")


@pytest.mark.parametrize("kind", ["throttlingException", "modelStreamErrorException", "internalServerException"])
def test_an_exception_within_a_stream(bedrock, door, client, kind):
    """The client meets it; the record says what it was, and what came before it."""
    bedrock.plan = Plan(frames=[*list(replies.converse_stream())[:3], frames.exception(kind, "No more.")])
    with pytest.raises(EventStreamError, match=kind):
        told(client.converse_stream(modelId=MODEL, messages=HI)["stream"])
    (entry,) = answers(door)
    assert entry["digest"]["error_type"] == kind and entry["digest"]["partial"] and entry["ending"] == "complete"
    assert f"exception:{kind}" in raws(entry) and " from" in raws(entry)


def test_a_bad_frame_reaches_the_client_and_is_counted(bedrock, door):
    """Its bytes pass as all others."""
    sent = list(replies.converse_stream())
    sent[2] = frames.damaged(sent[2])
    bedrock.plan = Plan(frames=sent)
    assert ask(door.port, CONVERSE_STREAM).body == b"".join(sent)
    (entry,) = answers(door)
    assert entry["bad_frames"] == 1 and "checksum" in entry["decode_error"] and entry["digest"]["usage"]
    deadline = time.monotonic() + 60
    while json.loads(ask(door.port, "/health/bedrock", method="GET").body)["decode_errors"] != 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_bedrock_breaks_off_within_a_frame(bedrock, door, client):
    """A reset for the client, no end; what came stands in the log."""
    sent = b"".join(replies.converse_stream())
    bedrock.plan = Plan(cut=300)
    with pytest.raises(ProtocolError):
        told(client.converse_stream(modelId=MODEL, messages=HI)["stream"])
    (entry,) = answers(door)
    assert entry["ending"] == "upstream_failed" and entry["size"] == 300 and entry["digest"]["partial"]
    (rest,) = [base64.b64decode(item["frame"]) for item in entry["chunks"] if "frame" in item]
    assert sent[:300].endswith(rest) and "messageStart" in raws(entry) and "bad_frames" not in entry


def test_a_stream_that_ends_within_a_frame(bedrock, door):
    """Properly ended on the wire, and yet not whole: the record says so."""
    bedrock.plan = Plan(cut=300, ends=True)
    assert ask(door.port, CONVERSE_STREAM).body == b"".join(replies.converse_stream())[:300]
    (entry,) = answers(door)
    assert entry["ending"] == "complete" and entry["digest"]["partial"]
    assert entry["decode_error"] == "the stream ends within a frame" and "frame" in entry["chunks"][-1]


def test_a_signature_that_bedrock_refuses(start, bedrock):
    """The secret is wrong: AWS's own words reach the client and the log."""
    door = start("--port", "0", env=variables(bedrock, **CREDENTIALS | {"AWS_SECRET_ACCESS_KEY": "wrong"}))
    answer = ask(door.port, INVOKE)
    assert answer.status == 403 and "does not match" in answer.message
    assert answer.headers["x-amzn-errortype"].startswith("InvalidSignatureException")
    assert answers(door)[0]["status"] == 403


# --- clients that leave


@pytest.mark.parametrize(("after", "ending"), [(3, "client_gone"), (-1, "complete")])
def test_a_client_that_leaves(bedrock, door, after, ending):
    """Before the end it is gone; after messageStop it has missed nothing."""
    gate = threading.Semaphore(0)
    bedrock.plan = Plan(gate=gate)
    sent = list(replies.converse_stream())
    after %= len(sent)
    link, file = begin(door.port, CONVERSE_STREAM)
    with link, file:
        for number in range(after):
            gate.release()
            assert chunk(file) == sent[number]
        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    bedrock.wait_for(lambda: bedrock.requests[0].gone)
    (entry,) = answers(door)
    assert entry["ending"] == ending and raws(entry).count("\n\n") == after
    assert entry.get("wire_ending") == ("client_gone" if ending == "complete" else None)


def test_the_keeper_is_killed_within_a_stream(bedrock, door):
    """The client does not notice, and the call is recorded once, whole."""
    gate = threading.Semaphore(0)
    bedrock.plan = Plan(gate=gate)
    sent = list(replies.invoke_stream(MODEL))
    link, file = begin(door.port, STREAM)
    with link, file:
        for number in range(4):
            gate.release()
            assert chunk(file) == sent[number]
        os.kill(_keeper(door.pid), signal.SIGKILL)
        for one in sent[4:]:
            gate.release()
            assert chunk(file) == one
        assert chunk(file) == b""
    (entry,) = answers(door)
    assert entry["ending"] == "complete" and entry["size"] == sum(map(len, sent))
    assert len(entry["chunks"]) == len(sent) and entry["digest"]["usage"]["output"] == replies.OUTPUT


def _keeper(daemon: int) -> int:
    children = Path(f"/proc/{daemon}/task/{daemon}/children").read_text().split()
    return next(int(pid) for pid in children if b"llm_proxy.keeper" in Path(f"/proc/{pid}/cmdline").read_bytes())


# --- credentials


def test_no_credentials(start, bedrock):
    """A clear 503 in Bedrock's form, which Amazon's library understands."""
    door = start(
        "--port",
        "0",
        env=variables(bedrock, AWS_SHARED_CREDENTIALS_FILE="/nonexistent", AWS_CONFIG_FILE="/nonexistent"),
    )
    with (
        contextlib.closing(boto(door.url)) as client,
        pytest.raises(ClientError, match="no AWS credentials were found") as caught,
    ):
        client.converse(modelId=MODEL, messages=HI)
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 503
    health = json.loads(ask(door.port, "/health/bedrock", method="GET").body)
    assert health["credentials"]["available"] is False and "no AWS credentials" in health["credentials"]["last_error"]
    (entry,) = answers(door)
    assert (entry["ending"], entry["answered"], entry["transport"]) == ("refused", 503, "bedrock")
    assert not bedrock.requests


def test_credentials_that_expire_are_renewed(start, environ):
    """From a process of the user's: when AWS says that they are over, the next call is signed with new ones."""
    old, new = "ASIAOLD00000000000", "ASIANEW00000000000"
    account = Account({old: ("one", "token one"), new: ("two", "token/two+=")})
    aws = Path(environ["HOME"]) / ".aws"
    aws.mkdir()
    keys = aws / "keys.json"
    (aws / "config").write_text(f"[default]\ncredential_process = /bin/cat {keys}\n")

    def give(access: str) -> None:
        secret, token = account.keys[access]
        told = {
            "Version": 1,
            "AccessKeyId": access,
            "SecretAccessKey": secret,
            "SessionToken": token,
            "Expiration": "2100-01-01T00:00:00Z",
        }
        keys.write_text(json.dumps(told))

    give(old)
    with FakeBedrock(account) as bedrock:
        door = start("--port", "0", env=variables(bedrock, AWS_PAGER=""))
        assert ask(door.port, INVOKE).status == 200 and bedrock.requests[-1].key == old
        account.expired.add(old)
        give(new)
        deadline = time.monotonic() + 60
        while (answer := ask(door.port, INVOKE)).status != 200:
            assert answer.status == 403 and "expired" in answer.message, answer.body
            assert time.monotonic() < deadline
            time.sleep(0.2)  # keys that have only just come are not looked for at once
        assert bedrock.requests[-1].key == new
        assert bedrock.requests[-1].get("x-amz-security-token") == "token/two+="
    assert not any(
        "token one" in file.read_text() or "token/two" in file.read_text() for file in door.logs.rglob("*.jsonl")
    )


# --- who may


def test_web_pages_are_refused(bedrock, door):
    """By Origin, by Sec-Fetch-Site, by a Host that is not ours; nothing is spent."""
    for more in ({"Origin": "https://evil.example"}, {"Sec_Fetch_Site": "cross-site"}, {"host": "evil.example"}):
        answer = ask(door.port, INVOKE, **{"Content_Type": "text/plain"} | more)
        assert answer.status == 403 and answer.headers["x-llm-proxy-error"] == "not_allowed"
    assert not bedrock.requests


@pytest.mark.skipif(not ROOT, reason="another user's program needs root to be started")
def test_another_users_program_is_refused(bedrock, door):
    """The very same call, from another uid."""
    script = (
        "import os, sys, http.client\n"
        "''.encode('idna')\n"  # imported now: the interpreter may lie where the other user cannot read
        "os.setgid(65534); os.setuid(65534)\n"
        "link = http.client.HTTPConnection('127.0.0.1', int(sys.argv[1]), timeout=20)\n"
        "link.request('POST', sys.argv[2], b'{}', {'Content-Type': 'application/json'})\n"
        "answer = link.getresponse(); print(answer.status, answer.read().decode())\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, str(door.port), INVOKE], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("403 {"), done.stdout
    assert not bedrock.requests
    assert ask(door.port, INVOKE).status == 200


def test_the_secret_in_its_three_places(start, bedrock):
    """Where it is asked for, nobody comes in without it; and it stands in no record."""
    door = start("--port", "0", env=variables(bedrock) | {"LLM_PROXY_BEDROCK_SECRET": "true"})
    assert door.port
    secret = (door.state / "secret").read_text().strip()
    for refused in (
        ask(door.port, INVOKE),
        ask(door.port, INVOKE, X_Api_Key=secret + "x"),
        ask(door.port, f"/secret/x/{INVOKE[1:]}"),
    ):
        assert refused.status in (401, 403) and refused.message
    assert not bedrock.requests
    let_in: list[Answer] = [
        ask(door.port, INVOKE, Authorization=f"Bearer {secret}"),
        ask(door.port, INVOKE, X_Api_Key=secret),
        ask(door.port, f"/secret/{secret}{INVOKE}"),
    ]
    assert [one.status for one in let_in] == [200] * 3
    assert all(secret.encode() not in one.head.raw for one in bedrock.requests) and len(bedrock.requests) == 3
    with contextlib.closing(boto(f"{door.url}/secret/{secret}")) as client:
        assert client.converse(modelId=MODEL, messages=HI)["stopReason"] == "end_turn"
    entries = door.entries(
        60, lambda found: sum(one["type"] == "response" and one["status"] == 200 for one in found) == 4
    )
    assert secret not in json.dumps(entries)
    door.stop()
    assert not [
        file
        for file in door.home.rglob("*")
        if file.is_file() and file.name != "secret" and secret.encode() in file.read_bytes()
    ]


def test_other_machines_need_a_token(start, bedrock):
    """Without one it does not start; what is missing is said."""
    open_to_all = start("--port", "0", "--host", "0.0.0.0", env=variables(bedrock))
    assert open_to_all.wait() == 78  # EX_CONFIG
    assert any("listen.token" in line for line in open_to_all.lines)


def test_without_a_region_there_is_no_door(start, bedrock):
    """It says how to get one."""
    door = start("--port", "0")
    answer = ask(door.port, INVOKE)
    assert answer.status == 503 and "BEDROCK_REGION" in answer.message
    assert not bedrock.requests


@pytest.mark.parametrize("streams", [False, True])
def test_a_conversation_is_one_session(bedrock, door, client, streams):
    """Amazon's library names none: it is known by what it repeats, asked with Converse and answered by a tool's call."""
    ask_it = (
        (lambda said: told(client.converse_stream(modelId=MODEL, messages=said)["stream"]))
        if streams
        else (lambda said: client.converse(modelId=MODEL, messages=said))
    )
    said = [*HI]
    for question in ("And then?", "And after that?", ""):
        ask_it(said)
        said += [
            {"role": "assistant", "content": [{"text": replies.TEXT}]},
            {"role": "user", "content": [{"text": question}]},
        ]
    ask_it([{"role": "user", "content": [{"text": "Somebody else"}]}])
    found = answers(door, 4)
    assert [one["seq"] for one in found] == [1, 2, 3, 1]
    assert (
        len({one["_meta"]["session"] for one in found[:3]}) == 1
        and len({one["_meta"]["session"] for one in found}) == 2
    )
