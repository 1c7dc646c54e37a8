"""Who may look: this user's browser, and this user's scripts. Everybody else gets a page that says how to come in.

Three ways in, for what the secret in the state folder (`secret`, 0600, 64 hex digits) stands behind:

* a script sends `Authorization: Bearer <the secret>`;
* `llm-proxy explore` leaves a token in the state folder and opens `/llm-proxy/?token=…`; the token works once, within
  its time, and is exchanged for
* the session cookie (`SameSite=Strict; HttpOnly; Path=/llm-proxy`), which the secret signs and which expires. A new
  secret ends all sessions.

That is whoever runs the machine, who sees everything. Where a gateway serves a team, its users come in by what they
bring to the gateway (`viewer`), and each sees what is theirs.

In tests and by hand: write a secret (`new_secret(folder)`), then send `bearer(secret)` as a header, or set the cookie
`Keys(secret).cookie` to `Keys(secret).session(now)`.

What comes by another name (`Host`), from another site's page (`Origin`, `Sec-Fetch-Site`) or with another method than
GET and HEAD is turned away before any of that. Leaves out pages and where the address comes from.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Middleware

from llm_proxy.explorer.viewer import SIGN_IN, Team, cookies_of
from llm_proxy.index.viewer import EVERYTHING, Viewer
from llm_proxy.web.safety import HEADERS

SECRET, TOKEN = "secret", "explore"  # files of the state folder
SESSION = 30 * 86_400  # seconds a cookie holds
OPENED, PRINTED = 60, 600  # seconds a token holds: where we open it ourselves, where a person carries it over
ANSWERED = web.RequestKey("answered", bool)  # of a request whose answer has begun
VIEWER = web.RequestKey("viewer", Viewer)  # who asks; of every request that is let through to a page
# Set by the proxy where a program of another user of this machine has asked: see `Stranger`.
STRANGERS = "X-LLM-Proxy-Stranger"
READ_ONLY = ("GET", "HEAD")

_LARGEST = 256
_HEX64 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]{1,253})(?::[0-9]{1,5})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Not served: the status, a heading, and what to do. `again`: the same address, asked for from here, may be;
    `sign_in` is where to.
    """

    status: int
    heading: str
    text: str
    again: bool = False
    sign_in: str = ""


STRANGER = Refusal(
    401,
    "This is not your browser yet",
    "The explorer shows everything that was said, so it opens only for whoever runs llm-proxy. This command, on the "
    "machine where it runs, opens it here:",
)
NOT_SIGNED_IN = Refusal(
    401,
    "Sign in",
    "Here you see your own conversations with the team's gateway. Whoever runs it sees everything by this command:",
    sign_in=SIGN_IN,
)
METHOD = Refusal(405, "The explorer only shows", "Nothing can be changed here: use GET or HEAD.")
ELSEWHERE = Refusal(
    403, "Another site sent you here", "Pages of other sites get nothing from the explorer. If you meant to come:", True
)

OTHER_USER = Refusal(403, "Another user's record", "This is not the record of the user whose program asks for it.")
# Whether another user's program holds the other end of a connection: a session is a cookie for 127.0.0.1, and browsers
# send it to all ports there.
Stranger = Callable[[Any], bool]


class Keys:
    """What is derived from a secret. `cookie` is named after it, so that two explorers on one host do not collide."""

    __slots__ = ("_key", "cookie", "secret")

    def __init__(self, secret: str) -> None:
        self.secret = secret
        self._key = hmac.digest(secret.encode(), b"llm-proxy explorer session", "sha256")
        self.cookie = f"llm-proxy-{self._key[:4].hex()}"

    def session(self, now: float, lasts: float = SESSION) -> str:
        """A fresh session's cookie."""
        text = f"{int(now + lasts)}.{secrets.token_hex(8)}"
        return f"{text}.{self._sign(text)}"

    def holds(self, cookie: str, now: float) -> bool:
        """Whether we have signed it, and it has not expired."""
        text, _, sign = cookie.rpartition(".")
        if not hmac.compare_digest(sign.encode("utf-8", "surrogateescape"), self._sign(text).encode()):
            return False
        return int(text.partition(".")[0]) > now

    def _sign(self, text: str) -> str:
        return hmac.new(self._key[4:], text.encode("utf-8", "surrogateescape"), "sha256").hexdigest()


def bearer(secret: str) -> dict[str, str]:
    """The header that a script sends."""
    return {"Authorization": f"Bearer {secret}"}


def new_secret(folder: Path) -> str:
    """A secret for a state folder of one's own; the service makes the usual one."""
    made = secrets.token_hex(32)
    _write(folder / SECRET, made)
    return made


def new_token(folder: Path, now: float, lasts: float) -> str:
    """Leave a token in the state folder, in place of any before, and give it. Raises OSError.

    The file holds its digest: whoever reads it later, in a backup, has nothing.
    """
    token = secrets.token_urlsafe(24)
    _write(folder / TOKEN, f"{sha256(token.encode()).hexdigest()} {int(now + lasts)}\n")
    return token


