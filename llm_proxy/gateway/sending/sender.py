"""Sends calls to providers: each one's path, credential and fields, by way of the proxy.

What a caller's own head says goes no further, but for the few fields of `_PASSED`. Leaves out connections (`client`),
what is tried after a failure, and how a request is put into a provider's words.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from llm_proxy.dialects.reading import read, read_value
from llm_proxy.gateway.facts import Provider, ProviderKey, Target
from llm_proxy.gateway.options import Options
from llm_proxy.gateway.refusals import Refusal
from llm_proxy.gateway.sealing import Sealer, Unreadable
from llm_proxy.gateway.sending import addresses, listing
from llm_proxy.gateway.sending.addresses import Address, Addresses
from llm_proxy.gateway.sending.attribution import Attribution
from llm_proxy.gateway.sending.client import Answer, Broken, Client, Unreachable
from llm_proxy.gateway.sending.events import Retelling
from llm_proxy.gateway.translate.bedrock import invoked
from llm_proxy.gateway.translate.errors import Problem, read_problem
from llm_proxy.wire import eventstream, sigv4

VERSION: Final = "2023-06-01"  # of Anthropic's API, where a caller names none
_OURS: Final = "x-llm-proxy-error"  # the proxy's own answers have it
_LARGEST_ERROR: Final = 1 << 20  # bytes
_SHOWABLE = re.compile(r"[\t\x20-\x7e]*")
_LONGEST: Final = 4096  # characters of a caller's field; all of them and ours must fit into one head

# API -> the fields of a caller that go on to the provider. No others do: least of all credentials, the accounts they
# belong to, or what could bring one caller another's answer (Idempotency-Key).
_PASSED: Final[Mapping[str, tuple[str, ...]]] = {
    "anthropic": ("anthropic-version", "anthropic-beta"),
    "count_tokens": ("anthropic-version", "anthropic-beta"),
    "responses": ("openai-beta",),
}
# By which conversations are told apart, in the record; clients send them to their providers too.
_SESSIONS: Final = ("x-claude-code-session-id", "x-session-id", "session-id", "session_id", "thread-id")
# Betas of Anthropic's API that Bedrock takes in a body; it refuses a request with any other.
_BEDROCK_BETAS = re.compile(
    r"(?:computer-use|token-efficient-tools|interleaved-thinking|output-128k|dev-full-thinking|context-1m"
    r"|context-management|effort|tool-search-tool|tool-examples|fine-grained-tool-streaming|compact)-\d{4}-\d\d-\d\d"
)
_GOES_ON: Final = {
    api: frozenset(_SESSIONS + _PASSED.get(api, ())) for paths in addresses.PATHS.values() for api in paths
}
_JSON: Final = ("Content-Type", "application/json")


class _AwsKey(msgspec.Struct):
    access_key_id: str
    secret_access_key: str
    session_token: str = ""


_AWS_KEY = msgspec.json.Decoder(_AwsKey)
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Rejected(Exception):
    """The provider answered, and it was an error; `problem` has its words."""

    def __init__(self, status: int, problem: Problem) -> None:
        super().__init__(problem.message)
        self.status = status
        self.problem = problem


def named(key: ProviderKey) -> str:
    """By its label and id, as who manages it knows it."""
    return f"{key.label!r} (id {key.id})" if key.label else f"with the id {key.id}"


class Sender:
    """Calls over the proxy's Unix socket. One for a process."""

    def __init__(self, socket: str, sealer: Sealer, options: Options) -> None:
        self.client = Client(socket)
        self._sealer = sealer
        self._addresses = Addresses(options.bases, options.allow)
        self._agent = ("User-Agent", f"llm-proxy/{options.version}" if options.version else "llm-proxy")

    def close(self) -> None:
        """Ends what is under way. Idempotent."""
        self.client.close()

    def speaks(self, key: ProviderKey, model: str) -> tuple[str, ...]:
        """The APIs that a model is spoken to in: names of `translate.APIS`, and `embeddings`, `completions`,
        `count_tokens`, `embed_gemini`. The first is the one to translate to.
        """
        return addresses.speaks(key.provider, model)

    async def send(
        self,
        target: Target,
        api: str,
        body: bytes,
        *,
        stream: bool,
        headers: Mapping[str, str],
        attribution: Attribution,
        timeout: float,
    ) -> Answer:
        """A call in `api`, which the target speaks; its answer once there is a head, within `timeout` seconds.

        `headers` are the caller's, names in any case. An Anthropic stream by way of Bedrock is told as Anthropic tells
        it. Raises Unreachable, and Refusal 400 for a header or a model's name that cannot be sent.
        """
        key = target.key
        address = self._addresses.call(key.provider, key.base_url, key.region, target.model, api, stream)
        fields = [_JSON, ("Accept-Encoding", "identity"), self._agent, *attribution.headers()]
        passed = _passed(headers, _GOES_ON[api])
        if key.provider is Provider.BEDROCK:
            betas = passed.pop("anthropic-beta", "")
            passed.pop("anthropic-version", None)
            if api == "anthropic":
                body = _enveloped(body, betas)
        elif api in ("anthropic", "count_tokens"):
            passed.setdefault("anthropic-version", VERSION)
        fields += passed.items()
        fields += self._credential(key, "POST", address, body)
        answer = await self._request("POST", address, fields, body, timeout)
        if key.provider is Provider.BEDROCK and api == "anthropic" and _is_amazons(answer):
            return _Retold(answer)
        return answer

    async def models(self, key: ProviderKey) -> list[str]:
        """The ids of what a key opens, in the provider's order. Raises Unreachable, Rejected."""
        return await listing.models(key, self._page)

    async def _page(self, key: ProviderKey, rest: str, timeout: float) -> bytes:
        """One page of a provider's list of models. Raises Unreachable, Rejected."""
        address = self._addresses.models(key.provider, key.base_url, key.region, rest)
        fields = [("Accept", "application/json"), ("Accept-Encoding", "identity"), self._agent]
        if key.provider is Provider.ANTHROPIC:
            fields.append(("anthropic-version", VERSION))
        fields += self._credential(key, "GET", address, b"")
        answer = await self._request("GET", address, fields, b"", timeout)
        try:
            data = await answer.read(listing.LARGEST)
        except Broken as error:
            raise Unreachable(error.code, error.message) from None
        if answer.status != 200:
            told = read_value(data)
            words = told if told is not None else data.decode("utf-8", "replace")
            raise Rejected(answer.status, read_problem(answer.status, answer.headers, words))
        return data

    async def _request(
        self, method: str, address: Address, fields: list[tuple[str, str]], body: bytes, timeout: float
    ) -> Answer:
        """Raises Unreachable, also for what the proxy answers itself."""
        try:
            answer = await self.client.request(method, address.target, fields, body, timeout)
        except ValueError:  # callers' fields were looked at before; what remains is the key
            raise Unreachable("bad_key", "the provider key has characters that no header can hold") from None
        if answer.status >= 400 and _OURS in answer.headers:
            raise await _told_by_proxy(answer)
        coding = answer.headers.get("content-encoding", "identity")
        if coding != "identity":
            answer.close()
            raise Unreachable("bad_response", f"the provider answered in {coding[:40]!r}, which was not asked for")
        return answer

    def _credential(self, key: ProviderKey, method: str, address: Address, body: bytes) -> Iterable[tuple[str, str]]:
        """The fields that prove who pays. Raises Unreachable."""
        try:
            secret = self._sealer.open(key)
        except Unreadable as error:
            words = f"the provider key {named(key)} cannot be read: {error}; whoever manages it gives its api_key anew"
            raise Unreachable("key_unreadable", f"{words} (PATCH /manage/providers/{key.id})") from None
        if key.provider is Provider.ANTHROPIC:
            return (("x-api-key", secret),)
        if key.provider is Provider.GEMINI:
            return (("x-goog-api-key", secret),)
        if key.provider is Provider.BEDROCK and secret.lstrip().startswith("{"):
            return _signed(secret, key.region, method, address, body)
        return (("Authorization", f"Bearer {secret}"),)


