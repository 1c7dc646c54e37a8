"""What the entries of the log mean: a request entry and its response entry in, a `Digest` out.

Live calls and logs of any age go this one way, so that an index made again is the same. Also the form in which a digest
stands in the log: facts without texts. Leaves out what each API says (`dialects`) and what it costs (`pricing`).
"""

from __future__ import annotations

import base64
import calendar
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

from llm_proxy.dialects import registry
from llm_proxy.dialects.content import Content
from llm_proxy.dialects.digest import TOKEN_CLASSES, Answer, Asked, Digest, Usage

Entry = dict[str, Any]

_LONGEST = 255  # characters of a name; what providers call things is shorter
_MOST = 1 << 53  # what numbers in JSON can say


def understand(request: Entry, response: Entry | None, asked: Asked | None = None) -> Digest:
    """What the call means, as far as it is known and understood. Never raises: `trouble` says what went wrong.

    `asked` spares understanding the request again where that was done before; its entry then needs no body.
    """
    try:
        return _understand(request, response, asked)
    except Exception as error:  # entries may be anybody's, and a bug of ours must not cost the record
        return Digest(Asked(trouble=f"not understood: {error!r}"[:_LONGEST]))


def _understand(request: Entry, response: Entry | None, asked: Asked | None) -> Digest:
    path = _text(request.get("path")).partition("?")[0]
    upgraded = _header(request, "upgrade").lower() == "websocket"
    api = registry.api_of(_text(request.get("method")), path, upgraded)
    if not api:
        return Digest(Asked())
    if response is None or response.get("websocket") is None:
        asked = asked or registry.asked(api, path, body_of(request))
        answers = registry.answers(api, path, _content(response)) if response is not None else ()
    else:
        content = Content("messages", messages=tuple(messages_of(response)), complete=_complete(response))
        asked = _asked_over(api, content.messages)
        answers = registry.answers(api, path, content)
    if response is None:
        return Digest(asked)
    told = response.get("digest")
    counted = not (isinstance(told, dict) and told.get("usage_counted") is False)
    return Digest(asked, answers, registry.limits(fields(response)), counted)


def _asked_over(api: str, messages: tuple[tuple[str, bytes], ...]) -> Asked:
    from llm_proxy.dialects.openai_responses import asked_in  # the only API that is spoken over WebSocket

    return replace(asked_in(messages), api=api)


# --- what stands in entries


def body_of(entry: Entry) -> bytes:
    """The body as far as it was kept, decoded; empty where it stands in another form or not at all."""
    return _data(entry.get("body"), entry.get("body_encoding") == "base64")


def stream_of(response: Entry) -> bytes | None:
    """The whole event stream that the chunks of a response were cut from; None where there are none."""
    chunks = response.get("chunks")
    if not isinstance(chunks, list):
        return None
    try:
        return _data("".join([chunk["raw"] for chunk in chunks]), False)
    except (KeyError, TypeError):  # a line that is no text
        return b"".join(map(_raw, chunks))


def _content(response: Entry) -> Content:
    stream = stream_of(response)
    status = response.get("status")
    return Content(
        "body" if stream is None else "events",
        body_of(response) if stream is None else stream,
        status=status if isinstance(status, int) else None,
        complete=_complete(response),
        media_type=_header(response, "content-type").partition(";")[0].strip().lower(),
        error_type=_header(response, "x-amzn-errortype").partition(":")[0].strip(),
    )


def _complete(response: Entry) -> bool:
    """Whether all that came stands there, and came to its end. Logs of old tell no ending."""
    return response.get("ending", "complete") == "complete" and not (
        response.get("truncated") or response.get("decode_error")
    )


def messages_of(response: Entry) -> Iterable[tuple[str, bytes]]:
    """(side, text) of the text messages of an upgraded connection, in order."""
    websocket = response.get("websocket")
    messages = websocket.get("messages") if isinstance(websocket, dict) else None
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict) and message.get("type") == "text":
            yield _text(message.get("from")), _raw(message)


