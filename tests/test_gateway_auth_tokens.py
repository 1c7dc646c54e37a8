"""What the gateway's tokens, keys, passwords and throttles are, without a store."""

import asyncio
import base64
import hashlib
import hmac
import itertools
import json
import string
import time
from datetime import UTC, datetime, timedelta

import argon2
import bcrypt
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from llm_proxy.gateway import accounts, apikeys, passwords, session_tokens, throttle
from llm_proxy.gateway.common_passwords import COMMON
from llm_proxy.gateway.passwords import Passwords
from llm_proxy.gateway.refusals import Refusal
from llm_proxy.gateway.session_tokens import BadToken, SessionTokens
from tests.gatewaydoor import JWT_SECRET as SECRET
from tests.gatewaydoor import old_token

TOKENS = SessionTokens(SECRET)
SID = "8f14e45f-ceea-467f-ab3d-000000000001"


def _now():
    return datetime.now(UTC)


def _key():
    """What a session's tokens are signed with, had from the code: the attacker of these tests has stolen it."""
    return TOKENS._keys[session_tokens._ACCESS]


def _claims(**changed):
    at = int(time.time())
    claims = {
        "iss": "llm-proxy",
        "aud": "llm-proxy gateway",
        "sub": "7",
        "sid": SID,
        "jti": "1",
        "iat": at,
        "exp": at + 900,
    }
    return {name: value for name, value in (claims | changed).items() if value is not None}


def _b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _signed(head, payload, key=None):
    """A JWT by hand, so that a library's own care is not in the way."""
    body = f"{_b64(head if isinstance(head, bytes) else json.dumps(head).encode())}.{_b64(payload)}"
    return f"{body}.{_b64(hmac.digest(key or _key(), body.encode(), hashlib.sha256))}"


HEAD = b'{"alg":"HS256","typ":"JWT"}'


def test_a_session_token_tells_whose_session_it_is_for_a_quarter_of_an_hour():
    """Made and read back; the other kinds' readers refuse it, and all are refused by another gateway."""
    at = _now()
    access, refresh = TOKENS.access(7, SID, at), TOKENS.refresh(7, SID, at, at + timedelta(days=30))
    cookie = TOKENS.browser(7, SID, at)
    read = TOKENS.of_access(access)
    assert (read.user_id, read.session_id) == (7, SID)
    assert timedelta(minutes=14) < read.expires_at - at <= timedelta(minutes=15)
    assert TOKENS.of_refresh(refresh).session_id == TOKENS.of_browser(cookie).session_id == SID
    assert TOKENS.of_browser(cookie).expires_at - at <= timedelta(days=30)
    other = SessionTokens(SECRET + "!")
    kinds = {"of_access": access, "of_refresh": refresh, "of_browser": cookie}
    for reads, kind in itertools.product(kinds, kinds):
        for tokens in (TOKENS, other) if reads != kind else (other,):
            with pytest.raises(BadToken):
                getattr(tokens, reads)(kinds[kind])
    assert len({TOKENS.access(7, SID, at) for _ in range(50)}) == 50
    assert len({*TOKENS._keys.values(), SECRET.encode()}) == 4


def test_a_token_by_hand_is_read():
    """What the attacks below change one thing of is good as it is: else they would show nothing."""
    assert TOKENS.of_access(_signed(HEAD, json.dumps(_claims(), separators=(",", ":")).encode())).user_id == 7


def _refused(token, words=""):
    with pytest.raises(BadToken, match=words or None) as refused:
        TOKENS.of_access(token)
    return refused.value


def test_alg_none_is_refused():
    """Whatever its case, with and without a signature."""
    for name in ("none", "None", "NONE", "nOnE"):
        payload = json.dumps(_claims(), separators=(",", ":")).encode()
        head = json.dumps({"alg": name, "typ": "JWT"}).encode()
        _refused(f"{_b64(head)}.{_b64(payload)}.")
        _refused(_signed(head, payload))
    _refused(jwt.encode(_claims(), None, "none"))


def test_another_secret_is_refused():
    """Also the secret itself, which TokenTracer signed with, and no secret at all."""
    for key in (b"another secret of enough characters for it", SECRET.encode(), b"\0" * 32):
        _refused(_signed(HEAD, json.dumps(_claims(), separators=(",", ":")).encode(), key), "ignature")


