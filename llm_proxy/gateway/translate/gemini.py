"""Google's Gemini, requests both ways: the bodies of generateContent and streamGenerateContent.

Model and streaming stand in the path, so that a request read here has none. Leaves out tools that Google runs itself,
caches and settings of safety: they are lost by name.
"""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Final

from llm_proxy.gateway.translate.anthropic import opening
from llm_proxy.gateway.translate.conversation import (
    Ask,
    Choice,
    Effort,
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
from llm_proxy.gateway.translate.signatures import GEMINI

NAME: Final = "Gemini"

# Their name in generationConfig here -> ours.
_OPTIONS = {
    "maxOutputTokens": Option.MAX_TOKENS,
    "temperature": Option.TEMPERATURE,
    "topP": Option.TOP_P,
    "topK": Option.TOP_K,
    "stopSequences": Option.STOP,
    "seed": Option.SEED,
    "frequencyPenalty": Option.FREQUENCY_PENALTY,
    "presencePenalty": Option.PRESENCE_PENALTY,
    "responseLogprobs": Option.LOGPROBS,
    "logprobs": Option.TOP_LOGPROBS,
}
_NAMES = {ours: theirs for theirs, ours in _OPTIONS.items()}
_TIERS = {"standard": "default", "flex": "flex", "priority": "priority"}
_TIER_NAMES = {ours: theirs for theirs, ours in _TIERS.items()}
_MODES = {"AUTO": "auto", "NONE": "none", "ANY": "any"}
_MODE_NAMES = {ours: theirs for theirs, ours in _MODES.items()} | {"one": "ANY"}
_ROLES = {"user": Role.USER, "model": Role.ASSISTANT}

_LATER = re.compile(r"gemini-(?:[3-9]|\d\d)")  # thinks by level; its tools may give back pictures; wants its signatures
_THOUGHTLESS = re.compile(r"gemini-(?:1|2\.0)|gemma")
_LEVELS = {"none": "minimal", "max": "high", "xhigh": "high"}  # the others are called the same
_BUDGETS = {"none": 0, "minimal": 512, "low": 1024, "medium": 8192, "high": 24_576, "xhigh": 24_576, "max": 24_576}
# What Google's documentation gives for calls that another model made: no signature is asked of them.
_UNSIGNED = "skip_thought_signature_validator"


# -- read


def read_request(body: Json, losses: Losses) -> Ask:
    """What a generateContent body asks. Raises BadRequest, and CannotSay for what only Google has."""
    fields = Fields(body)
    config = fields.object("generationConfig") or Fields({}, "generationConfig")
    turns = [_turn(one, losses) for one in fields.objects("contents")]
    if system := fields.object("systemInstruction"):
        turns.insert(0, Turn(Role.SYSTEM, _parts(system, losses), at=system.at))
    options = {ours: Given(config.any(name), config.path(name)) for name, ours in _OPTIONS.items() if config.has(name)}
    if tier := fields.text("serviceTier", ""):
        options[Option.TIER] = Given(_TIERS.get(tier, tier), "serviceTier")
    ask = Ask(
        model="",
        turns=joined(turns),
        tools=tuple(tool for one in fields.objects("tools") for tool in _tools(one, losses)),
        choice=_choice(fields.object("toolConfig"), losses),
        shape=_shape(config),
        effort=_effort(config.object("thinkingConfig"), losses),
        options=options,
        usage=True,
    )
    config.finish(losses)
    fields.finish(losses)
    return ask


def _turn(fields: Fields, losses: Losses) -> Turn:
    role = fields.text("role", "user")
    if role not in _ROLES:
        raise BadRequest(fields.path("role"), "must be user or model")
    return Turn(_ROLES[role], _parts(fields, losses), at=fields.at)


def _parts(fields: Fields, losses: Losses) -> tuple[Part, ...]:
    fields.leave("role")
    parts = tuple(part for one in fields.objects("parts") if (part := _part(one, losses)) is not None)
    fields.finish(losses)
    return parts


def _part(fields: Fields, losses: Losses) -> Part | None:
    signature = fields.text("thoughtSignature", "")
    part: Part | None = None
    if fields.has("text"):
        text = fields.text("text")
        part = Thinking(text, signature, origin=GEMINI) if fields.flag("thought") else Text(text)
    elif call := fields.object("functionCall"):
        given = compact(call.take("args", dict, {}))
        signature = "" if signature == _UNSIGNED else signature
        origin = GEMINI if signature else ""
        part = ToolCall(call.text("id", ""), call.text("name"), given, signature=signature, origin=origin)
    elif result := fields.object("functionResponse"):
        part = _result(result)
    elif data := (fields.object("inlineData") or fields.object("fileData")):
        kind = data.text("mimeType", "")
        medium = next((name for name in ("image", "audio") if kind.startswith(name)), "document")
        part = Media(medium, kind, data.text("data", ""), data.text("fileUri", ""), name=data.text("displayName", ""))
    fields.finish(losses)
    return replace(part, at=fields.at) if part else None


def _result(fields: Fields) -> ToolResult:
    told = fields.take("response", dict, {})
    failed = "error" in told
    said = told.get("error" if failed else "output", told)
    parts: list[Text | Media] = [Text(said if isinstance(said, str) else compact(said))] if said else []
    for one in fields.objects("parts"):
        if data := one.object("inlineData"):
            parts.append(Media("image", data.text("mimeType"), data.text("data")))
    return ToolResult(fields.text("id", ""), tuple(parts), fields.text("name"), failed)


def _tools(fields: Fields, losses: Losses) -> Iterator[Tool]:
    for one in fields.objects("functionDeclarations"):
        schema = one.take("parametersJsonSchema", dict, {})
        yield Tool(one.text("name"), one.text("description", ""), schema or {"type": "object", "properties": {}})
        one.finish(losses)
    fields.finish(losses)


def _choice(fields: Fields | None, losses: Losses) -> Choice | None:
    told = fields.object("functionCallingConfig") if fields else None
    if fields is None or told is None:
        return None
    mode, names = _MODES.get(told.text("mode", "AUTO"), "auto"), told.take("allowedFunctionNames", list, [])
    told.finish(losses)
    fields.finish(losses)
    return Choice("one", str(names[0]), told.at) if mode == "any" and len(names) == 1 else Choice(mode, at=told.at)


def _shape(config: Fields) -> Shape | None:
    schema = config.any("responseJsonSchema")
    if config.text("responseMimeType", "text/plain") != "application/json":
        return None
    return Shape(schema, strict=None if schema is None else True, at=config.path("responseMimeType"))


def _effort(fields: Fields | None, losses: Losses) -> Effort | None:
    if fields is None:
        return None
    budget = fields.take("thinkingBudget", int) if fields.has("thinkingBudget") else None
    effort = Effort(fields.text("thinkingLevel", "").lower(), budget, budget == 0, fields.flag("includeThoughts"))
    fields.finish(losses)
    return replace(effort, at=fields.at)


# -- write


def write_request(ask: Ask, losses: Losses) -> Json:
    """The body of generateContent; the model belongs into the path. Raises CannotSay and BadRequest."""
    system, turns = opening(ask.turns)
    config = _config(ask, losses)
    body: dict[str, Json] = {"contents": list(_contents(turns, ask.model, losses))}
    if told := [one for part in system for one in _written(part, losses)]:
        body["systemInstruction"] = {"parts": told}
    if ask.tools:
        body["tools"] = [{"functionDeclarations": [_tool(tool, losses) for tool in ask.tools]}]
        if ask.choice is not None:
            names = {"allowedFunctionNames": [ask.choice.name]} if ask.choice.mode == "one" else {}
            body["toolConfig"] = {"functionCallingConfig": {"mode": _MODE_NAMES[ask.choice.mode]} | names}
    if (tier := ask.options.get(Option.TIER)) and tier.value in _TIER_NAMES:
        body["serviceTier"] = _TIER_NAMES[tier.value]
    return body | ({"generationConfig": config} if config else {})


def _config(ask: Ask, losses: Losses) -> dict[str, Json]:
    config: dict[str, Json] = {}
    for name, given in ask.options.items():
        if name in _NAMES:
            config[_NAMES[name]] = given.value
        elif name != Option.TIER or given.value not in _TIER_NAMES:
            pass_over(name, given, ask, losses)
    if ask.shape is not None:
        config["responseMimeType"] = "application/json"
        if ask.shape.schema is not None:
            config["responseJsonSchema"] = ask.shape.schema
    if ask.effort is not None:
        if _THOUGHTLESS.search(ask.model):
            losses.loosen(ask.effort.at)
        else:
            config["thinkingConfig"] = _thinking(ask.effort, ask.model)
    return config


def _thinking(effort: Effort, model: str) -> dict[str, Json]:
    level = "none" if effort.off else effort.level
    config: dict[str, Json] = {"includeThoughts": effort.told is not False and level != "none"}
    if effort.budget is not None and not effort.off:
        return config | {"thinkingBudget": effort.budget}
    if not level:
        return config
    if _LATER.search(model):
        return config | {"thinkingLevel": _LEVELS.get(level, level)}
    return config | {"thinkingBudget": _BUDGETS.get(level, -1)}


def _contents(turns: Iterable[Turn], model: str, losses: Losses) -> Iterator[Json]:
    """Speakers take turns; what the system says in between, the user says."""
    role = ""
    parts: list[Json] = []
    for turn in turns:
        if turn.name:
            losses.loosen(f"{turn.at}.name")
        if turn.role is Role.SYSTEM:
            losses.loosen(turn.at)
        speaker = "model" if turn.role is Role.ASSISTANT else "user"
        said = list(_said(turn, model, losses))
        if speaker != role and said:
            yield from _content(role, parts)
            role, parts = speaker, []
        parts += said
    yield from _content(role, parts)


def _content(role: str, parts: list[Json]) -> Iterator[Json]:
    if parts:
        yield {"role": role, "parts": parts}


def _said(turn: Turn, model: str, losses: Losses) -> Iterator[Json]:
    """Of calls at once the first one alone is signed, so that one alone may want for a signature."""
    later = _LATER.search(model) is not None
    called = False
    for part in turn.parts:
        if isinstance(part, ToolResult):
            yield from _written_result(part, later, losses)
            continue
        for one in _written(part, losses):
            if isinstance(part, ToolCall):
                signed = part.signature if part.origin == GEMINI else ""
                if signed or (later and not called):
                    one["thoughtSignature"] = signed or _UNSIGNED
                called = True
            yield one


def _written(part: Part, losses: Losses) -> Iterator[dict[str, Json]]:
    if getattr(part, "cache", ""):
        losses.loosen(f"{part.at}.cache_control")
    match part:
        case Text() | Refusal():
            if part.text:
                yield {"text": part.text}
        case Media():
            yield from _media(part, losses)
        case Thinking(origin="gemini") if part.signature:
            yield {"text": part.text, "thought": True, "thoughtSignature": part.signature}
        case Thinking():
            losses.loosen(part.at)
        case ToolCall():
            yield {"functionCall": {"id": part.id, "name": part.name, "args": object_of(part)}}


def _media(part: Media, losses: Losses) -> Iterator[dict[str, Json]]:
    if part.detail not in ("", "auto"):
        losses.loosen(f"{part.at}.detail")
    if part.text:
        yield {"text": f"{part.name}\n\n{part.text}" if part.name else part.text}
    elif part.data:
        yield {"inlineData": {"mimeType": part.media_type, "data": part.data}}
    elif part.url:
        kind = part.media_type or mimetypes.guess_type(part.url.partition("?")[0])[0]
        yield {"fileData": {"fileUri": part.url} | ({"mimeType": kind} if kind else {})}
    else:
        losses.lose(part.at, "a file in another provider's store")


def _written_result(result: ToolResult, later: bool, losses: Losses) -> Iterator[Json]:
    """Pictures are part of the result where the model takes them there, else they stand behind it."""
    if result.cache:
        losses.loosen(f"{result.at}.cache_control")
    said = "\n".join(part.text for part in result.parts if isinstance(part, Text))
    media = [one for part in result.parts if isinstance(part, Media) for one in _media(part, losses)]
    response: dict[str, Json] = {"error" if result.failed else "output": said}
    told: dict[str, Json] = {"id": result.id, "name": result.name or result.id, "response": response}
    inside = [one for one in media if "inlineData" in one] if later else []
    yield {"functionResponse": told | ({"parts": inside} if inside else {})}
    yield from (one for one in media if one not in inside)


def _tool(tool: Tool, losses: Losses) -> Json:
    if tool.cache:
        losses.loosen(f"{tool.at}.cache_control")
    if tool.strict:
        losses.loosen(f"{tool.at}.strict")
    written: dict[str, Any] = {"name": tool.name, "parametersJsonSchema": schema_of(tool)}
    return written | ({"description": told} if (told := described(tool, losses)) else {})
