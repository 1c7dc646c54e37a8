"""Anthropic's Messages, requests both ways; also the body that Bedrock's InvokeModel takes.

Leaves out tools that Anthropic runs itself (web search, code execution): they are lost by name, because nobody else has
them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from llm_proxy.gateway.translate.conversation import (
    LEVELS,
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
from llm_proxy.gateway.translate.fields import Fields, compact, parts_of
from llm_proxy.gateway.translate.free import described, object_of, schema_of
from llm_proxy.gateway.translate.losses import BadRequest, Losses
from llm_proxy.gateway.translate.options import pass_over
from llm_proxy.gateway.translate.signatures import ANTHROPIC, carried, delivered, inward, outward

NAME: Final = "Anthropic Messages"

# Their name here -> ours.
_OPTIONS = {
    "max_tokens": Option.MAX_TOKENS,
    "temperature": Option.TEMPERATURE,
    "top_p": Option.TOP_P,
    "top_k": Option.TOP_K,
    "stop_sequences": Option.STOP,
}
_NAMES = {ours: theirs for theirs, ours in _OPTIONS.items()}
_TIERS = {"auto": "auto", "standard_only": "default"}
_TIER_NAMES = {"auto": "auto", "default": "standard_only", "priority": "auto"}
_CHOICES = {"auto": "auto", "any": "any", "none": "none", "tool": "one"}
_CHOICE_NAMES = {ours: theirs for theirs, ours in _CHOICES.items()}
# Hints, accounts and speed: they change no answer's meaning.
_HINTS = ("cache_control", "diagnostics", "speed", "user_profile_id", "workspace_id")
_TOOL_HINTS = ("allowed_callers", "defer_loading", "eager_input_streaming", "input_examples")

# max_tokens is required there and nowhere else: the most that models of these names are sure to take.
_MOST = ((re.compile(r"claude-(?:3-(?:opus|sonnet|haiku)|2|instant)"), 4096), (re.compile(r"claude-3-5"), 8192))
_MOST_OF_OTHERS = 32_000
_THOUGHTLESS = re.compile(r"claude-(?:3-(?!7)|2|instant)")
# Models that think by a budget of tokens; later ones by themselves, as much as `effort` says.
_BY_BUDGET = re.compile(r"claude-(?:3-7|(?:opus|sonnet|haiku)-4(?:-[0-5])?(?:-\d{8}|-latest|-v\d|[@:]|$))")
_BUDGETS = {"minimal": 1024, "low": 2048, "medium": 8192, "high": 16_384, "xhigh": 24_576, "max": 30_000}
_LEAST_BUDGET = 1024
_EFFORTS = {"minimal": "low"}  # the others are called the same

_GOOD_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_BAD_IN_ID = re.compile(r"[^a-zA-Z0-9_-]")


# -- read


def read_request(body: Json, losses: Losses) -> Ask:
    """What a Messages request asks. Raises BadRequest, and CannotSay for what only Anthropic has."""
    fields = Fields(body)
    if not fields.has("max_tokens"):
        raise BadRequest("max_tokens", "is required")
    output = fields.object("output_config") or Fields({}, "output_config")
    system = parts_of(fields, "system", lambda one: _system_part(one, losses), _plain)
    turns = [Turn(Role.SYSTEM, tuple(system), at="system")] if system else []
    turns += [_turn(one, losses) for one in fields.objects("messages")]
    chosen = fields.object("tool_choice")
    ask = Ask(
        model=fields.text("model"),
        turns=joined(turns),
        tools=tuple(_tools(fields, losses)),
        options=_options(fields, chosen, losses),
        choice=_choice(chosen, losses),
        shape=_shape(output.object("format"), losses),
        effort=_effort(fields.object("thinking"), output, losses),
        stream=bool(fields.flag("stream")),
        usage=True,
    )
    output.finish(losses)
    _context(fields.object("context_management"), losses)
    fields.loosen(losses, *_HINTS)
    fields.leave("anthropic_version", "anthropic_beta")
    fields.finish(losses)
    return ask


def _context(fields: Fields | None, losses: Losses) -> None:
    """What clears old turns only saves tokens; a summary would be a part of the answer."""
    if fields is None:
        return
    if all(edit.text("type").startswith("clear_") for edit in fields.objects("edits")):
        losses.loosen(fields.at)
    else:
        losses.lose(fields.at)


def _options(fields: Fields, chosen: Fields | None, losses: Losses) -> dict[str, Given]:
    options = {ours: Given(fields.any(theirs), theirs) for theirs, ours in _OPTIONS.items() if fields.has(theirs)}
    if metadata := fields.object("metadata"):
        if metadata.has("user_id"):
            options[Option.USER] = Given(metadata.text("user_id"), "metadata.user_id")
        metadata.finish(losses)
    if tier := fields.text("service_tier", ""):
        options[Option.TIER] = Given(_TIERS.get(tier, tier), "service_tier")
    if chosen and (alone := chosen.flag("disable_parallel_tool_use")) is not None:
        options[Option.PARALLEL_TOOLS] = Given(not alone, chosen.path("disable_parallel_tool_use"))
    return options


def _plain(text: str, at: str) -> Text:
    return Text(text, at=at)


def _system_part(fields: Fields, losses: Losses) -> Text:
    if fields.any("type", "text") != "text":
        raise BadRequest(fields.path("type"), "must be text")
    part = _text_part(fields, losses)
    fields.finish(losses)
    return part


def _cache(fields: Fields) -> str:
    told = fields.object("cache_control")
    return told.text("ttl", "5m") if told else ""


def _turn(fields: Fields, losses: Losses) -> Turn:
    role = fields.text("role")
    if role not in ("user", "assistant", "system"):
        raise BadRequest(fields.path("role"), "must be user, assistant or system")
    parts = parts_of(fields, "content", lambda one: _part(one, losses), _plain)
    fields.loosen(losses, "output_config")
    fields.finish(losses)
    return Turn(Role(role), tuple(delivered(part for part in parts if part is not None)), at=fields.at)


def _part(fields: Fields, losses: Losses) -> Part | None:
    kind = fields.text("type")
    read = _PARTS.get(kind)
    if read is None:
        losses.lose(fields.at, f"a part of type {kind}")
        return None
    part = read(fields, losses)
    fields.finish(losses)
    return part


def _text_part(fields: Fields, losses: Losses) -> Text:
    fields.loosen(losses, "citations")
    return Text(fields.text("text"), _cache(fields), fields.at)


def _media_part(fields: Fields, losses: Losses, kind: str) -> Media | None:
    source = fields.needed("source")
    cache, name = _cache(fields), fields.text("title", "")
    if (cited := fields.object("citations")) and cited.flag("enabled"):
        losses.lose(cited.at, "citations")
    fields.loosen(losses, "transformations")
    facts: dict[str, str] = {}
    match source.text("type"):
        case "base64":
            facts = {"data": source.text("data"), "media_type": source.text("media_type")}
        case "url":
            facts = {"url": source.text("url")}
        case "file":
            facts = {"file_id": source.text("file_id")}
        case "text":
            facts = {"text": source.text("data"), "media_type": source.text("media_type", "text/plain")}
        case other:
            losses.lose(source.at, f"a source of type {other}")
            return None
    source.finish(losses)
    return Media(kind, **facts, cache=cache, name=name, at=fields.at)


def _image_part(fields: Fields, losses: Losses) -> Media | None:
    return _media_part(fields, losses, "image")


def _document_part(fields: Fields, losses: Losses) -> Media | None:
    return _media_part(fields, losses, "document")


def _thinking_part(fields: Fields, losses: Losses) -> Thinking:
    return inward(fields.text("thinking"), fields.text("signature", ""), ANTHROPIC, at=fields.at)


def _sealed_part(fields: Fields, losses: Losses) -> Thinking:
    return Thinking("", sealed=fields.text("data"), origin=ANTHROPIC, at=fields.at)


def _call_part(fields: Fields, losses: Losses) -> ToolCall:
    fields.leave("caller")
    given = compact(fields.take("input", dict, {}))
    return ToolCall(fields.text("id"), fields.text("name"), given, cache=_cache(fields), at=fields.at)


def _result_part(fields: Fields, losses: Losses) -> ToolResult:
    parts = parts_of(fields, "content", lambda one: _part(one, losses), _plain)
    for part in parts:
        if not isinstance(part, Text | Media | None):
            raise BadRequest(part.at, "has no place in a tool's result")
    kept = tuple(part for part in parts if isinstance(part, Text | Media))
    failed = bool(fields.flag("is_error"))
    return ToolResult(fields.text("tool_use_id"), kept, failed=failed, cache=_cache(fields), at=fields.at)


_PARTS: dict[str, Callable[[Fields, Losses], Part | None]] = {
    "text": _text_part,
    "image": _image_part,
    "document": _document_part,
    "thinking": _thinking_part,
    "redacted_thinking": _sealed_part,
    "tool_use": _call_part,
    "tool_result": _result_part,
}


def _tools(fields: Fields, losses: Losses) -> Iterator[Tool]:
    for one in fields.objects("tools"):
        kind = one.any("type", "custom")
        if kind != "custom":
            losses.lose(one.at, f"a tool of type {kind}")
            continue
        yield Tool(
            one.text("name"),
            one.text("description", ""),
            one.take("input_schema", dict),
            one.flag("strict"),
            cache=_cache(one),
            at=one.at,
        )
        one.loosen(losses, *_TOOL_HINTS)
        one.finish(losses)


def _choice(fields: Fields | None, losses: Losses) -> Choice | None:
    if fields is None:
        return None
    kind = fields.text("type")
    if kind not in _CHOICES:
        raise BadRequest(fields.path("type"), f"must be one of {', '.join(_CHOICES)}")
    choice = Choice(_CHOICES[kind], fields.text("name") if kind == "tool" else "", fields.at)
    fields.finish(losses)
    return choice


def _shape(fields: Fields | None, losses: Losses) -> Shape | None:
    if fields is None:
        return None
    if fields.text("type") != "json_schema":
        raise BadRequest(fields.path("type"), "must be json_schema")
    shape = Shape(fields.take("schema", dict), strict=True, at=fields.at)
    fields.finish(losses)
    return shape


def _effort(thinking: Fields | None, output: Fields, losses: Losses) -> Effort | None:
    at = output.path("effort")
    level = output.one_of("effort", LEVELS)
    if thinking is None:
        return Effort(level, at=at) if level else None
    kind = thinking.text("type")
    if kind == "between_tools":
        losses.loosen(thinking.path("type"))
    budget = thinking.take("budget_tokens", int) if kind == "enabled" else None
    shown = thinking.text("display", "")
    thinking.finish(losses)
    told = shown != "omitted" if shown else None
    return Effort(level, budget, off=kind == "disabled", told=told, at=thinking.at)


# -- write


def write_request(ask: Ask, losses: Losses) -> Json:
    """The body of a Messages request. Raises CannotSay and BadRequest."""
    system, turns = opening(ask.turns)
    body: dict[str, Json] = {"model": ask.model, "max_tokens": _most(ask)}
    if blocks := [block for part in system if (block := write_part(part, losses)) is not None]:
        body["system"] = blocks
    body["messages"] = list(_messages(turns, losses))
    for name, given in ask.options.items():
        _write_option(body, name, given, ask, losses)
    if ask.tools:
        body["tools"] = [_tool(one, losses) for one in ask.tools]
    _write_choice(body, ask)
    write_effort(body, ask, losses)
    _write_shape(body, ask.shape, losses)
    if ask.stream:
        body["stream"] = True
    return body


def opening(turns: Iterable[Turn]) -> tuple[list[Part], list[Turn]]:
    """What the system says before anybody else does, and the rest."""
    system: list[Part] = []
    rest: list[Turn] = []
    for turn in turns:
        if turn.role is Role.SYSTEM and not rest:
            system += turn.parts
        else:
            rest.append(turn)
    return system, rest


def _messages(turns: Iterable[Turn], losses: Losses) -> Iterator[Json]:
    """Speakers take turns there, and say something; the results of tools come first."""
    role: Role | None = None
    blocks: list[Json] = []
    for turn in turns:
        if turn.name:
            losses.loosen(f"{turn.at}.name")
        said = [block for part in carried(turn.parts) if (block := write_part(part, losses)) is not None]
        if turn.role is not role and said:
            yield from _message(role, blocks)
            role, blocks = turn.role, []
        blocks += said
    yield from _message(role, blocks)


def _message(role: Role | None, blocks: list[Json]) -> Iterator[Json]:
    if role is not None:
        yield {"role": str(role), "content": sorted(blocks, key=lambda block: block["type"] != "tool_result")}


def write_part(part: Part, losses: Losses) -> Json | None:
    """A block; None for what is left out."""
    block = _written(part, losses)
    cache = getattr(part, "cache", "")
    if block is not None and cache:
        block["cache_control"] = _cached(cache)
    return block


def _cached(cache: str) -> Json:
    return {"type": "ephemeral"} | ({"ttl": cache} if cache != "5m" else {})


def _written(part: Part, losses: Losses) -> dict[str, Json] | None:
    match part:
        case Text() | Refusal():
            return {"type": "text", "text": part.text} if part.text.strip() else None  # a blank text is refused there
        case Media():
            return _media(part, losses)
        case Thinking() if part.origin != ANTHROPIC:
            losses.loosen(part.at)
            return None
        case Thinking(sealed=sealed) if sealed:
            return {"type": "redacted_thinking", "data": sealed}
        case Thinking():
            return {"type": "thinking", "thinking": part.text, "signature": outward(part, ANTHROPIC)}
        case ToolCall():
            return {"type": "tool_use", "id": good_id(part.id), "name": part.name, "input": object_of(part)}
        case ToolResult():
            result: dict[str, Json] = {"type": "tool_result", "tool_use_id": good_id(part.id)}
            if blocks := [block for one in part.parts if (block := write_part(one, losses)) is not None]:
                result["content"] = blocks
            return result | ({"is_error": True} if part.failed else {})


def good_id(id: str) -> str:
    """A call's id as it is taken there; the same one for the call and for its result."""
    if _GOOD_ID.fullmatch(id):
        return id
    return f"{_BAD_IN_ID.sub('_', id)[:40]}_{hashlib.blake2b(id.encode('utf-8', 'replace'), digest_size=8).hexdigest()}"