def _raw(item: Any) -> bytes:
    if not isinstance(item, dict):
        return b""
    raw = item.get("raw")
    return _data(raw, False) if raw is not None else _data(item.get("base64"), True)


def _data(text: Any, is_base64: bool) -> bytes:
    if not isinstance(text, str):
        return b""
    if not is_base64:
        return text.encode("utf-8", "surrogatepass")
    try:
        return base64.b64decode(text)
    except ValueError:
        return b""


def _header(entry: Entry, name: str) -> str:
    return next((value for other, value in fields(entry) if other.lower() == name), "")


def fields(entry: Entry) -> Iterator[tuple[str, str]]:
    """(name, value) of the headers of an entry, whoever wrote it; "" for what is no text."""
    headers = entry.get("headers")
    for name, values in headers.items() if isinstance(headers, dict) else ():
        for value in values if isinstance(values, list) else [values]:
            yield name, _text(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


_MOMENT = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d):(\d\d)(?:\.(\d{1,9})\d*)?(?:Z|([+-])(\d\d):(\d\d))", re.ASCII)


def moment_of(entry: Entry) -> int | None:
    """The entry's time in nanoseconds since 1970; None where it tells none."""
    meta = entry.get("_meta")
    ts = (meta if isinstance(meta, dict) else entry).get("ts", entry.get("ts"))
    match = _MOMENT.fullmatch(ts) if isinstance(ts, str) else None
    if match is None:
        return None
    minute, second, fraction, sign, hours, minutes = match.groups()
    seconds = _minute(minute)
    if seconds is None:
        return None
    if sign:
        seconds -= int(sign + "1") * (int(hours) * 3600 + int(minutes) * 60)
    return (seconds + int(second)) * 1_000_000_000 + int((fraction or "").ljust(9, "0"))


@lru_cache(1024)
def _minute(said: str) -> int | None:
    numbers = tuple(int(part) for part in re.split("[-T:]", said))
    try:
        # Years beyond this do not fit in 63 bits of nanoseconds.
        return calendar.timegm((*numbers, 0)) if 1970 <= numbers[0] < 2262 else None
    except ValueError:
        return None


# --- a digest as it stands in the log


def facts(digest: Digest) -> Entry:
    """The object `digest` of a response entry: no texts, only what is there; empty where nothing is understood."""
    asked, last, usage = digest.asked, digest.last, digest.usage
    if not asked.api and not asked.trouble:
        return {}
    told = {
        "api": asked.api,
        "model": digest.model,
        "stop_reason": last.stop_reason,
        "service_tier": last.service_tier,
        "error_type": _error_type(last),
        "response_id": last.response_id,
        "trouble": last.trouble or asked.trouble,
    }
    entry: Entry = {name: value[:_LONGEST] for name, value in told.items() if value}
    if usage is not None:
        entry["usage"] = _usage(usage)
    if digest.partial:
        entry["partial"] = True
    if not digest.counted:
        entry["usage_counted"] = False
    return entry


def _error_type(answer: Answer) -> str:
    """Some providers name no type; that there was an error is told all the same."""
    return answer.error_type or ("error" if answer.error else "")


def _usage(usage: Usage) -> Entry:
    counts: Entry = {name: count for name in TOKEN_CLASSES if (count := getattr(usage, name))}
    if usage.server_tools:
        counts["server_tools"] = dict(usage.server_tools)
    return counts


def usage_from(facts: Entry) -> Usage | None:
    """The usage that such an object tells, whoever wrote it; None where it tells none."""
    counts = facts.get("usage")
    if not isinstance(counts, dict):
        return None
    tools = counts.get("server_tools")
    used = tools.items() if isinstance(tools, dict) else ()
    return Usage(
        **{name: counts[name] for name in TOKEN_CLASSES if _is_count(counts.get(name))},
        server_tools=tuple(sorted((name, uses) for name, uses in used if _is_count(uses))),
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MOST
