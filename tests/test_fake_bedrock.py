"""The fake Bedrock is one: Amazon's own library talks to it, reads its frames, and it believes no wrong signature."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from datetime import UTC, datetime

import boto3
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.eventstream import ChecksumMismatch
from botocore.exceptions import ClientError, EventStreamError
from urllib3.exceptions import ProtocolError

from tests.fakebedrock import Account, FakeBedrock, Plan, Refused, frames, replies
from tests.fakebedrock.server import KEY, SECRET
from tests.fakebedrock.sigv4 import verify

MODEL = "us.anthropic.claude-haiku-4-5-20251001-v1:0"
ASKED = {"messages": [{"role": "user", "content": [{"text": "Hi"}]}]}


@pytest.fixture
def bedrock():
    with FakeBedrock() as fake:
        yield fake


@pytest.fixture
def client():
    """Make one of Amazon's clients; closed behind the test."""
    with contextlib.ExitStack() as stack:
        yield lambda *args, **keys: stack.enter_context(contextlib.closing(_client(*args, **keys)))


def told(stream) -> list:
    """All events; the connection is given back whatever comes."""
    with contextlib.closing(stream):
        return list(stream)


def _client(fake: FakeBedrock, service: str = "bedrock-runtime", **keys: str):
    keys = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET} | keys
    config = Config(retries={"max_attempts": 0}, read_timeout=10)
    return boto3.client(service, region_name="us-west-2", endpoint_url=fake.url, config=config, **keys)


def test_every_operation(bedrock, client):
    """As its service model says."""
    runtime = client(bedrock)
    assert runtime.converse(modelId=MODEL, **ASKED)["usage"]["outputTokens"] == replies.OUTPUT
    said = told(runtime.converse_stream(modelId=MODEL, **ASKED)["stream"])
    assert [next(iter(one)) for one in said[-3:]] == ["contentBlockStop", "messageStop", "metadata"]
    plain = runtime.invoke_model(modelId=MODEL, body=b"{}")
    assert json.loads(plain["body"].read())["content"][0]["text"] == replies.TEXT
    chunks = [
        json.loads(event["chunk"]["bytes"])
        for event in told(runtime.invoke_model_with_response_stream(modelId=MODEL, body=b"{}")["body"])
    ]
    assert chunks == list(replies.invoke_events(MODEL))
    counted = runtime.count_tokens(modelId=MODEL, input={"converse": ASKED})
    assert counted["inputTokens"] == replies.INPUT
    listed = client(bedrock, "bedrock").list_inference_profiles(typeEquals="SYSTEM_DEFINED")
    assert listed["inferenceProfileSummaries"][0]["inferenceProfileId"] == MODEL
    assert client(bedrock, "bedrock").list_foundation_models()["modelSummaries"]
    assert {one.key for one in bedrock.requests} == {KEY} and len(bedrock.requests) == 7


TARGETS = [
    "/model/us.anthropic.claude-v1%3A0/invoke",
    "/model/us.anthropic.claude-v1:0/invoke",
    "/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A1%3Ainference-profile%2Fx/converse",
    "/inference-profiles?type=SYSTEM_DEFINED&maxResults=10",
]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("token", ["", "a/token+with=signs"])
def test_what_amazons_library_signs_is_believed(target, token):
    """And nothing that differs in the body, the path, a signed header, the token or the secret."""
    account = Account({KEY: (SECRET, token)})
    request = AWSRequest(
        "POST", f"http://localhost:8080{target}", data=b"{}", headers={"Accept": "a  b", "Host": "localhost:8080"}
    )
    SigV4Auth(Credentials(KEY, SECRET, token or None), "bedrock", "us-west-2").add_auth(request)
    sent = tuple((name.encode(), value.encode()) for name, value in request.headers.items())
    assert verify(account, "POST", target, sent, b"{}") == KEY
    wrong = [
        (account, target, sent, b"{ }"),
        (account, target + "x", sent, b"{}"),
        (account, target, tuple((n, v.replace(b"a", b"c")) if n == b"Accept" else (n, v) for n, v in sent), b"{}"),
        (account, target, (*sent, (b"host", b"localhost:8080")), b"{}"),
        (account, target, (*sent, (b"x-amz-more", b"1")), b"{}"),
        (account, target, tuple(one for one in sent if one[0] != b"Authorization"), b"{}"),
        (Account({KEY: (SECRET, token + "x")}), target, sent, b"{}"),
        (Account({KEY: (SECRET + "x", token)}), target, sent, b"{}"),
        (Account({"AKIA": (SECRET, token)}), target, sent, b"{}"),
        (Account({KEY: (SECRET, token)}, region="us-east-1"), target, sent, b"{}"),
        (Account({KEY: (SECRET, token)}, expired={KEY}), target, sent, b"{}"),
    ]
    for spoiled in wrong:
        with pytest.raises(Refused):
            verify(spoiled[0], "POST", *spoiled[1:])
    with pytest.raises(Refused, match="expired"):
        verify(account, "POST", target, sent, b"{}", datetime(2020, 1, 1, tzinfo=UTC))


