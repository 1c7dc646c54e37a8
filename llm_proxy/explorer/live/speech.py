"""What an answer says while it comes: the events of its stream in, pieces of text out, for every API.

Pure, and never raises, whatever the events. Leaves out framing and codings (`call`), secrets (`veil`), answers that
come whole, and all that is not for reading along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from llm_proxy.dialects import anthropic, bedrock, frames, gemini
from llm_proxy.dialects.content import Content
from llm_proxy.dialects.digest import PartKind, Usage
from llm_proxy.dialects.errors import provider_error
from llm_proxy.dialects.openai import arguments_of, usage_of
from llm_proxy.dialects.reading import count, mapping, read_value, sequence, text, written

Fields = dict[str, Any]


class Bit(NamedTuple):
    """A piece of an answer. `begins`: a block of this kind begins with it; `name` is then a tool's."""

    kind: str  # of PartKind: text, thinking, tool_call, refusal
    text: str = ""
    name: str = ""
    begins: bool = False


class Speech:
    """One answer as it comes. `usage` is what its provider has told so far, `over` whether it said that it ended."""

    def __init__(self, api: str) -> None:
        self.model = ""
        self.usage: Usage | None = None
        self.tier = ""
        self.stop_reason = ""
        self.error = ""
        self.over = False
        self.counts = anthropic.Counts()
        self.names: dict[int, str] = {}  # of tools, by the place of their block
        self._read = _READERS.get(api)

    def feed(self, name: str, data: str) -> list[Bit]:
        """What an event adds; `name` is its own where its stream names events."""
        if self._read is None:
            return []
        if data == "[DONE]":
            self.over = True
            return []
        if name.startswith(frames.FAILURES):
            self.error = text(mapping(read_value(data)).get("message")) or name.partition(":")[2]
            return []
        return list(self._read(self, name, mapping(read_value(data))))


def understood(api: str) -> bool:
    """Whether answers of this API can be read along."""
    return api in _READERS


# --- Anthropic's Messages

_BLOCKS = {
    "text": PartKind.TEXT,
    "thinking": PartKind.THINKING,
    "redacted_thinking": PartKind.THINKING,
    "tool_use": PartKind.TOOL_CALL,
    "server_tool_use": PartKind.TOOL_CALL,
    "mcp_tool_use": PartKind.TOOL_CALL,
}
_DELTAS = {
    "text_delta": (PartKind.TEXT, "text"),
    "thinking_delta": (PartKind.THINKING, "thinking"),
    "input_json_delta": (PartKind.TOOL_CALL, "partial_json"),
}


def _messages(speech: Speech, _: str, event: Fields) -> Iterator[Bit]:
    kind = event.get("type")
    if kind == "content_block_delta":
        delta = mapping(event.get("delta"))
        part, field = _DELTAS.get(text(delta.get("type")), ("", ""))
        if part:
            yield Bit(part, text(delta.get(field)))
    elif kind == "content_block_start":
        block = mapping(event.get("content_block"))
        if part := _BLOCKS.get(text(block.get("type")), ""):
            yield Bit(part, text(block.get("text")) or text(block.get("thinking")), text(block.get("name")), True)
    elif kind == "message_start":
        message = mapping(event.get("message"))
        speech.model = text(message.get("model"))
        _count(speech, message.get("usage"))
    elif kind == "message_delta":
        speech.stop_reason = text(mapping(event.get("delta")).get("stop_reason")) or speech.stop_reason
        _count(speech, event.get("usage"))
    elif kind == "message_stop":
        speech.over = True
    elif kind == "error":
        _fail(speech, event)


def _count(speech: Speech, usage: Any) -> None:
    speech.counts.replace(anthropic.counts_of(mapping(usage)))
    speech.usage, speech.tier = anthropic.usage_of(speech.counts), speech.counts.tier


def _fail(speech: Speech, event: Fields) -> None:
    kind, words = provider_error({"error": event.get("error")})
    speech.error = words or kind or "error"


# --- OpenAI


