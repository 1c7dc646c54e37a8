"""Our AWS signatures are AWS's: published examples, the reference program's vectors, and botocore's over and over."""

from __future__ import annotations

import calendar
import datetime
import hashlib
import random
import string
import time
from urllib.parse import quote

import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from llm_proxy.wire.sigv4 import Key, Scope, canonical_path, canonical_query, sign

# The key of AWS's documentation.
ACCESS, SECRET = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
EMPTY = hashlib.sha256(b"").hexdigest()


def _at(stamp: str) -> float:
    return calendar.timegm(time.strptime(stamp, "%Y%m%dT%H%M%SZ"))


def _signature(signed) -> str:
    return dict(signed.fields)[b"authorization"].decode().rpartition("Signature=")[2]


# AWS's Signature Version 4 test suite: name, method, target, fields, body, signature.
HOST, DATE = (b"host", b"example.amazonaws.com"), "20150830T123600Z"
SUITE = [
    (
        "get-vanilla", b"GET", b"/", [HOST], b"",
        "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
    ),
    (
        "get-vanilla-query-order-key-case", b"GET", b"/?Param2=value2&Param1=value1", [HOST], b"",
        "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
    ),
    (
        "post-vanilla", b"POST", b"/", [HOST], b"",
        "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
    ),
    (
        "post-x-www-form-urlencoded", b"POST", b"/", [HOST, (b"content-type", b"application/x-www-form-urlencoded")],
        b"Param1=value1", "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
    ),
    (
        "get-header-value-trim", b"GET", b"/",
        [HOST, (b"my-header1", b" value1"), (b"my-header2", b' "a   b   c"')], b"",
        "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736",
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", SUITE, ids=[case[0] for case in SUITE])
def test_published_examples(case):
    """AWS's own test suite, service `service` in us-east-1."""
    _, method, target, fields, body, wanted = case
    digest = hashlib.sha256(body).hexdigest()
    signed = sign(
        Key(ACCESS, SECRET), Scope("us-east-1", "service"), _at(DATE), method=method, target=target, fields=fields,
        body_sha256=digest,
    )  # fmt: skip
    assert _signature(signed) == wanted


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        (
            b"/model/us.anthropic.claude-haiku-4-5-20251001-v1:0/invoke-with-response-stream",
            "b32c56048436c3a6238d7672acff6a91c4641bd3b14f5b0b6bc2505e19b39d06",
        ),
        (b"/model/simple/invoke", "8d0a223a45291d04923bb1da663ba3b0a6e1327045eb54d595f9c0f32789ce8e"),
    ],
)
def test_the_reference_programs_vectors(path, wanted):
    """The Go program's signatures, which sent `:` as it is."""
    body = b'{"anthropic_version":"bedrock-2023-05-31","max_tokens":1,"messages":[{"role":"user","content":"hi"}]}'
    digest = hashlib.sha256(body).hexdigest()
    assert len(body) == 101 and digest == "f4d78fc2785b44789662c0e3bea21fc5e8f54ca69b232186b3e5d1bb74e3ade7"
    signed = sign(
        Key("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
        Scope("us-west-2", "bedrock"),
        _at("20260102T030405Z"),
        method=b"POST",
        target=path,
        fields=[
            (b"accept", b"application/json"),
            (b"content-type", b"application/json"),
            (b"content-length", b"101"),
            (b"host", b"bedrock-runtime.us-west-2.amazonaws.com"),
        ],
        body_sha256=digest,
    )
    assert _signature(signed) == wanted


def _random_request(dice: random.Random):
    """A model call or a listing as clients write them, with odd header values."""
    region = dice.choice(["us-east-1", "eu-central-2", "us-gov-west-1"])
    words = [
        "".join(dice.choice(string.ascii_letters + string.digits) for _ in range(dice.randint(1, 12))) for _ in range(5)
    ]
    model = "".join(word + dice.choice("-._:/~") for word in words) + "0"
    spelled = dice.choice([quote(model, safe=""), quote(model, safe=":/")])
    if dice.random() < 0.8:
        method, target = "POST", f"/model/{spelled}/{dice.choice(['invoke', 'converse-stream', 'count-tokens'])}"
    else:
        pairs = [
            (dice.choice(["type", "maxResults", "a b", "ü"]), str(dice.random())) for _ in range(dice.randint(1, 4))
        ]
        method = "GET"
        target = "/inference-profiles?" + "&".join(f"{quote(n, safe='')}={quote(v, safe='')}" for n, v in pairs)
    headers = {"accept": "application/json"} | {
        f"{dice.choice(['anthropic', 'x-amzn-bedrock', 'x-amz-test'])}-{number}": "  ".join(
            "".join(dice.choice(string.ascii_letters + '",;=/') for _ in range(5)) for _ in range(dice.randint(1, 3))
        )
        for number in range(dice.randint(0, 4))
    }
    token = dice.choice(["", "FwoGZXIvYXdzE/" + "x" * dice.randint(1, 400) + "=="])
    return region, method, target, headers, dice.randbytes(dice.randint(0, 3000)), token, dice.randint(10**9, 2 * 10**9)


def test_two_hundred_requests_against_botocore(monkeypatch):
    """Canonical request and Authorization equal botocore's for 200 generated requests."""
    dice = random.Random(7)
    for _ in range(200):
        region, method, target, headers, body, token, now = _random_request(dice)
        moment = datetime.datetime.fromtimestamp(now, datetime.UTC)
        monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda remove_tzinfo=True, at=moment: at)
        host = f"bedrock-runtime.{region}.amazonaws.com"
        theirs = AWSRequest(method=method, url=f"https://{host}{target}", data=body, headers=headers)
        signer = botocore.auth.SigV4Auth(Credentials(ACCESS, SECRET, token or None), "bedrock", region)
        canonical = {}
        plain = signer.canonical_request
        monkeypatch.setattr(signer, "canonical_request", lambda r, p=plain, c=canonical: c.setdefault("text", p(r)))
        signer.add_auth(theirs)
        ours = sign(
            Key(ACCESS, SECRET, token),
            Scope(region, "bedrock"),
            now,
            method=method.encode(),
            target=target.encode(),
            fields=[*((n.encode(), v.encode()) for n, v in headers.items()), (b"host", host.encode())],
            body_sha256=hashlib.sha256(body).hexdigest(),
        )
        assert ours.canonical.decode() == canonical["text"]
        for name, value in ours.fields:
            assert theirs.headers[name.decode()] == value.decode()


