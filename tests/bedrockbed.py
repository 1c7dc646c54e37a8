"""What the tests of the Bedrock door stand on: a daemon before the fake Bedrock, a raw client, and Amazon's libraries."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from typing import Any

import boto3
from botocore.config import Config

from tests.fakebedrock import FakeBedrock
from tests.fakebedrock.server import KEY, SECRET

MODEL = "us.anthropic.claude-haiku-4-5-20251001-v1:0"
HI = [{"role": "user", "content": [{"text": "Hi"}]}]
ASKED = json.dumps(
    {"anthropic_version": "bedrock-2023-05-31", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
).encode()
CREDENTIALS = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}


def variables(fake: FakeBedrock, **more: str) -> dict[str, str]:
    """The environment of a daemon whose Bedrock is the fake; nothing asks the machine it runs on for a role."""
    return {
        "BEDROCK_REGION": fake.account.region,
        "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": fake.url,
        "AWS_EC2_METADATA_DISABLED": "true",
    } | (more or CREDENTIALS)


def boto(url: str, service: str = "bedrock-runtime", **keys: str) -> Any:
    """Amazon's client, with keys that mean nothing to the fake. It never tries again."""
    keys = {
        "aws_access_key_id": "AKIACLIENT",
        "aws_secret_access_key": "client",
        "aws_session_token": "of the client",
    } | keys
    config = Config(retries={"max_attempts": 0}, read_timeout=20, connect_timeout=10)
    return boto3.client(service, region_name="us-east-1", endpoint_url=url, config=config, **keys)


def told(stream: Any) -> list[Any]:
    """All events; the connection is given back whatever comes."""
    with contextlib.closing(stream):
        return list(stream)


class Answer:
    """What came back: `body` without chunks; `pieces` as they were read, each a chunk."""

    def __init__(self, answer: http.client.HTTPResponse, body: bytes) -> None:
        self.status = answer.status
        self.headers = {name.lower(): value for name, value in answer.getheaders()}
        self.body = body

    @property
    def message(self) -> str:
        return str(json.loads(self.body)["message"])


def ask(port: int, target: str, body: bytes = ASKED, method: str = "POST", host: str = "", **fields: str) -> Answer:
    """One request as it is written here, unsigned; `fields` with _ for -."""
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    with contextlib.closing(link):
        link.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        link.putheader("Host", host or f"127.0.0.1:{port}")
        for name, value in ({"Content-Type": "application/json"} | fields).items():
            link.putheader(name.replace("_", "-"), value)
        if method == "POST":
            link.putheader("Content-Length", str(len(body)))
        link.endheaders(body if method == "POST" else None)
        answer = link.getresponse()
        return Answer(answer, answer.read())


def begin(port: int, target: str, body: bytes = ASKED) -> tuple[socket.socket, Any]:
    """A request on a socket of its own, and its answer as a file, whose head has been read."""
    link = socket.create_connection(("127.0.0.1", port), 20)
    head = f"POST {target} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    link.sendall(head.encode() + body)
    file = link.makefile("rb")
    while file.readline() not in (b"\r\n", b""):
        pass
    return link, file


def chunk(file: Any) -> bytes:
    """The next chunk's payload; empty at the end."""
    size = int(file.readline(), 16)
    data = file.read(size)
    file.readline()
    return bytes(data)