def _chat(speech: Speech, _: str, chunk: Fields) -> Iterator[Bit]:
    """Also the older completions. Of several choices only the first is read along."""
    speech.model = speech.model or text(chunk.get("model"))
    speech.tier = text(chunk.get("service_tier")) or speech.tier
    told = chunk.get("usage") or mapping(chunk.get("x_groq")).get("usage")
    speech.usage = usage_of(told) or speech.usage
    if chunk.get("error"):
        _fail(speech, chunk)
    for choice in map(mapping, sequence(chunk.get("choices"))):
        if count(choice.get("index")):
            continue
        speech.stop_reason = text(choice.get("finish_reason")) or speech.stop_reason
        delta = mapping(choice.get("delta")) or {"content": choice.get("text")}
        yield from _choice(speech, delta)


def _choice(speech: Speech, delta: Fields) -> Iterator[Bit]:
    for kind, said in (
        (PartKind.THINKING, text(delta.get("reasoning_content")) or text(delta.get("reasoning"))),
        (PartKind.TEXT, text(delta.get("content"))),
        (PartKind.REFUSAL, text(delta.get("refusal"))),
    ):
        if said:
            yield Bit(kind, said)
    for piece in map(mapping, sequence(delta.get("content"))):  # Mistral's thoughts are pieces of the content
        thoughts = [text(mapping(one).get("text")) for one in sequence(piece.get("thinking"))]
        if thoughts:
            yield Bit(PartKind.THINKING, "".join(thoughts))
        elif piece.get("text"):
            yield Bit(PartKind.TEXT, text(piece.get("text")))
    for call in map(mapping, sequence(delta.get("tool_calls"))):
        told = mapping(call.get("custom")) or mapping(call.get("function"))
        name, said = text(told.get("name")), text(told.get("arguments")) or text(told.get("input"))
        place = count(call.get("index"))
        begins = bool(name) and (speech.names.get(place) != name or bool(call.get("id")))
        if begins:
            speech.names[place] = name
        if begins or said:
            yield Bit(PartKind.TOOL_CALL, said, name if begins else "", begins)


_GROWING = {
    "response.output_text.delta": PartKind.TEXT,
    "response.refusal.delta": PartKind.REFUSAL,
    "response.reasoning_text.delta": PartKind.THINKING,
    "response.reasoning_summary_text.delta": PartKind.THINKING,
    "response.function_call_arguments.delta": PartKind.TOOL_CALL,
    "response.mcp_call_arguments.delta": PartKind.TOOL_CALL,
    "response.custom_tool_call_input.delta": PartKind.TOOL_CALL,
    "response.code_interpreter_call_code.delta": PartKind.TOOL_CALL,
}
_ENDS = ("response.completed", "response.failed", "response.incomplete", "response.cancelled")


def _responses(speech: Speech, _: str, event: Fields) -> Iterator[Bit]:
    kind = text(event.get("type"))
    if kind in _GROWING:
        yield Bit(_GROWING[kind], text(event.get("delta")))
    elif kind == "response.output_item.added":
        yield from _item(mapping(event.get("item")))
    elif kind == "response.reasoning_summary_part.added":
        yield Bit(PartKind.THINKING, begins=True)
    elif kind == "error":
        _fail(speech, event if event.get("error") else {"error": event})
    if response := mapping(event.get("response")):
        speech.model = text(response.get("model")) or speech.model
        speech.tier = text(response.get("service_tier")) or speech.tier
        speech.usage = usage_of(response.get("usage")) or speech.usage
        if response.get("error"):
            _fail(speech, response)
        if kind in _ENDS:
            speech.over = True
            why = text(mapping(response.get("incomplete_details")).get("reason"))
            speech.stop_reason = why or text(response.get("status"))


def _item(item: Fields) -> Iterator[Bit]:
    kind = text(item.get("type"))
    if kind.endswith("_call"):
        yield Bit(PartKind.TOOL_CALL, "", text(item.get("name")) or kind.removesuffix("_call"), True)
    elif kind in ("message", "reasoning"):
        yield Bit(PartKind.TEXT if kind == "message" else PartKind.THINKING, begins=True)


# --- Gemini