def test_an_empty_or_cut_signature_is_refused():
    """Every shorter one, and every changed character."""
    token = TOKENS.access(7, SID, _now())
    body, _, signature = token.rpartition(".")
    for end in range(len(signature)):
        _refused(f"{body}.{signature[:end]}")
    for place in range(len(token)):
        changed = token[:place] + ("A" if token[place] != "A" else "B") + token[place + 1 :]
        _refused(changed)


def test_rsa_is_no_way_in():
    """RS256 by a key of the attacker's, and HS256 with a public key as the secret (CVE-2022-29217)."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    _refused(jwt.encode(_claims(), private, "RS256"))
    _refused(_signed(HEAD, json.dumps(_claims(), separators=(",", ":")).encode(), public), "ignature")
    for algorithm in ("HS384", "HS512"):
        _refused(jwt.encode(_claims(), _key().ljust(64, b"\0"), algorithm))


@pytest.mark.parametrize(
    "more",
    [
        {"kid": "../../dev/null"},
        {"kid": "' UNION SELECT 'x"},
        {"jku": "https://evil.example/keys"},
        {"x5u": "https://evil.example/cert"},
        {"jwk": {"kty": "oct", "k": "AAAA"}},
        {"crit": ["exp"]},
        {"b64": False, "crit": ["b64"]},
        {"zip": "DEF"},
        {"typ": "JWE"},
    ],
    ids=lambda more: "-".join(more),
)
def test_a_head_leads_nowhere(more):
    """`kid`, `jku`, `jwk` and the like choose no key: a head that is not ours is refused, signed with their key or ours."""
    head = {"alg": "HS256", "typ": "JWT"} | more
    payload = json.dumps(_claims(), separators=(",", ":")).encode()
    for key in (b"", b"\0", _key()):
        _refused(_signed(json.dumps(head, separators=(",", ":")).encode(), payload, key or b"\0"), "no token of ours")


@pytest.mark.parametrize(
    "changed",
    [
        {"exp": None},
        {"iat": None},
        {"sub": None},
        {"jti": None},
        {"sid": None},
        {"iss": None},
        {"aud": None},
        {"iss": "somebody"},
        {"iss": ["llm-proxy"]},
        {"aud": "llm-proxy gateway refresh"},
        {"aud": ["llm-proxy gateway", "others"]},
        {"aud": "another"},
        {"nbf": 4102444800},
        {"iat": 4102444800, "exp": 4102445000},
        {"exp": "4102444800"},
        {"exp": float("inf")},
        {"exp": -1},
        {"exp": 10**30},
        {"iat": 1.5},
        {"exp": 4102444800},
        {"sub": 7},
        {"sub": ""},
        {"sub": "-7"},
        {"sub": "7 "},
        {"sub": "٧"},
        {"sub": "9" * 40},
        {"sub": "7; DROP TABLE users"},
        {"sid": 7},
        {"sid": ["x"]},
        {"jti": 7},
    ],
    ids=str,
)
def test_claims_that_are_not_ours_are_refused(changed):
    """Each claim must be there, of its kind and ours; even signed with our key, a token for longer than ours is none."""
    _refused(_signed(HEAD, json.dumps(_claims(**changed), separators=(",", ":")).encode()))


def test_an_expired_token_is_told_apart():
    """Its owner is to renew it, so he is told; with another signature it is just no token."""
    at = int(time.time()) - 3600
    payload = json.dumps(_claims(iat=at, exp=at + 900), separators=(",", ":")).encode()
    assert _refused(_signed(HEAD, payload)).expired
    assert not _refused(_signed(HEAD, payload, b"another secret of enough characters for it")).expired


def test_claims_that_come_twice_are_refused():
    """As is every other spelling of what is signed: spaces, escapes, padding."""
    plain = json.dumps(_claims(), separators=(",", ":"))
    for payload in (
        plain[:-1] + ',"sub":"7"}',
        plain[:-1] + ',"sub":"1"}',
        '{"sub":"1",' + plain[1:],
        json.dumps(_claims()),
        plain.replace('"7"', '"\\u0037"'),
    ):
        _refused(_signed(HEAD, payload.encode()))
    good = _signed(HEAD, plain.encode())
    for changed in (good + "=", good + ".", " " + good, good + "\n", good.replace(".", "..", 1)):
        _refused(changed)


def test_what_is_no_object_is_refused():
    """A list, a number, nothing, depth, bytes that are no UTF-8, all signed with our key."""
    for payload in (b"[]", b"7", b"", b"null", b"\xff\xfe", b"[" * 1500 + b"]" * 1500, b'{"exp":1e400}'):
        _refused(_signed(HEAD, payload))


def test_a_token_of_100_kb_is_refused_unread():
    """Before anything is decoded: a thousand take no time."""
    token = _signed(HEAD, json.dumps(_claims(more="x" * 75_000), separators=(",", ":")).encode())
    assert len(token) > 100_000
    begun = time.perf_counter()
    for _ in range(1000):
        _refused(token, "no token of ours")
    assert time.perf_counter() - begun < 10


def test_the_wrong_keys_of_published_vectors_are_refused():
    """RFC 7515 A.1's token, signed with its own key, is nobody's here."""
    _refused(
        "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9."
        "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ."
        "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
    )


def test_api_keys_of_tokentracer_are_read_and_its_sessions_are_not():
    """Signed with the secret itself, scope `api_key`, however short the secret is."""
    assert TOKENS.of_old_key(old_token()) > _now()
    assert SessionTokens("short").of_old_key(old_token(secret="short")) > _now()
    assert SessionTokens("long" * 40).of_old_key(old_token(secret="long" * 40)) > _now()
    for token in (
        old_token("session"),
        old_token(secret="another"),
        old_token(exp=None),
        old_token(exp=10**30),
        TOKENS.access(7, SID, _now()),
    ):
        with pytest.raises(BadToken):
            TOKENS.of_old_key(token)
    for token in (old_token(), old_token("session")):
        _refused(token)
    with pytest.raises(BadToken) as refused:
        TOKENS.of_old_key(old_token(exp=1_600_000_000))
    assert refused.value.expired


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_whatever_is_signed_is_read_or_refused(payload):
    """No payload raises anything but BadToken."""
    for reader, key in ((TOKENS.of_access, None), (TOKENS.of_old_key, SECRET.encode())):
        with pytest.raises(BadToken):
            reader(_signed(HEAD, payload, key))


def test_an_api_key_is_long_random_and_checked():
    """54 characters of base 62; every mistyped, swapped, missing or additional character is seen without the store."""
    key = apikeys.new(apikeys.KEY)
    assert len(key) == apikeys.LENGTH == 54 and key.startswith("llmp_") and key[5:].isalnum() and key.isascii()
    assert apikeys.genuine(key, apikeys.KEY) and not apikeys.genuine(key, apikeys.INVITATION)
    for place in range(len(key)):
        for other in "0aZ_-é":
            changed = key[:place] + other + key[place + 1 :]
            assert changed == key or not apikeys.genuine(changed, apikeys.KEY), changed
        assert not apikeys.genuine(key[:place] + key[place + 1 :], apikeys.KEY)
        swapped = key[:place] + key[place : place + 2][::-1] + key[place + 2 :]
        assert swapped == key or not apikeys.genuine(swapped, apikeys.KEY)
    assert not apikeys.genuine(key.lower(), apikeys.KEY) and not apikeys.genuine(key + "0", apikeys.KEY)
    assert len({apikeys.new(apikeys.KEY) for _ in range(1000)}) == 1000
    assert set("".join(apikeys.new("")[:-6] for _ in range(500))) == set(string.ascii_letters + string.digits)


def test_the_documented_key_has_the_documented_checksum():
    """Whoever writes a scanner for leaked keys can go by docs/gateway-accounts.md."""
    from pathlib import Path

    page = (Path(__file__).parent.parent / "docs/gateway-accounts.md").read_text()
    example = next(word for word in page.replace("`", " ").split() if word.startswith("llmp_") and len(word) > 40)
    assert apikeys.genuine(example, apikeys.KEY)


@pytest.mark.parametrize(
    ("password", "words"),
    [
        ("", "at least 8"),
        ("seven77", "at least 8"),
        ("x" * 129, "at most 128"),
        ("password", "first that are guessed"),
        ("PassWord", "first that are guessed"),
        ("password123!", "first that are guessed"),
        ("Summer2026!", "first that are guessed"),
        ("12345678", "first that are guessed"),
        ("qwertyuiop", "first that are guessed"),
        ("ｐａｓｓｗｏｒｄ", "first that are guessed"),
        ("aaaaaaaaaaaa", "same few characters"),
        ("abababcccccc", "same few characters"),
        ("bob.builder@example.com", "your e-mail address"),
        ("Bob.Builder99", "your e-mail address"),
    ],
)
def test_a_weak_password_is_refused_with_its_reason(password, words):
    """Too short, too long, the commonest with whatever figures behind them, one's own address."""
    with pytest.raises(Refusal, match=words) as refused:
        passwords.check(password, "bob.builder@example.com")
    assert (refused.value.status, refused.value.code, refused.value.param) == (400, "weak_password", "password")
    assert not password or f"{password!r}" not in refused.value.message