def test_amazons_own_example():
    """The request of the documentation for IAM, whose signature is published there."""
    account = Account({"AKIDEXAMPLE": ("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "")}, "us-east-1", "iam")
    scope = b"AKIDEXAMPLE/20150830/us-east-1/iam/aws4_request"
    names, signature = (
        b"content-type;host;x-amz-date",
        b"5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7",
    )
    sent = (
        (b"Host", b"iam.amazonaws.com"),
        (b"Content-Type", b"application/x-www-form-urlencoded; charset=utf-8"),
        (b"X-Amz-Date", b"20150830T123600Z"),
        (
            b"Authorization",
            b"AWS4-HMAC-SHA256 Credential=" + scope + b", SignedHeaders=" + names + b", Signature=" + signature,
        ),
    )
    when = datetime(2015, 8, 30, 12, 36, tzinfo=UTC)
    assert verify(account, "GET", "/?Action=ListUsers&Version=2010-05-08", sent, b"", when) == "AKIDEXAMPLE"


def test_its_troubles(bedrock, client):
    """Amazon's library meets each as what it is."""
    runtime = client(bedrock)
    with pytest.raises(ClientError, match="InvalidSignatureException"):
        client(bedrock, aws_secret_access_key="wrong").converse(modelId=MODEL, **ASKED)
    bedrock.plan = Plan(status=429)
    with pytest.raises(ClientError, match=r"ThrottlingException.*Too many requests"):
        runtime.converse(modelId=MODEL, **ASKED)
    for kind in ("throttlingException", "modelStreamErrorException", "internalServerException"):
        bedrock.plan = Plan(frames=[next(replies.converse_stream()), frames.exception(kind, "No.")])
        with pytest.raises(EventStreamError, match=rf"{kind}.*No\."):
            told(runtime.converse_stream(modelId=MODEL, **ASKED)["stream"])
    bedrock.plan = Plan(frames=[frames.error("InternalFailure", "Oops")])
    with pytest.raises(EventStreamError, match=r"InternalFailure.*Oops"):
        told(runtime.converse_stream(modelId=MODEL, **ASKED)["stream"])
    bedrock.plan = Plan(frames=[frames.damaged(one) for one in replies.converse_stream()])
    with pytest.raises(ChecksumMismatch):
        told(runtime.converse_stream(modelId=MODEL, **ASKED)["stream"])
    bedrock.plan = Plan(cut=200)
    with pytest.raises(ProtocolError):
        told(runtime.converse_stream(modelId=MODEL, **ASKED)["stream"])
    assert len(bedrock.requests[-1].sent) == 200


def test_a_gate_lets_frames_go_one_by_one(bedrock, client):
    """And a client that leaves is noticed."""
    gate = threading.Semaphore(0)
    bedrock.plan = Plan(gate=gate)
    answer = client(bedrock).converse_stream(modelId=MODEL, **ASKED)["stream"]
    events = iter(answer)
    for expected in ("messageStart", "contentBlockDelta"):
        gate.release()
        assert expected in next(events)
    answer.close()
    bedrock.wait_for(lambda: bedrock.requests[0].gone)


def test_no_signature_no_answer(bedrock):
    """A request without one is refused as AWS refuses it."""
    with socket.create_connection(("127.0.0.1", bedrock.port), 5) as link:
        link.sendall(b"POST /model/x/invoke HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: link.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 403") and b"MissingAuthenticationTokenException" in answer
