"""What this process says itself: error bodies in the providers' shapes, and plain answers. Pure bytes, no JSON library.

One body serves the Anthropic and OpenAI SDKs alike; Google's wants a numeric code, AWS's the error's type in a field.
"""

from __future__ import annotations

import re

REASONS = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    413: "Content Too Large",
    431: "Request Header Fields Too Large",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}

# AWS's names of errors, which its SDKs make classes of; where the status has none, it is the service's fault.
_BEDROCK_ERRORS = {
    400: "ValidationException",
    403: "AccessDeniedException",
    404: "UnknownOperationException",
    405: "UnknownOperationException",
    413: "RequestEntityTooLargeException",
}
_BEDROCK_FAULT = "ServiceUnavailableException"

_ESCAPED = re.compile(r'[\x00-\x1f"\\\x7f-\x9f\u2028\u2029\ud800-\udfff<>&]')


def quoted(text: str) -> str:
    """A JSON string."""
    return '"' + _ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + '"'


def answer(
    status: int, body: bytes, *, content_type: str = "application/json", close: bool = False, extra: str = ""
) -> bytes:
    """A whole response of ours."""
    head = (
        f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
        f"Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n{extra}"
        f"{'Connection: close' + chr(13) + chr(10) if close else ''}\r\n"
    )
    return head.encode("latin-1") + body


def without_body(answer: bytes) -> bytes:
    """The same as an answer to HEAD."""
    return answer[: answer.index(b"\r\n\r\n") + 4]


def error(status: int, code: str, message: str, *, provider: str = "", close: bool = False) -> bytes:
    """An error of ours: `code` is also in `x-llm-proxy-error`, so a provider's error is never taken for ours."""
    message = f"llm-proxy: {message}"
    extra = f"X-LLM-Proxy-Error: {code}\r\n"
    if provider == "bedrock":
        body = f'{{"message":{quoted(message)}}}'
        extra += f"x-amzn-errortype: {_BEDROCK_ERRORS.get(status, _BEDROCK_FAULT)}\r\n"
    elif provider == "gemini":
        body = f'{{"error":{{"code":{status},"message":{quoted(message)},"status":{quoted(code.upper())}}}}}'
    else:
        kind = "invalid_request_error" if status < 500 else "api_error"
        body = (
            f'{{"type":"error","error":{{"type":"{kind}","message":{quoted(message)},'
            f'"code":{quoted(code)},"param":null}}}}'
        )
    return answer(status, body.encode(), close=close, extra=extra)