class _Retold(Answer):
    """An Anthropic stream by way of Bedrock, as Anthropic's own server-sent events."""

    __slots__ = ("_answer", "_retelling")

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.status = answer.status
        self._headers = {**answer.headers, "content-type": "text/event-stream; charset=utf-8"}
        self._answer = answer
        self._retelling = Retelling()

    async def __anext__(self) -> bytes:
        while True:
            try:
                piece = self._retelling.feed(await self._answer.__anext__())
            except StopAsyncIteration:
                self._retelling.finish()
                raise
            if piece:
                return piece

    def close(self) -> None:
        self._answer.close()


def _is_amazons(answer: Answer) -> bool:
    return answer.headers.get("content-type", "").partition(";")[0].strip().lower() == eventstream.MEDIA_TYPE


def _passed(headers: Mapping[str, str], names: frozenset[str]) -> dict[str, str]:
    """Those of a caller's fields that go on, by lower-case name. Raises Refusal 400."""
    passed = {}
    for name, value in headers.items():
        low = name.lower()
        if low in names:
            if len(value) > _LONGEST or _SHOWABLE.fullmatch(value) is None:
                words = f"{low}: must be printable ASCII of at most {_LONGEST} characters"
                raise Refusal(400, "invalid_header", words, param=low)
            passed[low] = value
    return passed


async def _told_by_proxy(answer: Answer) -> Unreachable:
    code = answer.headers[_OURS]
    try:
        problem = read_problem(answer.status, answer.headers, read_value(await answer.read(_LARGEST_ERROR)))
        words = problem.message.removeprefix("llm-proxy: ")
    except Broken as error:
        words = error.message
    return Unreachable(code[:100], words, timed_out=answer.status == 504)


def _enveloped(body: bytes, betas: str) -> bytes:
    """A Messages body for InvokeModel: its values byte for byte."""
    fields: dict[str, Any] | None = read(_OBJECT, body)
    if fields is None:
        raise Refusal(400, "invalid_json", "the body is not a JSON object")
    told = [beta for beta in map(str.strip, betas.split(",")) if _BEDROCK_BETAS.fullmatch(beta)]
    return msgspec.json.encode(invoked(fields, told))


def _signed(secret: str, region: str, method: str, address: Address, body: bytes) -> Iterable[tuple[str, str]]:
    """Raises Unreachable."""
    key = read(_AWS_KEY, secret)
    if key is None:
        raise Unreachable("bad_key", "the provider key is not written as Bedrock's must be")
    signature = sigv4.sign(
        sigv4.Key(key.access_key_id, key.secret_access_key, key.session_token),
        sigv4.Scope(region, "bedrock"),
        time.time(),
        method=method.encode(),
        target=address.path.encode(),
        fields=((b"host", address.host.encode()),),
        body_sha256=hashlib.sha256(body).hexdigest(),
    )
    return [(name.decode(), value.decode()) for name, value in signature.fields]