def _gemini(speech: Speech, _: str, chunk: Fields) -> Iterator[Bit]:
    chunk = mapping(chunk.get("response")) or chunk  # Gemini CLI's login has an envelope
    speech.model = text(chunk.get("modelVersion")) or speech.model
    if told := mapping(chunk.get("usageMetadata")):
        speech.usage = _told_by(gemini.answers, "", {"usageMetadata": told}) or speech.usage
    if chunk.get("error"):
        _fail(speech, chunk)
    for candidate in map(mapping, sequence(chunk.get("candidates"))):
        if count(candidate.get("index")):
            continue
        speech.stop_reason = text(candidate.get("finishReason")) or speech.stop_reason
        for part in map(mapping, sequence(mapping(candidate.get("content")).get("parts"))):
            call = mapping(part.get("functionCall"))
            code = mapping(part.get("executableCode"))
            if call:
                yield Bit(PartKind.TOOL_CALL, arguments_of(call.get("args")), text(call.get("name")), True)
            elif code:
                yield Bit(PartKind.TOOL_CALL, text(code.get("code")), "code_execution", True)
            elif said := text(part.get("text")):
                yield Bit(PartKind.THINKING if part.get("thought") is True else PartKind.TEXT, said)


def _told_by(answers: Callable[[Content], Any], name: str, event: Fields) -> Usage | None:
    """The tokens that one event tells, as its dialect reads them."""
    lines = (f"event: {name}\n" if name else "") + f"data: {written(event)}\n\n"
    told = answers(Content("events", lines.encode("utf-8", "surrogatepass")))
    usage: Usage | None = next((answer.usage for answer in told if answer.usage is not None), None)
    return usage


# --- Ollama


def _ollama(speech: Speech, _: str, line: Fields) -> Iterator[Bit]:
    speech.model = speech.model or text(line.get("model"))
    if line.get("error"):
        _fail(speech, line)
    message = mapping(line.get("message")) or {"content": line.get("response"), "thinking": line.get("thinking")}
    for kind, field in ((PartKind.THINKING, "thinking"), (PartKind.TEXT, "content")):
        if said := text(message.get(field)):
            yield Bit(kind, said)
    for call in map(mapping, sequence(message.get("tool_calls"))):
        function = mapping(call.get("function"))
        yield Bit(PartKind.TOOL_CALL, arguments_of(function.get("arguments")), text(function.get("name")), True)
    if line.get("done") is True:
        speech.over, speech.stop_reason = True, text(line.get("done_reason"))
        speech.usage = Usage(input=count(line.get("prompt_eval_count")), output=count(line.get("eval_count")))


# --- Bedrock


def _converse(speech: Speech, name: str, event: Fields) -> Iterator[Bit]:
    if name == "contentBlockStart":
        use = mapping(mapping(event.get("start")).get("toolUse"))
        if use:
            yield Bit(PartKind.TOOL_CALL, "", text(use.get("name")), True)
    elif name == "contentBlockDelta":
        delta = mapping(event.get("delta"))
        for kind, said in (
            (PartKind.TEXT, text(delta.get("text"))),
            (PartKind.THINKING, text(mapping(delta.get("reasoningContent")).get("text"))),
            (PartKind.TOOL_CALL, text(mapping(delta.get("toolUse")).get("input"))),
        ):
            if said:
                yield Bit(kind, said)
    elif name == "messageStop":
        speech.stop_reason = text(event.get("stopReason"))
    elif name == "metadata":
        speech.usage = _told_by(bedrock.answers, name, event) or speech.usage
        speech.over = True


_CONVERSE = ("contentBlockStart", "contentBlockDelta", "messageStop", "metadata")


def _invoke(speech: Speech, name: str, event: Fields) -> Iterator[Bit]:
    """The model's own events: Anthropic's, or Converse's under their names, as Amazon's models send them."""
    if "type" in event:
        yield from _messages(speech, name, event)
    for named in _CONVERSE:
        if named in event:
            yield from _converse(speech, named, mapping(event[named]))


_READERS: dict[str, Callable[[Speech, str, Fields], Iterator[Bit]]] = {
    "anthropic.messages": _messages,
    "openai.chat": _chat,
    "openai.completions": _chat,
    "openai.responses": _responses,
    "gemini.generate": _gemini,
    "ollama.chat": _ollama,
    "bedrock.converse": _converse,
    "bedrock.invoke": _invoke,
}
