"""No credential of a head reaches the record, and nothing else is changed on the way."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from hashlib import sha256
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_proxy.wire.masking import masked_target, masked_value, without_keys


def mask(secret: bytes) -> bytes:
    return b"[masked sha256:%b len:%d]" % (sha256(secret).hexdigest()[:8].encode(), len(secret))


JWT = b"eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl-tail"
CANARY = b"c4n4ryc4n4ryc4n4ryc4n4ryc4n4ry32"

# The log format's own table for keys that begin `sk-`; everything else gets the one shape.
VALUES = [
    (b"x-api-key", b"sk-ant-api03-abcdefghijklmnop", b"sk-ant-...mnop"),
    (b"authorization", b"Bearer sk-proj-anothersecret999", b"Bearer sk-proj-...t999"),
    (b"authorization", b"Bearer sk-svcacct-ABCDEFGHIJKLMNOP", b"Bearer sk-...MNOP"),
    (b"authorization", b"Bearer sk-abc", b"Bearer sk-..."),
    (b"authorization", b"Bearer sk-ant-api03-xx", b"Bearer sk-ant-..."),
    (b"authorization", b"Bearer sk-ant-api03-xxx", b"Bearer sk-ant-...-xxx"),
    (b"authorization", b"bearer sk-ant-api03-abcdefghijklmnop", b"bearer sk-ant-...mnop"),
    (b"authorization", b"Basic dXNlcjpwYXNzd29yZA==", b"Basic " + mask(b"dXNlcjpwYXNzd29yZA==")),
    (b"authorization", b"Bearer opaque_token-ABCDEFGHIJ", b"Bearer " + mask(b"opaque_token-ABCDEFGHIJ")),
    (b"authorization", b"Bearer " + JWT, b"Bearer " + mask(JWT)),
    (b"authorization", b"secret first-word", mask(b"secret first-word")),
    (b"authorization", b"Bearer sk-a, Bearer sk-b", b"Bearer " + mask(b"sk-a, Bearer sk-b")),
    (b"authorization", b"Bearer sk-a\xff", b"Bearer " + mask(b"sk-a\xff")),
    (
        b"authorization",
        b"AWS4-HMAC-SHA256 Credential=AKIA/x, Signature=deadbeef",
        b"AWS4-HMAC-SHA256 " + mask(b"Credential=AKIA/x, Signature=deadbeef"),
    ),
    (b"x-api-key", JWT, mask(JWT)),
    (
        b"sec-websocket-protocol",
        b"realtime, openai-insecure-api-key.sk-abcdefghijklmnop, openai-beta.realtime-v1",
        b"realtime, openai-insecure-api-key.sk-...mnop, openai-beta.realtime-v1",
    ),
    (b"sec-websocket-protocol", b"token, " + CANARY, b"token, " + mask(CANARY)),
    (
        b"sec-websocket-protocol",
        b"base64url.bearer.authorization.k8s.io." + CANARY,
        b"base64url.bearer." + mask(b"authorization.k8s.io." + CANARY),
    ),
    (b"location", b"/callback?code=xyz&state=1", b"/callback?code=" + mask(b"xyz") + b"&state=1"),
    (b"location", b"https://h/#access_token=xyz", b"https://h/#access_token=" + mask(b"xyz")),
    (b"location", b"//u:p@h/x", b"//" + mask(b"u:p") + b"@h/x"),
    (b"referer", b"https://u:p@ss@h/x?a=1", b"https://" + mask(b"u:p@ss") + b"@h/x?a=1"),
    (b"link", b"<https://h/?sig=xyz>; rel=next", b"<https://h/?sig=" + mask(b"xyz") + b">; rel=next"),
    (b"x-upstream", b"https://h/?a=1;key=xyz", b"https://h/?a=1;key=" + mask(b"xyz")),
    (b"x-note", b"key is sk-ant-api03-abcdefghijklmnop, ok", b"key is sk-ant-...mnop, ok"),
    (b"x-note", b'{"auth":"Bearer ' + CANARY + b'"}', b'{"auth":"Bearer ' + mask(CANARY) + b'"}'),
    (b"x-note", b"caf\xc3\xa9 " + JWT, b"caf\\xc3\\xa9 " + mask(JWT)),
]

SECRET_NAMES = [
    "authorization",
    "proxy-authorization",
    "x-forwarded-authorization",
    "x-api-key",
    "api-key",
    "x-goog-api-key",
    "cookie",
    "set-cookie",
    "x-amz-security-token",
    "x-auth-token",
    "token",
    "x-vault-token",
    "anthropic-user-token",
    "x-client-secret",
    "x-password",
    "x-credential",
    "x-signature",
    "x-hub-signature-256",
    "ocp-apim-subscription-key",
    "x-functions-key",
    "helicone-auth",
    "cf-access-jwt-assertion",
    "x_api_key",
    "apikey",
    "x-secret-thing",
]

PLAIN = [
    (b"idempotency-key", CANARY),
    (b"x-stainless-idempotency-key", CANARY),
    (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="),
    (b"anthropic-ratelimit-tokens-limit", b"100"),
    (b"anthropic-ratelimit-input-tokens-remaining", b"99"),
    (b"x-ratelimit-remaining-tokens", b"10"),
    (b"x-amzn-bedrock-input-token-count", b"10"),
    (b"anthropic-version", b"2023-06-01"),
    (b"anthropic-beta", b"token-efficient-tools-2025-02-19,oauth-2025-04-20"),
    (b"access-control-allow-credentials", b"true"),
    (b"accept-language", b"sk-SK,sk-Latn-SK;q=0.9"),
    (b"user-agent", b"task-runner/1.0 risk-assessment-tool-x"),
    (b"www-authenticate", b'Bearer realm="somewhere", error_description="expired"'),
    (b"x-claude-code-session-id", b"0f5b1d3e-8a3c-4b62-9f6e-1c2d3e4f5a6b"),
    (b"content-type", b"multipart/form-data; boundary=----x?y"),
    (b"from", b"alice@example.com"),
    (b"location", b"https://h/@scope/package?page=2&max_tokens=5"),
    (b"authorization", b""),
    (b"x-caf\xc3\xa9", b"caf\xc3\xa9"),
]


@pytest.mark.parametrize(("name", "value", "expected"), VALUES)
def test_a_credential_is_replaced_by_its_shape(name, value, expected):
    """Each value gets exactly the documented form."""
    assert masked_value(name, value) == expected


@pytest.mark.parametrize("name", SECRET_NAMES)
def test_whatever_a_secret_name_carries_is_masked(name):
    """The name decides, whatever the value looks like."""
    assert masked_value(name.encode(), CANARY) == mask(CANARY)


@pytest.mark.parametrize(("name", "value"), PLAIN)
def test_what_is_no_credential_stays(name, value):
    """Rate limits, versions, ids and nonces are facts of the record."""
    assert masked_value(name, value) is None


KEYS = [
    b"sk-ant-oat01-" + CANARY,
    b"AIza" + CANARY + b"abc",
    b"AKIAIOSFODNN7EXAMPLE",
    b"ASIAIOSFODNN7EXAMPLE",
    b"ABSK" + CANARY,
    b"ghp_" + CANARY,
    b"hf_" + CANARY,
    b"gsk_" + CANARY,
    b"xai-" + CANARY,
    b"ya29." + CANARY,
    JWT,
    b"eyJhbGciOiJub25lIn0.eyJzdWIi.",  # cut short
    JWT + b".part4.part5",
]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("around", [(b"", b""), (b"a ", b" b"), (b"x=", b",y"), (b'"', b'"'), (b"%3D", b"&z")])
def test_a_vendor_key_is_masked_anywhere(key, around):
    """Also under a name nobody knows, in a query, or encoded into another URL; what stands beside it stays."""
    before, after = around
    for text in (masked_value(b"x-unknown", before + key + after), masked_target(b"/p?q=" + before + key + after)):
        assert text is not None and key not in text and key[8:-8] not in text
        assert before in text and text.endswith(after)


TARGETS = [
    (b"/v1beta/models/m:generateContent?key=AIzaXYZ&alt=sse", b"key", b"AIzaXYZ"),
    (b"/a?api_key=s", b"api_key", b"s"),
    (b"/a?apikey=s&x=%20", b"apikey", b"s"),
    (b"/a?apiKey=s", b"apiKey", b"s"),
    (b"/a?x=1&access_token=s", b"access_token", b"s"),
    (b"/a?token=s", b"token", b"s"),
    (b"/a?sig=s%26t&se=1", b"sig", b"s%26t"),
    (b"/a?signature=s", b"signature", b"s"),
    (b"/a?X-Amz-Signature=s&X-Amz-Date=d", b"X-Amz-Signature", b"s"),
    (b"/a?X-Amz-Security-Token=s", b"X-Amz-Security-Token", b"s"),
    (b"/a?X-Amz-Credential=s", b"X-Amz-Credential", b"s"),
    (b"/a?client_secret=s", b"client_secret", b"s"),
    (b"/a?password=s?t=u/v", b"password", b"s?t=u/v"),
    (b"/a?code=s", b"code", b"s"),
    (b"/a?%6bey=s", b"%6bey", b"s"),
    (b"/a?%4B%45%59=s", b"%4B%45%59", b"s"),
    (b"/a?auth[token]=s", b"auth[token]", b"s"),
    (b"/a?a;key=s", b"key", b"s"),
    (b"/a?key==s=", b"key", b"=s="),
    (b"/a?next=https%3A%2F%2Fh%2F%3Ftoken%3Ds%26b&c=1", b"token%3D", b"s%26b"),
    (b"/a?next=%2F%253Ftoken%253Ds&c=1", b"token%253D", b"s"),
]


@pytest.mark.parametrize(("target", "name", "secret"), TARGETS)
def test_secret_query_values_are_masked_and_the_rest_is_identical(target, name, secret):
    """Names may be percent-encoded, in any case, or belong to a URL inside the query."""
    written = name if b"%3D" in name or b"%253D" in name else name + b"="
    assert masked_target(target) == target.replace(written + secret, written + mask(secret))


@pytest.mark.parametrize(
    "target",
    [
        b"/",
        b"/v1/messages?beta=true",
        b"/a?",
        b"/a?key",
        b"/a?key=",
        b"/key=abc/token=abc",
        b"/model/arn%3Aaws%3Abedrock/invoke",
        b"/v1/models?limit=1000&pageToken=abc&max_tokens=3&prompt_cache_key=k",
        b"/a?monkey=1&tokens=2&author=x&codec=y",
        b"/caf\xc3\xa9?q=\xff&&==&a==b&%zz=%",
        b"*",
    ],
)
def test_a_target_without_secrets_is_untouched(target):
    """Byte-identical, odd escapes and obs-text included."""
    assert masked_target(target) == target


def test_userinfo_of_an_absolute_target_is_masked():
    """A name and password before the host never reach the record; an @ in the path is no userinfo."""
    assert masked_target(b"http://u:p@h/a@b") == b"http://" + mask(b"u:p") + b"@h/a@b"
    assert masked_target(b"/a?u=http%3A%2F%2Fu%3Ap%40h") == b"/a?u=http%3A%2F%2F" + mask(b"u%3Ap") + b"%40h"


SECRETS = st.text("abcdefXYZ0189-_.~+/", min_size=20, max_size=60).map(lambda text: b"zq" + text.encode() + b"qz")
FIELD = st.binary(max_size=60).map(lambda value: re.sub(rb"[\x00-\x08\x0a-\x1f\x7f]", b"", value).strip())


@given(st.sampled_from(SECRET_NAMES), SECRETS, st.sampled_from([b"", b"Bearer ", b"Basic ", b"whatever "]))
def test_no_four_bytes_of_a_secret_survive(name, secret, scheme):
    """Only `sk-` keys keep a tail; of everything else only its digest and length are kept."""
    masked = masked_value(name.encode(), scheme + secret)
    assert masked is not None
    rest = re.sub(rb"\[masked sha256:[0-9a-f]{8} len:\d+\]", b"", masked)
    assert rest in (b"", scheme)


@given(st.sampled_from([*SECRET_NAMES, "location", "x-other", "sec-websocket-protocol"]), FIELD)
def test_a_masked_value_is_one_printable_line_and_masking_it_again_changes_nothing(name, value):
    """Hostile bytes beside a secret cannot break a line of the record."""
    masked = masked_value(name.encode(), value)
    if masked is not None:
        assert re.fullmatch(rb"[\x20-\x7e]*", masked)
        assert masked_value(name.encode(), masked) is None


@given(st.binary(max_size=200))
def test_the_path_is_never_touched_and_masking_settles(tail):
    """Whatever the query holds."""
    masked = masked_target(b"/v1/messages?" + tail)
    assert masked.startswith(b"/v1/messages?")
    assert masked_target(masked) == masked


@given(st.text(max_size=30), SECRETS, st.text(max_size=30))
def test_a_secret_between_strangers_is_masked_whatever_surrounds_it(before, secret, after):
    """Neighbours in the query cannot shield the value of `key`."""
    target = b"/?" + quote(before).encode() + b"&key=" + secret + b"&" + quote(after).encode()
    assert secret not in masked_target(target)


@pytest.mark.parametrize(
    "unit",
    [
        b"%25",
        b"%3a%2f%2f",
        b"?a",
        b"://",
        b"a",
        b"eyJaaaa",
        b"bearer ",
        b"&key=a",
        b"//a",
        b"sk-",
        b"aB",
        b"%41",
        b"token",
    ],
)
def test_a_full_head_of_hostile_bytes_costs_little(unit):
    """64 KiB is the largest head; no pattern goes quadratic on it."""
    value = unit * (65536 // len(unit))
    started = time.process_time()
    for name in (b"x", b"authorization", b"location", b"sec-websocket-protocol"):
        masked_value(name, value)
    masked_target(b"/?" + value)
    assert time.process_time() - started < 2


def test_text_is_left_alone_but_for_keys():
    """The second rule alone, for texts that are no field: an upstream's error message echoing the key."""
    echoed = b'{"error":"Incorrect API key provided: sk-proj-' + CANARY + b'"}\r\n'
    assert without_keys(echoed) == echoed.replace(b"sk-proj-" + CANARY, b"sk-proj-..." + CANARY[-4:])


def test_the_module_is_small():
    """The proxy process imports it: standard library only, and little of that."""
    code = "import sys, llm_proxy.wire.masking; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, timeout=30)
    loaded = set(done.stdout.split())
    assert {name for name in loaded if name.startswith("llm_proxy.")} == {
        "llm_proxy.wire",
        "llm_proxy.wire.masking",
    }
    assert not loaded & {"json", "urllib.parse", "msgspec", "asyncio"}
