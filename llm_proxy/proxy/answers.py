"""What this process says itself: error bodies in the providers' shapes, and plain answers. Pure bytes, no JSON library.

One body serves the Anthropic and OpenAI SDKs alike; Google's wants a numeric code, AWS's the error's type in a field.
"""

from __future__ import annotations

import base64
import hashlib
import re
from html import escape

EXPLORER = "explorer"  # whoever looks there is a person with a browser

REASONS = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    429: "Too Many Requests",
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
# Anthropic's, where the status says more than that the request was wrong.
_ANTHROPIC_ERRORS = {
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
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
    if provider == EXPLORER:
        return _page(status, code, message, close=close)
    message = f"llm-proxy: {message}"
    extra = f"X-LLM-Proxy-Error: {code}\r\n"
    if provider == "bedrock":
        body = f'{{"message":{quoted(message)}}}'
        extra += f"x-amzn-errortype: {_BEDROCK_ERRORS.get(status, _BEDROCK_FAULT)}\r\n"
    elif provider == "gemini":
        body = f'{{"error":{{"code":{status},"message":{quoted(message)},"status":{quoted(code.upper())}}}}}'
    else:
        kind = "invalid_request_error" if status < 500 else "api_error"
        if provider == "anthropic":
            kind = _ANTHROPIC_ERRORS.get(status, kind)
        body = (
            f'{{"type":"error","error":{{"type":"{kind}","message":{quoted(message)},'
            f'"code":{quoted(code)},"param":null}}}}'
        )
    return answer(status, body.encode(), close=close, extra=extra)


# Until the explorer's own pages can be had, this one stands for them: whole in itself, and nothing runs in it.
_STYLE = (
    ":root{color-scheme:light dark;--bg:#fbfbfa;--text:#16191d;--text-2:#474e58}"
    "@media (prefers-color-scheme:dark){:root{--bg:#0e1013;--text:#e7e9ec;--text-2:#b1b8c1}}"
    "body{margin:0;background:var(--bg);color:var(--text);font:14px/22px Inter,ui-sans-serif,system-ui,sans-serif}"
    "main{max-width:60ch;margin:14vh auto 0;padding:0 24px}h1{font-size:20px;line-height:28px;font-weight:600}"
    "p{color:var(--text-2);overflow-wrap:anywhere}a{color:inherit}"
)
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_CSP = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADINGS = {
    "explorer_starting": "The explorer is starting",
    "explorer_off": "There is no explorer now",
    "read_only": "The explorer only shows",
    "not_allowed": "The explorer does not open this way",
    "upstream_timeout": "The explorer does not answer",
    "stopping": "llm-proxy is stopping",
}
_AGAIN = (
    "explorer_starting",
    "upstream_reset",
    "upstream_truncated",
)  # over in a moment: the page asks again by itself
_COME_AGAIN = "Retry-After: 1\r\nRefresh: 1\r\n"  # for programs, and for browsers
_LINK = '<p>If a link of another site led you here: <a href="">open this page from here</a>.</p>'


def _page(status: int, code: str, message: str, *, close: bool) -> bytes:
    """The same as `error`, as a page."""
    again = code in _AGAIN
    heading = _HEADINGS.get(code, "The explorer has stopped")
    said = "This page asks again by itself." if again else escape(message[:1].upper() + message[1:]) + "."
    text = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width,initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<title>{heading} · llm-proxy</title>"
        f"<style>{_STYLE}</style></head><body><main><h1>{heading}</h1><p>{said}</p>"
        f"{_LINK if code == 'not_allowed' else ''}</main></body></html>"
    )
    extra = (
        f"X-LLM-Proxy-Error: {code}\r\nContent-Security-Policy: {_CSP}\r\nReferrer-Policy: no-referrer\r\n"
        "Cross-Origin-Resource-Policy: same-origin\r\n"
        f"{_COME_AGAIN if again else ''}"
        f"{'Allow: GET, HEAD' + chr(13) + chr(10) if status == 405 else ''}"
    )
    return answer(status, text.encode(), content_type="text/html; charset=utf-8", close=close, extra=extra)
