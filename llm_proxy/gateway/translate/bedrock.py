"""Amazon Bedrock, requests both ways: Converse's bodies; and what InvokeModel makes of Anthropic's.

Model and streaming stand in the path, so that a request read here has none. Leaves out guardrails, stored prompts and
tools that Amazon runs itself: they are lost by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from llm_proxy.gateway.translate.anthropic import good_id, opening, write_effort
from llm_proxy.gateway.translate.conversation import (
    Ask,
    Choice,
    Given,
    Json,
    Media,
    Option,
    Part,
    Refusal,
    Role,
    Shape,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolResult,
    Turn,
    joined,
)
from llm_proxy.gateway.translate.fields import Fields, compact
from llm_proxy.gateway.translate.free import described, object_of, schema_of
from llm_proxy.gateway.translate.losses import BadRequest, Losses
from llm_proxy.gateway.translate.options import pass_over
from llm_proxy.gateway.translate.signatures import ANTHROPIC, BEDROCK

NAME: Final = "Bedrock Converse"

# Their name in inferenceConfig here -> ours.
_OPTIONS = {
    "maxTokens": Option.MAX_TOKENS,
    "temperature": Option.TEMPERATURE,
    "topP": Option.TOP_P,
    "stopSequences": Option.STOP,
}
_NAMES = {ours: theirs for theirs, ours in _OPTIONS.items()}
_TIERS = frozenset({"default", "flex", "priority"})
_CHOICES = {"auto": "auto", "any": "any", "tool": "one"}
_CHOICE_NAMES = {ours: theirs for theirs, ours in _CHOICES.items()}

_CLAUDE = re.compile(r"anthropic|claude")
_OPENAI = re.compile(r"(?:^|\.)openai\.")
_NOVA = re.compile(r"nova-[2-9]")
# Media types -> formats; what is not here has the format of its subtype's name.
_FORMATS = {
    "text/plain": "txt",
    "text/markdown": "md",
    "application/msword": "doc",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
    "application/vnd.ms-excel": "xls",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "xlsx",
    "image/jpg": "jpeg",
    "audio/mpeg": "mp3",
}
_KNOWN = {
    "image": frozenset({"png", "jpeg", "gif", "webp"}),
    "document": frozenset({"pdf", "csv", "doc", "docx", "xls", "xlsx", "html", "txt", "md"}),
    "audio": frozenset({"mp3", "opus", "wav", "aac", "flac", "mp4", "ogg", "m4a", "webm"}),
}
_MEDIA_TYPES = {form: kind for kind, form in reversed(_FORMATS.items())} | {
    "pdf": "application/pdf",
    "csv": "text/csv",
    "html": "text/html",
}
_BAD_IN_NAME = re.compile(r"[^a-zA-Z0-9 ()\[\]-]|(?<= ) +")  # what the name of a document may not have


def invoked(body: Mapping[str, Json], betas: Iterable[str] = ()) -> Json:
    """A Messages body as InvokeModel takes it: the model and whether it streams stand in the path, and what Anthropic's
    API takes as headers (`betas`) in the body.
    """
    kept = {name: value for name, value in body.items() if name not in ("model", "stream")}
    told = list(betas)
    return {"anthropic_version": "bedrock-2023-05-31"} | kept | ({"anthropic_beta": told} if told else {})


# -- read


def read_request(body: Json, losses: Losses) -> Ask:
    """What a Converse body asks. Raises BadRequest, and CannotSay for what only Bedrock has."""
    fields = Fields(body)
    fields.leave("modelId")
    system = _parts(fields.objects("system"), losses)
    turns = [Turn(Role.SYSTEM, system, at="system")] if system else []
    turns += [_turn(one, losses) for one in fields.objects("messages")]
    config = fields.object("inferenceConfig") or Fields({}, "inferenceConfig")
    options = {ours: Given(config.any(name), config.path(name)) for name, ours in _OPTIONS.items() if config.has(name)}
    if tier := fields.object("serviceTier"):
        options[Option.TIER] = Given(tier.text("type"), tier.at)
    if metadata := fields.take("requestMetadata", dict, {}):
        options[Option.METADATA] = Given(metadata, "requestMetadata")
    tools = fields.object("toolConfig") or Fields({}, "toolConfig")
    ask = Ask(
        model="",
        turns=joined(turns),
        tools=tuple(_tools(tools, losses)),
        choice=_choice(tools.object("toolChoice")),
        shape=_shape(fields.object("outputConfig"), losses),
        options=options,
        usage=True,
    )
    config.finish(losses)
    tools.finish(losses)
    fields.finish(losses)
    return ask


def _turn(fields: Fields, losses: Losses) -> Turn:
    role = fields.text("role")
    if role not in ("user", "assistant", "system"):
        raise BadRequest(fields.path("role"), "must be user, assistant or system")
    turn = Turn(Role(role), _parts(fields.objects("content"), losses), at=fields.at)
    fields.finish(losses)
    return turn


def _parts(blocks: Iterable[Fields], losses: Losses) -> tuple[Part, ...]:
    """A cache point stands behind the part that it belongs to."""
    parts: list[Part] = []
    for block in blocks:
        if point := block.object("cachePoint"):
            if parts and not isinstance(parts[-1], Thinking | Refusal):
                parts[-1] = replace(parts[-1], cache=point.text("ttl", "5m"))
            point.leave("type")
            point.finish(losses)
        elif (part := _part(block, losses)) is not None:
            parts.append(part)
        block.finish(losses)
    return tuple(parts)


def _part(block: Fields, losses: Losses) -> Part | None:
    for name, read in _BLOCKS.items():
        if fields := block.object(name):
            return replace(read(fields, losses), at=block.at)
    return Text(block.text("text"), at=block.at) if block.has("text") else None


def _call(fields: Fields, losses: Losses) -> ToolCall:
    call = ToolCall(fields.text("toolUseId"), fields.text("name"), compact(fields.take("input", dict, {})))
    fields.finish(losses)
    return call


def _result(fields: Fields, losses: Losses) -> ToolResult:
    parts: list[Text | Media] = []
    for block in fields.objects("content"):
        if block.has("json"):
            told = block.any("json")
            parts += [Text(compact(told), at=block.at)] if told else []
        elif isinstance(part := _part(block, losses), Text | Media):
            parts.append(part)
        block.finish(losses)
    result = ToolResult(fields.text("toolUseId"), tuple(parts), failed=fields.text("status", "") == "error")
    fields.finish(losses)
    return result


def _reasoning(fields: Fields, losses: Losses) -> Thinking:
    if told := fields.object("reasoningText"):
        signature = told.text("signature", "")
        return Thinking(told.text("text"), signature, origin=ANTHROPIC if signature else "")
    return Thinking("", sealed=fields.text("redactedContent"), origin=BEDROCK)


def _medium(kind: str) -> Callable[[Fields, Losses], Media]:
    def read(fields: Fields, losses: Losses) -> Media:
        source = fields.needed("source")
        form = fields.text("format", "")
        place = source.object("s3Location")
        media = Media(
            kind,
            (_MEDIA_TYPES.get(form) or f"{kind}/{form}") if form else "",
            data=source.text("bytes", ""),
            url=place.text("uri") if place else "",
            text=source.text("text", ""),
            name=fields.text("name", ""),
        )
        source.finish(losses)
        fields.finish(losses)
        return media

    return read


_BLOCKS: dict[str, Callable[[Fields, Losses], Part]] = {
    "toolUse": _call,
    "toolResult": _result,
    "reasoningContent": _reasoning,
    "image": _medium("image"),
    "document": _medium("document"),
    "audio": _medium("audio"),
}


def _tools(fields: Fields, losses: Losses) -> Iterator[Tool]:
    tools: list[Tool] = []
    for one in fields.objects("tools"):
        if point := one.object("cachePoint"):
            if tools:
                tools[-1] = replace(tools[-1], cache=point.text("ttl", "5m"))
        elif spec := one.object("toolSpec"):
            schema = spec.needed("inputSchema")
            tool = Tool(spec.text("name"), spec.text("description", ""), schema.take("json", dict), spec.flag("strict"))
            tools.append(replace(tool, at=one.at))
            spec.finish(losses)
        one.finish(losses)
    return iter(tools)


def _choice(fields: Fields | None) -> Choice | None:
    if fields is None:
        return None
    mode = next((_CHOICES[name] for name in _CHOICES if fields.has(name)), "auto")
    tool = fields.object("tool")
    return Choice(mode, tool.text("name") if tool else "", fields.at)


def _shape(fields: Fields | None, losses: Losses) -> Shape | None:
    form = fields.object("textFormat") if fields else None
    structure = form.object("structure") if form else None
    told = structure.object("jsonSchema") if structure else None
    if fields is None or told is None:
        return None
    try:
        schema = json.loads(told.text("schema"))
    except ValueError:
        raise BadRequest(told.path("schema"), "must be JSON") from None
    fields.finish(losses)
    return Shape(schema, told.text("name", ""), told.text("description", ""), strict=True, at=fields.at)


# -- write


def write_request(ask: Ask, losses: Losses) -> Json:
    """The body of Converse; the model belongs into the path. Raises CannotSay and BadRequest."""
    system, turns = opening(ask.turns)
    body: dict[str, Json] = {"messages": list(_messages(turns, losses))}
    if told := list(_blocks(system, losses)):
        body["system"] = told
    _write_options(body, ask, losses)
    _write_tools(body, ask, losses)
    _write_shape(body, ask.shape, losses)
    _write_thinking(body, ask, losses)
    return body


def _messages(turns: Iterable[Turn], losses: Losses) -> Iterator[Json]:
    """Speakers take turns there; the results of tools come first."""
    role: Role | None = None
    parts: list[Part] = []
    for turn in turns:
        if turn.name:
            losses.loosen(f"{turn.at}.name")
        if turn.role is not role:
            yield from _message(role, parts, losses)
            role, parts = turn.role, []
        parts += turn.parts
    yield from _message(role, parts, losses)


def _message(role: Role | None, parts: list[Part], losses: Losses) -> Iterator[Json]:
    in_order = sorted(parts, key=lambda part: not isinstance(part, ToolResult))
    if blocks := list(_blocks(in_order, losses)):
        yield {"role": str(role), "content": blocks}


def _blocks(parts: Iterable[Part], losses: Losses) -> Iterator[Json]:
    for part in parts:
        if (block := _written(part, losses)) is not None:
            yield block
            if cache := getattr(part, "cache", ""):
                yield _cache_point(cache)


def _cache_point(cache: str) -> Json:
    return {"cachePoint": {"type": "default"} | ({"ttl": cache} if cache != "5m" else {})}


def _written(part: Part, losses: Losses) -> Json | None:
    match part:
        case Text() | Refusal():
            return {"text": part.text} if part.text.strip() else None  # a blank text is refused there
        case Media():
            return _media(part, losses)
        case Thinking(origin="bedrock", sealed=sealed) if sealed:
            return {"reasoningContent": {"redactedContent": sealed}}
        case Thinking(origin="anthropic") if part.signature:
            return {"reasoningContent": {"reasoningText": {"text": part.text, "signature": part.signature}}}
        case Thinking():
            losses.loosen(part.at)
            return None
        case ToolCall():
            return {"toolUse": {"toolUseId": good_id(part.id), "name": part.name, "input": object_of(part)}}
        case ToolResult():
            content = [block for one in part.parts if (block := _written(one, losses)) is not None]
            result: dict[str, Json] = {"toolUseId": good_id(part.id), "content": content or [{"json": {}}]}
            return {"toolResult": result | ({"status": "error"} if part.failed else {})}


def _media(part: Media, losses: Losses) -> Json | None:
    if part.detail not in ("", "auto"):
        losses.loosen(f"{part.at}.detail")
    form = _FORMATS.get(part.media_type) or part.media_type.rpartition("/")[2]
    source = _source(part)
    if source is None or (form not in _KNOWN[part.kind] and not part.text and not part.url):
        losses.lose(part.at, part.media_type if part.data else "a file that lies elsewhere")
        return None
    block: dict[str, Json] = {"source": source} | ({"format": form} if form in _KNOWN[part.kind] else {})
    if part.kind == "document":
        block["name"] = _BAD_IN_NAME.sub("-", part.name) or "document"
    return {part.kind: block}


def _source(part: Media) -> Json | None:
    if part.text:
        return {"text": part.text}
    if part.data:
        return {"bytes": part.data}
    return {"s3Location": {"uri": part.url}} if part.url.startswith("s3://") else None


def _write_options(body: dict[str, Json], ask: Ask, losses: Losses) -> None:
    config: dict[str, Json] = {}
    for name, given in ask.options.items():
        match name:
            case Option.TIER if given.value in _TIERS:
                body["serviceTier"] = {"type": given.value}
            case Option.METADATA:
                body["requestMetadata"] = given.value
            case Option.TOP_K if _CLAUDE.search(ask.model):
                body["additionalModelRequestFields"] = {"top_k": given.value}
            case _ if name in _NAMES:
                config[_NAMES[name]] = given.value
            case _:
                pass_over(name, given, ask, losses)
    if config:
        body["inferenceConfig"] = config


def _write_tools(body: dict[str, Json], ask: Ask, losses: Losses) -> None:
    """Not to call any tool is said there by having none, which is possible where none was called before."""
    choice = ask.choice
    if choice is not None and choice.mode == "none":
        if not any(isinstance(part, ToolCall | ToolResult) for turn in ask.turns for part in turn.parts):
            return
        losses.lose(choice.at, "no tool may be called, though some were")
        choice = None
    if not ask.tools:
        return
    config: dict[str, Json] = {"tools": [one for tool in ask.tools for one in _tool(tool, losses)]}
    if choice is not None:
        config["toolChoice"] = {_CHOICE_NAMES[choice.mode]: {"name": choice.name} if choice.name else {}}
    body["toolConfig"] = config


def _tool(tool: Tool, losses: Losses) -> Iterator[Json]:
    spec: dict[str, Json] = {"name": tool.name, "inputSchema": {"json": schema_of(tool)}}
    if description := described(tool, losses):
        spec["description"] = description
    if tool.strict is not None:
        spec["strict"] = tool.strict
    yield {"toolSpec": spec}
    if tool.cache:
        yield _cache_point(tool.cache)


def _write_shape(body: dict[str, Json], shape: Shape | None, losses: Losses) -> None:
    if shape is None:
        return
    if shape.schema is None:
        losses.lose(shape.at, "JSON without a schema")
        return
    told = {"schema": compact(shape.schema)} | ({"name": shape.name} if shape.name else {})
    told |= {"description": shape.description} if shape.description else {}
    body["outputConfig"] = {"textFormat": {"type": "json_schema", "structure": {"jsonSchema": told}}}


def _write_thinking(body: dict[str, Json], ask: Ask, losses: Losses) -> None:
    """Each maker's models are told in its own way."""
    effort = ask.effort
    if effort is None:
        return
    fields: dict[str, Json] = {}
    if _CLAUDE.search(ask.model):
        config = body.setdefault("inferenceConfig", {})
        fields = {"max_tokens": config.get("maxTokens", 32_000)}
        fields |= {"temperature": config["temperature"]} if "temperature" in config else {}
        write_effort(fields, ask, losses)
        if "temperature" not in fields:
            config.pop("temperature", None)
        if "thinking" in fields:
            config["maxTokens"] = fields["max_tokens"]
        fields = {name: fields[name] for name in ("thinking", "output_config") if name in fields}
    elif effort.level and not effort.off and _OPENAI.search(ask.model):
        fields = {"reasoning_effort": effort.level}
    elif effort.level in ("low", "medium", "high") and _NOVA.search(ask.model):
        fields = {"reasoningConfig": {"type": "enabled", "maxReasoningEffort": effort.level}}
    elif not effort.off:
        losses.loosen(effort.at)
    if fields:
        body.setdefault("additionalModelRequestFields", {}).update(fields)
