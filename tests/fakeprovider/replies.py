"""Answers that a fault puts in the place of the provider's own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from tests.fakeprovider.answers import Answer, Fields, document, new_id
from tests.fakeprovider.delivery import BLOCK
from tests.fakeprovider.faults import Plan
from tests.fakeprovider.http1 import Head
from tests.fakeprovider.routes import Route, call_for
from tests.fakeprovider.seen import SeenRequest

BINARY: Fields = ((b"Content-Type", b"application/octet-stream"),)
RETRY_LATER = (429, 503, 529)


def answer_for(head: Head, seen: SeenRequest, plan: Plan, route: Route) -> Answer:
    """What a complete request is answered with, before framing."""
    replaced = _in_place(head, seen, plan)
    if replaced:
        return replaced
    if "status" in plan:
        return error(plan["status"], route)
    try:
        call = call_for(head, seen, plan)
    except ValueError as exc:
        return error(400, route, str(exc))
    answer = route.handle(call)
    pieces = answer.pieces
    if "error-event" in plan and answer.length is None:
        failure = route.provider.error_event("The fake provider was told to fail.")
        pieces = itertools.chain(itertools.islice(pieces, plan["error-event"]), [failure])
    fields = (*answer.fields, *route.provider.fields(new_id("")))
    return Answer(answer.status, fields, pieces, answer.length)


def error(status: int, route: Route, message: str = "The fake provider was told to fail.") -> Answer:
    """An error in the shape of the route's provider."""
    later: Fields = ((b"retry-after", b"1"),) if status in RETRY_LATER else ()
    return document(route.provider.error(status, message), (*route.provider.fields(new_id("")), *later), status)


def _in_place(head: Head, seen: SeenRequest, plan: Plan) -> Answer | None:
    if "huge" in plan:
        return Answer(200, BINARY, _blocks(plan["huge"]), plan["huge"])
    if "chunks" in plan:
        return Answer(200, BINARY, itertools.repeat(b"c", plan["chunks"]), None)
    if "echo" in plan:
        return _binary(seen.raw_head + seen.raw_body)
    if "bytes" in plan:
        return _binary(plan["bytes"])
    if "upload-sink" in plan:
        return document({"size": seen.size, "sha256": seen.sha256})
    if "redirect" in plan:
        return document({}, ((b"Location", b"/v1/elsewhere?from=fake"),), plan["redirect"])
    if "no-body" in plan:
        return Answer(plan["no-body"], ((b"X-Request-Id", b"req_none"),), (), 0)
    return None


def _binary(body: bytes) -> Answer:
    return Answer(200, BINARY, (body,), len(body))


def _blocks(size: int) -> Iterator[bytes]:
    for start in range(0, size, len(BLOCK)):
        yield BLOCK[: size - start]