class Guard:
    """Looks at each request. The files are read each time: what is deleted or replaced holds no longer at once."""

    def __init__(
        self, folder: Path, hosts: Iterable[str] = (), stranger: Stranger | None = None, team: Team | None = None
    ) -> None:
        self.team = team or Team(())
        self._folder = folder
        self._hosts = frozenset(host.lower() for host in hosts)
        self._stranger = stranger
        self._keys: Keys | None = None

    def refusal(self, request: web.Request) -> Refusal | None:
        """Why a request is not served, whoever sends it; None: it is."""
        host = request.headers.getall("Host", ())
        if len(host) != 1 or not is_good_host(host[0], self._hosts, addresses=self.team.on):
            name = host[0][:100] if host else ""
            return Refusal(
                403,
                "Not served under this name",
                f"{name!r} is neither a name of this machine nor listed in [listen] hosts. Open the explorer by "
                "127.0.0.1, or list the name there if it is yours.",
            )
        if request.method not in READ_ONLY:
            return METHOD
        own = host[0].lower()
        if any(one.lower() not in (f"http://{own}", f"https://{own}") for one in request.headers.getall("Origin", ())):
            return ELSEWHERE
        if any(one not in ("none", "same-origin") for one in request.headers.getall("Sec-Fetch-Site", ())):
            return ELSEWHERE
        return OTHER_USER if self._is_strange(request) else None

    def _is_strange(self, request: web.Request) -> bool:
        link = request.transport.get_extra_info("socket") if request.transport is not None else None
        return self._stranger is not None and link is not None and self._stranger(link)

    async def viewer(self, request: web.Request, now: float) -> Viewer | None:
        """Who asks; None for who is not let in."""
        return EVERYTHING if self.admits(request, now) else await self.team.viewer(request)

    def admits(self, request: web.Request, now: float) -> bool:
        """Whether it brings the secret, or a session's cookie."""
        keys = self.keys()
        if keys is None or STRANGERS in request.headers:
            return False
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        if scheme:
            right = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), keys.secret.encode())
            return scheme.lower() == "bearer" and right
        # All of that name: a page at another port of this host can set one too, to keep its user out.
        return any(keys.holds(value, now) for value in cookies_of(request, keys.cookie))

    def exchange(self, token: str, now: float) -> bool:
        """Use a token up; False where it is not the one that was left, or too old, or used."""
        file = self._folder / TOKEN
        digest, _, until = (_read(file) or "").strip().partition(" ")
        if not _HEX64.fullmatch(digest) or not until.isascii() or not until.isdigit():
            return False
        if not hmac.compare_digest(digest, sha256(token.encode("utf-8", "surrogateescape")).hexdigest()):
            return False
        try:
            file.unlink()  # of two that ask at once, one succeeds
        except OSError:
            return False
        return now < int(until)

    def keys(self) -> Keys | None:
        """Of the secret as it is now; None where there is none."""
        secret = _read(self._folder / SECRET)
        if secret is None or not _HEX64.fullmatch(secret):
            return None
        if self._keys is None or self._keys.secret != secret:
            self._keys = Keys(secret)
        return self._keys


def is_good_host(value: str, listed: Iterable[str] = (), *, addresses: bool = False) -> bool:
    """Any loopback name with any port, or a listed one (with its port, or for all ports without).

    With `addresses` any address too: no page can make its own name of one.
    """
    value = value.lower()
    match = _HOST.fullmatch(value)
    if match is None:
        return False
    name = match[1]
    if name == "localhost" or name in listed or value in listed:
        return True
    try:
        address = ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    if addresses:
        return True
    return address in ipaddress.ip_network("127.0.0.0/8") if address.version == 4 else str(address) == "::1"


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Refuse = Callable[[web.Request, Refusal], web.StreamResponse]


def middleware(guard: Guard, root: str, refuse: Refuse) -> Middleware:
    """The guard before every handler. `refuse` makes the answer of a refusal; what leads to `root` and the
    static files under it need no session: that answer shows them.
    """

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        now = time.time()
        if refusal := guard.refusal(request):
            return refuse(request, refusal)
        if request.path in ("/", root) or request.path.startswith(f"{root}/static/"):
            return await handler(request)
        viewer = await guard.viewer(request, now)
        stranger = NOT_SIGNED_IN if guard.team.on else STRANGER
        if "token" in request.query and request.method == "GET" and not _is_prefetch(request):
            return _entered(request, guard, root, viewer is not None, now) or refuse(request, stranger)
        if viewer is None:
            return refuse(request, stranger)
        request[VIEWER] = viewer
        return await handler(request)

    return guarded


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """On every answer, streams too. What says nothing else is kept by nobody; a stricter policy of its own stays."""
    own = response.headers.get("Content-Security-Policy")
    response.headers.update(HEADERS if own is None else HEADERS | {"Content-Security-Policy": own})
    response.headers.setdefault("Cache-Control", "no-store")
    request[ANSWERED] = True


def _entered(request: web.Request, guard: Guard, root: str, admitted: bool, now: float) -> web.StreamResponse | None:
    """To the same page without the token, and with a session; who has one already does not need the token."""
    opened = STRANGERS not in request.headers and guard.exchange(request.query["token"], now)
    keys = guard.keys()
    if keys is None or not (opened or admitted):
        return None
    # A path such as //elsewhere would lead there.
    clean = str(request.rel_url.without_query_params("token")) if request.path.startswith(f"{root}/") else f"{root}/"
    answer = web.Response(status=303, headers={"Location": clean})
    if opened:
        session = keys.session(now)
        answer.set_cookie(keys.cookie, session, max_age=SESSION, path=root, httponly=True, samesite="Strict")
    return answer


def _is_prefetch(request: web.Request) -> bool:
    """Browsers and their extensions may look ahead: that must not use the token up."""
    return "prefetch" in request.headers.get("Sec-Purpose", "") or "prefetch" in request.headers.get("Purpose", "")


def _read(path: Path) -> str | None:
    """A file of ours alone; None for anything else."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        facts = os.fstat(fd)
        if facts.st_mode & 0o170077 != 0o100000 or facts.st_uid != os.geteuid() or facts.st_size > _LARGEST:
            return None
        return os.read(fd, _LARGEST).decode("ascii", "replace")
    except OSError:
        return None
    finally:
        os.close(fd)


def _write(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
    draft.replace(path)
