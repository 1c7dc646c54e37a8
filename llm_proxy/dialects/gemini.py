"""Google's Gemini API, also on Vertex AI and behind Gemini CLI's login: generateContent and its streams.

Streams come as server-sent events or as one JSON array that grows. Counting tokens and embeddings tell their model,
embeddings their tokens. Leaves out the Live API, files and caches.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

import msgspec

from llm_proxy.dialects.content import Content
from llm_proxy.dialects.digest import Answer, Asked, Message, Part, PartKind, Usage
from llm_proxy.dialects.errors import provider_error
from llm_proxy.dialects.reading import (
    count,
    decoder,
    events,
    failure,
    mapping,
    read,
    read_value,
    sequence,
    streamed,
    text,
    written,
)

Fields = dict[str, Any]

_HUMP = re.compile(r"(?=[A-Z])")


@lru_cache(maxsize=256)
def _snake(name: str) -> str:
    return _HUMP.sub("_", name).lower()


def _get(fields: Fields, name: str) -> Any:
    """Google's JSON takes both spellings of a name (protobuf's JSON mapping)."""
    value = fields.get(name)
    return fields.get(_snake(name)) if value is None else value


# --- requests

_MODEL = re.compile(r".*/(?:models|tunedModels|endpoints)/([^/:]+).*", re.DOTALL)
_APIS = (("ountTokens", "gemini.count_tokens"), ("mbedContent", "gemini.embed"))


def asked(path: str, body: bytes) -> Asked:
    """What the request asks. The model is named in the path. Never raises."""
    method = path.rpartition(":")[2]
    api = next((api for name, api in _APIS if name in method), "gemini.generate")
    named = _MODEL.fullmatch(path)
    model = unquote(named[1]) if named else ""
    given = read_value(body)
    if type(given) is not dict:
        return Asked(api, model, trouble="the request is no JSON object")
    # Gemini CLI's login puts the request into an envelope, counting and batched embeddings have their own.
    request = mapping(given.get("request")) or mapping(_get(given, "generateContentRequest")) or given
    config = mapping(_get(request, "generationConfig"))
    return Asked(
        api=api,
        model=model or text(given.get("model")).removeprefix("models/"),
        system="\n\n".join(part.text for part in _parts(_get(request, "systemInstruction"))),
        messages=tuple(_messages(request)),
        tools=tuple(name for tool in sequence(request.get("tools")) for name in _tools(mapping(tool))),
        stream=method.startswith("stream"),
        max_tokens=count(_get(config, "maxOutputTokens")),
        service_tier=_tier(request),
    )


def _messages(request: Fields) -> Iterator[Message]:
    """The contents; those of the model in a row are one message, for some clients keep every chunk as its own."""
    said: list[Part] = []
    embedded = [mapping(one).get("content") for one in sequence(request.get("requests"))]
    contents = request.get("contents")
    for content in contents if type(contents) is list else [contents, request.get("content"), *embedded]:
        parts = _parts(content)
        if mapping(content).get("role") == "model":
            said += parts
            continue
        if said:
            yield Message("assistant", _merged(said))
            said = []
        if parts:
            yield Message(_role(parts), _merged(parts))
    if said:
        yield Message("assistant", _merged(said))


def _role(parts: Iterable[Part]) -> str:
    return "tool" if all(part.kind == PartKind.TOOL_RESULT for part in parts) else "user"


def _tools(tool: Fields) -> Iterator[str]:
    """The functions declared, or the name of a tool of Google's own."""
    declared = _get(tool, "functionDeclarations")
    if declared is None:
        yield from tool
    for function in sequence(declared):
        yield text(mapping(function).get("name"))


# Vertex tells what a request was charged as in its own words.
_TRAFFIC = {"ON_DEMAND_PRIORITY": "priority", "ON_DEMAND_FLEX": "flex", "PROVISIONED_THROUGHPUT": "provisioned"}


def _tier(fields: Fields) -> str:
    return text(_get(fields, "serviceTier")) or _TRAFFIC.get(text(_get(fields, "trafficType")), "")


# --- pieces


def _parts(content: Any) -> list[Part]:
    """The pieces of a content: an object with parts, and in system instructions also a bare text or part."""
    if type(content) is str:
        return [Part(PartKind.TEXT, content)]
    fields = mapping(content)
    given = fields.get("parts") if "parts" in fields else content
    pieces = given if type(given) is list else [given]
    return [part for piece in pieces for part in _piece(mapping(piece))]