def _media(part: Media, losses: Losses) -> dict[str, Json] | None:
    source = _source(part) if part.kind in ("image", "document") else None
    if source is None:
        losses.lose(part.at, "a file in another provider's store" if part.file_id else part.kind)
        return None
    if part.detail not in ("", "auto"):
        losses.loosen(f"{part.at}.detail")
    block: dict[str, Json] = {"type": part.kind, "source": source}
    return block | ({"title": part.name} if part.name and part.kind == "document" else {})


def _source(part: Media) -> Json | None:
    text = part.text
    if part.data and part.kind == "document" and part.media_type.startswith("text/"):
        try:
            text = base64.b64decode(part.data).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise BadRequest(part.at, "must be text in base64") from None
    if text:
        return {"type": "text", "media_type": "text/plain", "data": text}
    if part.data:
        return {"type": "base64", "media_type": part.media_type, "data": part.data}
    return {"type": "url", "url": part.url} if part.url else None


def _most(ask: Ask) -> Json:
    if given := ask.options.get(Option.MAX_TOKENS):
        return given.value
    return next((most for pattern, most in _MOST if pattern.search(ask.model)), _MOST_OF_OTHERS)


def _write_option(body: dict[str, Json], name: str, given: Given, ask: Ask, losses: Losses) -> None:
    match name:
        case Option.MAX_TOKENS | Option.PARALLEL_TOOLS:
            pass  # written elsewhere
        case Option.USER:
            body["metadata"] = {"user_id": given.value}
        case Option.TIER if given.value in _TIER_NAMES:
            body["service_tier"] = _TIER_NAMES[given.value]
        case Option.TEMPERATURE if isinstance(given.value, int | float) and given.value > 1:
            losses.lose(given.at, "above 1")
            body["temperature"] = 1
        case _ if name in _NAMES:
            body[_NAMES[name]] = given.value
        case _:
            pass_over(name, given, ask, losses)