def test_a_colon_is_encoded_twice():
    """A model id's `:` is sent as %3A and signed as %253A; one that is sent plain is signed as %3A."""
    assert canonical_path(b"/model/a%3A0/invoke") == b"/model/a%253A0/invoke"
    assert canonical_path(b"/model/a:0/invoke") == b"/model/a%3A0/invoke"
    assert canonical_path(b"") == b"/"


def test_the_query_is_sorted_by_name_and_value():
    """Names first, then values; a name without a value has an empty one."""
    assert canonical_query(b"b=2&a=2&b=1&a") == b"a=&a=2&b=1&b=2"


def test_the_secret_is_in_no_representation():
    """A key that gets into a log by mistake tells its public part only."""
    shown = repr(Key("AKIDEXAMPLE", "very-secret", "very-token"))
    assert "AKIDEXAMPLE" in shown and "secret" not in shown and "token" not in shown


def test_repeated_fields_are_joined():
    """Two lines of one name are signed as one value with a comma, in the order in which they are sent."""
    fields = [HOST, (b"my-header1", b"value4"), (b"my-header1", b"value1")]
    signed = sign(
        Key(ACCESS, SECRET), Scope("us-east-1", "service"), _at(DATE), method=b"GET", target=b"/", fields=fields,
        body_sha256=EMPTY,
    )  # fmt: skip
    assert b"\nmy-header1:value4,value1\n" in signed.canonical