def _piece(piece: Fields) -> Iterator[Part]:
    said = piece.get("text")
    if type(said) is str:
        if said:
            yield Part(PartKind.THINKING if piece.get("thought") is True else PartKind.TEXT, said)
        return
    for name, known in _PIECES.items():
        given = _get(piece, name)
        if given is not None:
            yield known(mapping(given))
            return
    name = next((name for name, value in piece.items() if type(value) is dict), "")
    if name:
        yield Part(PartKind.OTHER, name=name)


def _function_call(call: Fields) -> Part:
    return Part(PartKind.TOOL_CALL, _arguments(call.get("args")), text(call.get("name")), text(call.get("id")))


def _arguments(given: Any) -> str:
    return written(given) if given else "{}"


def _function_response(result: Fields) -> Part:
    """By custom the result is in `output` or `result`, a failure in `error`."""
    told = mapping(result.get("response"))
    said = next((told[name] for name in ("output", "result", "error") if told.get(name)), told)
    failed = bool(told.get("error"))
    words = said if type(said) is str else written(said)
    return Part(PartKind.TOOL_RESULT, words, text(result.get("name")), text(result.get("id")), failed)


def _tool_call(call: Fields) -> Part:
    """Of a tool that Google runs."""
    return Part(PartKind.TOOL_CALL, _arguments(call.get("args")), _tool_type(call), text(call.get("id")))


def _tool_response(result: Fields) -> Part:
    return Part(PartKind.TOOL_RESULT, _arguments(result.get("response")), _tool_type(result), text(result.get("id")))


def _tool_type(fields: Fields) -> str:
    return text(_get(fields, "toolType")).lower()


def _media(data: Fields) -> Part:
    kind = text(_get(data, "mimeType"))
    family = kind.partition("/")[0]
    place = text(_get(data, "fileUri")) or kind
    return Part(PartKind.MEDIA, place, family if family in ("image", "audio", "video") else "document")


def _code(code: Fields) -> Part:
    return Part(PartKind.TOOL_CALL, text(code.get("code")), "code_execution")


def _code_result(result: Fields) -> Part:
    failed = text(result.get("outcome")) not in ("", "OUTCOME_OK")
    return Part(PartKind.TOOL_RESULT, text(result.get("output")), "code_execution", failed=failed)


_PIECES: dict[str, Callable[[Fields], Part]] = {
    "functionCall": _function_call,
    "functionResponse": _function_response,
    "toolCall": _tool_call,
    "toolResponse": _tool_response,
    "inlineData": _media,
    "fileData": _media,
    "executableCode": _code,
    "codeExecutionResult": _code_result,
}

_FLOWING = (PartKind.TEXT, PartKind.THINKING)


def _merged(parts: Iterable[Part]) -> tuple[Part, ...]:
    """Texts and thoughts come in pieces cut anywhere."""
    whole: list[Part] = []
    run: list[str] = []
    for part in parts:
        if run and part.kind == whole[-1].kind:
            run.append(part.text)
            continue
        _close(whole, run)
        whole.append(part)
        run = [part.text] if part.kind in _FLOWING else []
    _close(whole, run)
    return tuple(whole)


def _close(whole: list[Part], run: list[str]) -> None:
    if len(run) > 1:
        whole[-1] = replace(whole[-1], text="".join(run))


# --- answers


class _Chunk(msgspec.Struct, rename="camel"):
    """A whole answer, or a piece of a stream. What isn't named here (vectors) is never built."""

    candidates: Any = None
    usage_metadata: Any = None
    model_version: Any = None
    response_id: Any = None
    prompt_feedback: Any = None
    error: Any = None
    response: _Chunk | None = None  # Gemini CLI's login puts the answer into an envelope


_CHUNK = decoder(_Chunk)
_CHUNKS = decoder(list[msgspec.Raw])


def answers(content: Content) -> tuple[Answer, ...]:
    """What came back, one answer per candidate; none where nothing came. Never raises."""
    if content.status is None and not content.data:
        return ()
    if streamed(content):
        return _from_chunks(_chunks(events(content.data)), stream=True)
    if content.status is not None and content.status >= 400:
        kind, words = provider_error(read_value(content.data), content.status)
        return (Answer(error=words, error_type=kind) if words else failure(content),)
    if content.data.lstrip().startswith(b"["):
        return _from_chunks(_chunks(_array(content.data)), stream=True)
    document = read(_CHUNK, content.data)
    return (failure(content),) if document is None else _from_chunks([document.response or document], stream=False)


def _chunks(datas: Iterable[bytes | str | msgspec.Raw]) -> list[_Chunk]:
    found = [read(_CHUNK, data) for data in datas]
    return [chunk.response or chunk for chunk in found if chunk is not None]


def _array(data: bytes) -> Iterable[msgspec.Raw | str]:
    """The items of an array, those that are whole where it was cut."""
    return read(_CHUNKS, data) or _items_so_far(data.decode("utf-8", "replace").strip())