def _tool(tool: Tool, losses: Losses) -> Json:
    written: dict[str, Json] = {"name": tool.name, "input_schema": schema_of(tool)}
    if description := described(tool, losses):
        written["description"] = description
    if tool.strict is not None:
        written["strict"] = tool.strict
    if tool.cache:
        written["cache_control"] = _cached(tool.cache)
    return written


def _write_choice(body: dict[str, Json], ask: Ask) -> None:
    parallel = ask.options.get(Option.PARALLEL_TOOLS)
    if not ask.tools or (ask.choice is None and parallel is None):
        return
    choice = ask.choice or Choice("auto")
    written: dict[str, Json] = {"type": _CHOICE_NAMES[choice.mode]} | ({"name": choice.name} if choice.name else {})
    if parallel is not None and choice.mode != "none":
        written["disable_parallel_tool_use"] = not parallel.value
    body["tool_choice"] = written


def _write_shape(body: dict[str, Json], shape: Shape | None, losses: Losses) -> None:
    if shape is None:
        return
    if shape.schema is None:
        losses.lose(shape.at, "JSON without a schema")
        return
    body.setdefault("output_config", {})["format"] = {"type": "json_schema", "schema": shape.schema}


# -- how much to think


def write_effort(body: dict[str, Json], ask: Ask, losses: Losses) -> None:
    effort = ask.effort
    if effort is None:
        return
    if effort.off or effort.level == "none":
        body["thinking"] = {"type": "disabled"}
        return
    by_budget = effort.budget is not None or _BY_BUDGET.search(ask.model) is not None
    if _THOUGHTLESS.search(ask.model) or _forced(ask.choice) or (by_budget and _cannot_go_on_thinking(ask)):
        losses.loosen(effort.at)
        return
    thinking = _by_budget(body, effort, ask) if by_budget else {"type": "adaptive"}
    if thinking is None:
        losses.loosen(effort.at)
        return
    body["thinking"] = thinking | ({} if effort.told is None else _shown(effort.told))
    if effort.level and not _BY_BUDGET.search(ask.model):
        body.setdefault("output_config", {})["effort"] = _EFFORTS.get(effort.level, effort.level)
    if body.get("temperature", 1) != 1:  # the two exclude each other
        losses.lose(ask.options[Option.TEMPERATURE].at, "not while it thinks")
        del body["temperature"]


