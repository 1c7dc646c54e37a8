"""A home with real traffic in its record: SDKs through a real daemon to the fake provider, in a process of its own."""

import json
import os
import socket
import subprocess
import sys

import anthropic
import openai
import pytest

QUESTIONS = ("Explain how rings work in the **journal**", "And what about segments?", "Thanks, summarise `fdatasync`")
HOSTILE = (
    "unreachable \x1b[31mred\x07 \x9b32m\x7f\u202ereversed; a long title so that a row of a table is wider than what it stands on, "
    "which is no wider than it is\nVec<T>"
)


class Provider:
    """The fake provider alone; `port` once it listens."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fakeprovider"], stdout=subprocess.PIPE, text=True, cwd=os.getcwd()
        )
        self.port = int(self.process.stdout.readline().split()[1])

    def stop(self):
        self.process.terminate()
        self.process.wait(10)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def provider():
    """One for the tests of a file."""
    started = Provider()
    yield started
    started.stop()


def converse(daemon, port):
    """Nine calls: three of one Messages conversation, a chat with a fork, a Responses chain, and one that fails."""
    claude = anthropic.Anthropic(
        base_url=f"{daemon.url}/anthropic/127.0.0.1:{port}", api_key="sk-ant-api03-0123456789abcdef", max_retries=0
    )
    gpt = openai.OpenAI(
        base_url=f"{daemon.url}/openai/127.0.0.1:{port}/v1", api_key="sk-proj-0123456789abcdef", max_retries=0
    )
    with claude, gpt:
        said = []
        for question in QUESTIONS:
            said.append({"role": "user", "content": question})
            with claude.messages.stream(
                model="claude-sonnet-4-6", max_tokens=100, messages=said, system="Be terse"
            ) as stream:
                said.append({"role": "assistant", "content": stream.get_final_text()})
        chat = []
        for question in ("hello openai", "go on"):
            chat.append({"role": "user", "content": question})
            answer = gpt.chat.completions.create(model="gpt-4.1-mini", messages=chat)
            chat.append({"role": "assistant", "content": answer.choices[0].message.content})
        gpt.chat.completions.create(
            model="gpt-4.1-mini", messages=[*chat[:2], {"role": "user", "content": "elsewhere then"}]
        )
        first = gpt.responses.create(model="gpt-5", input="respond please")
        gpt.responses.create(model="gpt-5", input="more", previous_response_id=first.id)
    fail(daemon)


def fail(daemon, text=HOSTILE):
    """A call to nobody, in one piece: what comes after the refusal would not be read."""
    body = {"model": "claude-opus-4-5", "max_tokens": 1, "messages": [{"role": "user", "content": text}]}
    data = json.dumps(body).encode()
    head = (
        "POST /anthropic/127.0.0.1:1/v1/messages HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", daemon.port), 10) as link:
        link.sendall(head.encode() + data)
        assert link.recv(12) == b"HTTP/1.1 502"