_DECODER = json.JSONDecoder()
_BETWEEN = re.compile(r"[\[,\s]*")


def _items_so_far(data: str) -> Iterator[str]:
    at = 0
    while True:
        between = _BETWEEN.match(data, at)
        start = between.end() if between else at
        try:
            _, at = _DECODER.raw_decode(data, start)
        except (ValueError, RecursionError):
            return
        yield data[start:at]


def _from_chunks(chunks: Iterable[_Chunk], stream: bool) -> tuple[Answer, ...]:
    told = Answer()
    candidates: dict[int, _Candidate] = {}
    meta: Fields = {}
    for chunk in chunks:
        meta = mapping(chunk.usage_metadata) or meta  # counts grow from chunk to chunk: the last one is right
        if chunk.error or chunk.prompt_feedback or not told.response_id:
            told = _with_facts(told, chunk)
        for candidate in sequence(chunk.candidates):
            fields = mapping(candidate)
            candidates.setdefault(count(fields.get("index")), _Candidate()).add(fields)
    said_by = [candidates[index] for index in sorted(candidates)]
    ended = bool(told.stop_reason) or (bool(said_by) and all(candidate.stop for candidate in said_by))
    usage = _usage(meta, sum(candidate.searches for candidate in said_by))
    told = replace(told, usage=usage, service_tier=_tier(meta), partial=stream and not ended)
    if not said_by:
        return (told,)
    first, *others = (replace(told, message=one.message, stop_reason=one.stop) for one in said_by)
    return (first, *(replace(answer, usage=None) for answer in others))


def _with_facts(told: Answer, chunk: _Chunk) -> Answer:
    """What a chunk says apart from words. A prompt that was blocked has no answer but that."""
    kind, words = provider_error({"error": chunk.error})
    feedback = mapping(chunk.prompt_feedback)
    blocked = text(feedback.get("blockReason"))
    said = text(feedback.get("blockReasonMessage")) or blocked
    return Answer(
        model=told.model or text(chunk.model_version),
        message=Message("assistant", (Part(PartKind.REFUSAL, said),)) if blocked else told.message,
        stop_reason=blocked or told.stop_reason,
        response_id=told.response_id or text(chunk.response_id),
        error=words or told.error,
        error_type=kind or told.error_type,
    )


class _Candidate:
    """A candidate as its chunks build it up."""

    def __init__(self) -> None:
        self._parts: list[Part] = []
        self.stop = ""
        self.searches = 0

    def add(self, candidate: Fields) -> None:
        self._parts += _parts(candidate.get("content"))
        self.stop = text(candidate.get("finishReason")) or self.stop
        grounding = mapping(candidate.get("groundingMetadata"))
        self.searches = max(self.searches, len(sequence(grounding.get("webSearchQueries"))))

    @property
    def message(self) -> Message:
        return Message("assistant", _merged(self._parts))


# --- tokens

_PICTURES = ("IMAGE", "DOCUMENT")  # a document's pages are read as pictures


def _usage(meta: Fields, searches: int) -> Usage | None:
    """Cached tokens lie inside the prompt's count; thoughts and what tools brought lie beside the other counts."""
    if not meta:
        return None
    prompt, cached = count(meta.get("promptTokenCount")), count(meta.get("cachedContentTokenCount"))
    thoughts = count(meta.get("thoughtsTokenCount"))
    said = count(meta.get("candidatesTokenCount")) or count(meta.get("responseTokenCount"))
    fresh = max(0, prompt - cached) + count(meta.get("toolUsePromptTokenCount"))
    asked = _modalities(meta, "promptTokensDetails") + _modalities(meta, "toolUsePromptTokensDetails")
    kept = _modalities(meta, "cacheTokensDetails")
    out = _modalities(meta, "candidatesTokensDetails")
    fed = asked - kept
    return Usage(
        input=fresh,
        cache_read=cached,
        output=said + thoughts,
        reasoning=thoughts,
        input_audio=min(fresh, fed["AUDIO"]),
        cache_read_audio=min(cached, kept["AUDIO"]),
        output_audio=min(said, out["AUDIO"]),
        input_image=min(fresh, sum(fed[name] for name in _PICTURES)),
        output_image=min(said, sum(out[name] for name in _PICTURES)),
        server_tools=(("web_search", searches),) if searches else (),
    )


def _modalities(meta: Fields, name: str) -> Counter[str]:
    """Tokens by what they stand for, in capitals."""
    found: Counter[str] = Counter()
    for detail in sequence(meta.get(name)):
        fields = mapping(detail)
        found[text(fields.get("modality"))] += count(fields.get("tokenCount"))
    return found