def _shown(told: bool) -> dict[str, Json]:
    return {"display": "summarized" if told else "omitted"}


def _forced(choice: Choice | None) -> bool:
    """A model that is made to call a tool cannot think there."""
    return choice is not None and choice.mode in ("any", "one")


def _cannot_go_on_thinking(ask: Ask) -> bool:
    """In the middle of its calls a model that thinks by budget wants to see its own thoughts before them."""
    said = next((turn for turn in reversed(ask.turns) if turn.role is Role.ASSISTANT), None)
    last = ask.turns[-1].parts if ask.turns else ()
    if said is None or not any(isinstance(part, ToolResult) for part in last):
        return False
    return not any(isinstance(part, Thinking) and part.origin == ANTHROPIC for part in said.parts)


def _by_budget(body: dict[str, Json], effort: Effort, ask: Ask) -> dict[str, Json] | None:
    budget = effort.budget if effort.budget is not None else _BUDGETS.get(effort.level, _BUDGETS["medium"])
    if Option.MAX_TOKENS not in ask.options:
        body["max_tokens"] = max(body["max_tokens"], budget + 4096)
    elif isinstance(body["max_tokens"], int):
        budget = min(budget, body["max_tokens"] - 1)
    return {"type": "enabled", "budget_tokens": budget} if budget >= _LEAST_BUDGET else None