def test_a_good_password_needs_no_signs():
    """Words, other scripts, spaces and 128 characters are good."""
    for password in ("correct horse battery", "пароль на каждый день", "x1y2z3w4" * 16, "8zeichen"):
        passwords.check(password, "bob@example.com")
    assert len(COMMON) > 300 and all(word == word.lower() for word in COMMON)


async def test_passwords_are_kept_as_argon2id_and_bcrypt_of_old_is_read():
    """Both are checked, composed and decomposed letters are the same, and bcrypt's is to be renewed."""
    made = Passwords()
    hashed = await made.hash("schön und lang")
    assert hashed.startswith("$argon2id$v=19$m=19456,t=3,p=1$") and len(hashed) < 255
    assert await made.verify("schön und lang", hashed, old=False)
    assert await made.verify("scho\u0308n und lang", hashed, old=False)
    assert not await made.verify("schon und lang", hashed, old=True)
    old = bcrypt.hashpw(b"of TokenTracer", bcrypt.gensalt(10)).decode().replace("$2b$", "$2a$")
    assert await made.verify("of TokenTracer", old, old=True)
    assert not await made.verify("of Tokentracer", old, old=True)
    assert passwords.outdated(old) and not passwords.outdated(hashed)
    assert passwords.outdated(argon2.PasswordHasher(time_cost=1, memory_cost=64, parallelism=1).hash("x"))
    made.close()


