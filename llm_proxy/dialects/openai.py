"""What OpenAI's APIs share, and those of the many who imitate them: roles, pieces of messages, tool results, tokens.

Leaves out the frames around them (`openai_chat`, `openai_responses`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llm_proxy.dialects.digest import Part, PartKind, Usage
from llm_proxy.dialects.reading import canonical, count, mapping, sequence, text, written

ROLES = {
    "user": "user",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "function": "tool",
}


def role_of(value: Any) -> str:
    return ROLES.get(text(value), "user")


# --- pieces


def parts_of(content: Any) -> tuple[Part, ...]:
    """The pieces of a message's content, which is a string or a list of typed objects."""
    if type(content) is str:
        return (Part(PartKind.TEXT, content),) if content else ()
    return tuple(_piece(piece) for piece in sequence(content))


def _piece(piece: Any) -> Part:
    if type(piece) is str:
        return Part(PartKind.TEXT, piece)
    fields = mapping(piece)
    kind = text(fields.get("type"))
    known = _PIECES.get(kind)
    return known(fields) if known else Part(PartKind.OTHER, text(fields.get("text")), kind)


def _text(fields: dict[str, Any]) -> Part:
    return Part(PartKind.TEXT, text(fields.get("text")))


def _refusal(fields: dict[str, Any]) -> Part:
    return Part(PartKind.REFUSAL, text(fields.get("refusal")))


def _thinking(fields: dict[str, Any]) -> Part:
    """Mistral's; the thoughts are texts in a list."""
    thoughts = fields.get("thinking") or fields.get("text")
    said = [text(mapping(piece).get("text")) for piece in sequence(thoughts)]
    return Part(PartKind.THINKING, text(thoughts) or "\n".join(said))


def _image(fields: dict[str, Any]) -> Part:
    given = fields.get("image_url")
    places = (given, mapping(given).get("url"), fields.get("file_id"))
    return Part(PartKind.MEDIA, next((where(place) for place in places if text(place)), ""), "image")


def _audio(fields: dict[str, Any]) -> Part:
    form = text(mapping(fields.get("input_audio")).get("format"))
    return Part(PartKind.MEDIA, form and f"audio/{form}", "audio")


def _video(fields: dict[str, Any]) -> Part:
    return Part(PartKind.MEDIA, where(mapping(fields.get("video_url")).get("url")), "video")


def _file(fields: dict[str, Any]) -> Part:
    given = mapping(fields.get("file")) or fields
    names = (given.get(name) for name in ("filename", "file_url", "file_id", "file_data"))
    return Part(PartKind.MEDIA, next((where(name) for name in names if name), ""), "document")


_PIECES: dict[str, Callable[[dict[str, Any]], Part]] = {
    "text": _text,
    "input_text": _text,
    "output_text": _text,
    "summary_text": _text,
    "refusal": _refusal,
    "thinking": _thinking,
    "reasoning_text": _thinking,
    "image_url": _image,
    "input_image": _image,
    "computer_screenshot": _image,
    "input_audio": _audio,
    "video_url": _video,
    "file": _file,
    "input_file": _file,
}


def where(url: Any) -> str:
    """Where a medium lies; of one that stands in the message itself, its media type."""
    place = text(url)
    return place[5:100].partition(";")[0].partition(",")[0] if place.startswith("data:") else place


def joined(parts: tuple[Part, ...]) -> str:
    return "\n".join([part.text for part in parts if part.kind == PartKind.TEXT])


def result_of(output: Any, id: str = "", name: str = "", failed: bool = False) -> tuple[Part, ...]:
    """What a tool gave back: its texts as one part, then whatever else it gave."""
    if type(output) is not list:
        said = output if type(output) is str else written(output) if output else ""
        return (Part(PartKind.TOOL_RESULT, said, name, id, failed),)
    parts = parts_of(output)
    others = tuple(part for part in parts if part.kind != PartKind.TEXT)
    return (Part(PartKind.TOOL_RESULT, joined(parts), name, id, failed), *others)


def arguments_of(value: Any) -> str:
    """A function's arguments; none at all is said in two ways."""
    return (canonical(value) if type(value) is str else written(value) if value else "") or "{}"


# --- tokens


def usage_of(value: Any) -> Usage | None:
    """Tokens as OpenAI counts them: what was read from or written to a cache lies inside the prompt's count.

    Reasoning lies inside the output, except where the total says otherwise (xAI, and Gemini behind its OpenAI paths).
    """
    told = mapping(value)
    prompt = _first(told, "prompt_tokens", "input_tokens")
    output = _first(told, "completion_tokens", "output_tokens")
    if prompt is None and output is None:
        return None
    prompt, output = prompt or 0, output or 0
    went_in = _details(told, "prompt_tokens_details", "input_tokens_details")
    came_out = _details(told, "completion_tokens_details", "output_tokens_details")
    reasoning = count(came_out.get("reasoning_tokens")) or count(told.get("reasoning_tokens"))
    beside = max(0, count(told.get("total_tokens")) - prompt - output)
    # DeepSeek and Moonshot have no details.
    read = _first(went_in, "cached_tokens") or _first(told, "prompt_cache_hit_tokens", "cached_tokens") or 0
    # Of two lengths of keeping, the longer one is the dearer.
    kept_longer = count(mapping(went_in.get("cache_write_tokens_details")).get("ttl_12h_tokens"))
    stored = max(count(went_in.get("cache_write_tokens")), kept_longer)
    fresh = max(0, prompt - read - stored)
    cached = mapping(went_in.get("cached_tokens_details"))
    audio_read = min(read, count(cached.get("audio_tokens")))
    image_read = min(read, count(cached.get("image_tokens")))
    return Usage(
        input=fresh,
        cache_read=read,
        cache_write_5m=stored - kept_longer,
        cache_write_1h=kept_longer,
        output=output + beside,
        reasoning=min(max(reasoning, beside), output + beside),
        input_audio=min(fresh, max(0, count(went_in.get("audio_tokens")) - audio_read)),
        cache_read_audio=audio_read,
        output_audio=count(came_out.get("audio_tokens")),
        input_image=min(fresh, max(0, count(went_in.get("image_tokens")) - image_read)),
        output_image=count(came_out.get("image_tokens")),
    )


def _first(told: dict[str, Any], *names: str) -> int | None:
    return next((count(told[name]) for name in names if told.get(name) is not None), None)


def _details(told: dict[str, Any], *names: str) -> dict[str, Any]:
    return next((mapping(told[name]) for name in names if told.get(name)), {})