async def test_nobodys_password_is_never_right():
    """Unknown people, hashes that are none, passwords that bcrypt does not take."""
    made = Passwords()
    old = bcrypt.hashpw(b"x" * 72, bcrypt.gensalt(4)).decode()
    for stored in (None, "", "!", "$argon2id$", "$2a$10$short", "plain"):
        assert not await made.verify(stored or "", stored, old=True), stored
    for password in ("", "x" * 73, "a\0b"):
        assert not await made.verify(password, old, old=True), password
    assert await made.verify("x" * 72, old, old=True)
    made.close()


async def test_two_passwords_are_computed_at_once_and_fifty_wait():
    """The loop goes on meanwhile; more are refused with 429 and when to come again, and then it is free again."""
    made = Passwords()
    hashed = await made.hash("a long and private one")
    under_way = [asyncio.ensure_future(made.verify("wrong", hashed, old=False)) for _ in range(60)]
    slowest, last = 0.0, time.perf_counter()
    while not all(task.done() for task in under_way):
        await asyncio.sleep(0.002)
        slowest, last = max(slowest, time.perf_counter() - last), time.perf_counter()
    refused = [task.exception() for task in under_way if task.exception()]
    assert len(refused) == 60 - passwords.AT_ONCE - passwords.WAITING == 8
    assert {(error.status, error.code, error.headers["Retry-After"]) for error in refused} == {(429, "busy", "2")}
    assert slowest < 3, "the loop stood still: all of them take longer"
    assert await made.verify("a long and private one", hashed, old=False)
    made.close()


class _Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def _enters(guard, account, address):
    try:
        guard.enter(account, address)
    except Refusal as refusal:
        assert (refusal.status, refusal.code) == (429, "too_many_attempts")
        return int(refusal.headers["Retry-After"])
    return 0


def test_guessing_at_one_account_becomes_slow():
    """A few at once, then one in half a minute; what is said of waiting is enough and not too much."""
    clock = _Clock()
    guard = throttle.Throttle(clock)
    waits = [_enters(guard, "bob", "192.0.2.1") for _ in range(throttle.PAIR[0] + 1)]
    assert waits == [0] * throttle.PAIR[0] + [30]
    clock.now += 29.5
    assert _enters(guard, "bob", "192.0.2.1") == 1
    clock.now += 0.5
    assert _enters(guard, "bob", "192.0.2.1") == 0 and _enters(guard, "bob", "192.0.2.1") == 30
    assert _enters(guard, "eve", "192.0.2.1") == 0 and _enters(guard, "bob", "192.0.2.2") == 0


def test_one_address_cannot_try_all_accounts():
    """A password tried at many accounts is as slow; a /64 of IPv6 is one address, mapped IPv4 is IPv4."""
    guard = throttle.Throttle(_Clock())
    tries = [_enters(guard, f"user{number}", f"2001:db8::{number:x}") for number in range(throttle.ADDRESS[0] + 5)]
    assert tries.count(0) == throttle.ADDRESS[0] and _enters(guard, "x", "2001:db8:0:1::1") == 0
    for number in range(throttle.ADDRESS[0]):
        assert _enters(guard, f"user{number}", "192.0.2.9") == 0
    assert _enters(guard, "x", "::ffff:192.0.2.9") > 0 and _enters(guard, "x", "") == 0


def test_many_addresses_cannot_guess_fast_at_one_account_nor_lock_its_owner_out():
    """Strangers share what an account stands; who has signed in from his address before does not notice."""
    guard = throttle.Throttle(_Clock())
    guard.enter("bob", "198.51.100.7")
    guard.succeeded("bob", "198.51.100.7")
    tries = [_enters(guard, "bob", f"203.0.113.{number}") for number in range(200)]
    assert tries.count(0) == throttle.ACCOUNT[0]
    assert _enters(guard, "bob", "198.51.100.7") == 0
    for number in range(throttle.ADDRESS[0] + 5):
        _enters(guard, f"user{number}", "198.51.100.7")
    assert _enters(guard, "alice", "198.51.100.7") > 0 and _enters(guard, "bob", "198.51.100.7") == 0


def test_who_signs_in_rightly_is_never_slowed():
    """What was right, or told nothing, does not count."""
    guard = throttle.Throttle(_Clock())
    for _ in range(500):
        assert _enters(guard, "bob", "192.0.2.1") == 0
        guard.succeeded("bob", "192.0.2.1")
    assert _enters(guard, "another", "192.0.2.1") == 0 == _enters(guard, "bob", "192.0.2.3")
    for _ in range(500):
        assert _enters(guard, "eve", "192.0.2.2") == 0
        guard.give_back("eve", "192.0.2.2")


def test_throttles_are_bounded():
    """However many names come; those in use stay."""
    clock = _Clock()
    buckets = throttle.Buckets((2, 60.0), clock)
    for number in range(throttle.MOST + 100):
        buckets.charge(number)
        buckets.charge("busy")
    assert len(buckets) == throttle.MOST and buckets.wait("busy") > 0
    assert buckets.wait(0) == 0


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (" Bob@Example.COM ", "bob@example.com"),
        ("o'brien+x@mail.example.org", "o'brien+x@mail.example.org"),
        ("root@localhost", "root@localhost"),
    ],
)
def test_an_address_has_one_spelling(given, kept):
    """Nobody is somebody else by a capital letter."""
    assert accounts.email_of(given) == kept


@pytest.mark.parametrize(
    "given",
    [
        *(
            "",
            " ",
            "bob",
            "@",
            "bob@",
            "@example.com",
            "bob@@example.com",
            "bob@exam ple.com",
            "bob@-x.com",
            "bob@x..com",
        ),
        *("bob\n@example.com", "bob@example.com\r\nBcc: x", "bob@example.com\0", "böb@example.com", "bob@exämple.com"),
        *("b" * 65 + "@example.com", "bob@" + "x" * 64 + ".com", "bob@" + "example." * 40 + "com", "<bob@example.com>"),
        "bob@example.com, eve@example.com",
        "K" + "\u212a@example.com",
    ],
)
def test_what_is_no_address_is_refused(given):
    """With words that name it."""
    with pytest.raises(Refusal) as refused:
        accounts.email_of(given)
    assert (refused.value.status, refused.value.code, refused.value.param) == (400, "invalid_email", "email")
    assert refused.value.message.isprintable()
