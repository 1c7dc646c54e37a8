"""The daemon's gateway: one or more processes beside the proxy, with their secrets, store and what they are told.

Leaves out what it does (`gateway`), how calls come to it (`proxy.gateway`) and the commands (`cli.gateway`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from llm_proxy import __version__, paths, unix
from llm_proxy.errors import ExtraMissing, StateUnusable
from llm_proxy.gateway.options import SECRETS, Options
from llm_proxy.proxy.gateway import Gateway
from llm_proxy.service import gateway_secrets
from llm_proxy.service.listen import is_loopback
from llm_proxy.service.supervise import Supervisor

if TYPE_CHECKING:
    from llm_proxy.settings import Loaded, Settings

log = logging.getLogger(__name__)

# What a process that is a gateway and nothing else finds in its environment; elsewhere these are other programs'.
VARIABLES = {
    "PORT": "port",
    "DATABASE_URL": "gateway.database_url",
    "REDIS_URL": "gateway.redis_url",
    "RATE_LIMIT_MINUTE": "gateway.rate_limit_minute",
    "RATE_LIMIT_DAILY": "gateway.rate_limit_daily",
    "ANTHROPIC_BASE_URL": "upstreams.anthropic",
    "OPENAI_BASE_URL": "upstreams.openai",
    "GEMINI_BASE_URL": "upstreams.gemini",
}
_PACKAGES = (
    "aiosqlite",
    "alembic",
    "argon2",
    "asyncpg",
    "bcrypt",
    "bpe_openai",
    "cryptography",
    "jwt",
    "redis",
    "sqlalchemy",
)
_BASES = ("ANTHROPIC_BASE_URL", "OPENAI_BASE_URL", "GEMINI_BASE_URL")
_NO_BASE: dict[str, dict[str, Any]] = {name: {name: ""} for name in ("anthropic", "openai", "gemini")}
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# glibc's: larger pieces go back to the system when they are let go of. Else 19 MB would stay of a password's hash.
MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
_THROUGH_US = re.compile(r"/(?:anthropic|openai|gemini)/[^/]+")  # the path of a base URL that --env prints
_GEMINI_COMPATIBLE = "/openai"  # behind the base that TokenTracer takes; we speak Gemini's own API


def given(environ: Mapping[str, str]) -> list[tuple[str, object, str]]:
    """(setting, value, source) of the variables that a gateway's own environment has."""
    found: list[tuple[str, object, str]] = []
    for variable, setting in VARIABLES.items():
        value = environ.get(variable, "").strip()
        if not value:
            continue
        if variable in _BASES:
            value = _base(variable, value)
        found.append((setting, value, variable))
    return found


def _base(variable: str, value: str) -> str:
    """As the settings have it: without the part of the path that is the API's own."""
    value = value.rstrip("/")
    if variable == "OPENAI_BASE_URL":
        return value.removesuffix("/v1")
    if variable == "GEMINI_BASE_URL":
        return value.removesuffix(_GEMINI_COMPATIBLE).removesuffix("/v1beta")
    return value


def needs_its_packages() -> None:
    """Raises ExtraMissing."""
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise ExtraMissing(f"the gateway needs {', '.join(missing)}: install llm-proxy with the extra `gateway`")


def without_ourselves(loaded: Loaded) -> Loaded:
    """A base that leads back to us would be a loop, or a second record of every call: it is ignored, loudly.

    In a shell that follows the daemon such variables lead to the daemon.
    """
    settings = loaded.settings
    for name, nothing in _NO_BASE.items():
        parts = urlsplit(getattr(settings, name))
        if parts.hostname not in _LOOPBACK:
            continue
        if parts.port == (settings.port or None) or _THROUGH_US.match(parts.path):
            log.warning("upstreams.%s is %s, which leads back to llm-proxy itself: it is ignored", name, parts.geturl())
            settings = replace(settings, **nothing)
    return loaded._replace(settings=settings)


# --- what it is told


def database_url(settings: Settings) -> str:
    return settings.gateway_database_url or f"sqlite:///{quote(gateway_secrets.folder())}/gateway.db"


def bases_of(settings: Settings) -> tuple[tuple[str, str], ...]:
    """(provider, base URL) where the operator has set one."""
    bases = {"anthropic": settings.anthropic, "openai": settings.openai, "gemini": settings.gemini}
    return tuple((name, base) for name, base in bases.items() if base)


def options(settings: Settings, *, socket: str, upstream: str) -> Options:
    signup = settings.gateway_signup
    if signup == "auto":
        signup = "open" if is_loopback(settings.host) else "invite"
    return Options(
        socket=socket,
        upstream=upstream,
        state=gateway_secrets.folder(),
        version=__version__,
        public_url=settings.gateway_public_url,
        hosts=settings.hosts,
        signup=signup,
        raw_models=settings.gateway_raw_models,
        drop=settings.gateway_drop,
        rate_limit_minute=settings.gateway_rate_limit_minute,
        rate_limit_daily=settings.gateway_rate_limit_daily,
        privacy=settings.gateway_privacy,
        privacy_floor=settings.gateway_privacy_floor,
        privacy_ceiling=settings.gateway_privacy_ceiling,
        admin_sees=settings.gateway_admin_sees,
        drain_delay=settings.gateway_drain_delay,
        allow=settings.allow,
        bases=bases_of(settings),
        first_token_timeout=settings.gateway_first_token_timeout,
        secrets_file="" if os.environ.get("ENCRYPTION_KEY") else f"{gateway_secrets.folder()}/{gateway_secrets.FILE}",
        trusted_proxies=settings.gateway_trusted_proxies,
        prices=settings.prices,
        price_data=paths.price_file(),
        logs=settings.log_dir,
    )


# --- the process


class Gatewaying:
    """The gateway's processes and their sockets: one to each, and one from all of them back to us.

    Owned by the event loop.
    """

    def __init__(self, settings: Settings, name: str) -> None:
        """`name` tells this daemon from others of the same user. Raises ConfigError, StateUnusable, ExtraMissing."""
        needs_its_packages()
        self.upstream = f"{paths.state_folder()}/gateway-{name}.up.sock"
        marks = ["", *(f"-{number}" for number in range(2, settings.gateway_workers + 1))]
        self.sockets = tuple(f"{paths.state_folder()}/gateway-{name}{mark}.sock" for mark in marks)
        told = options(settings, socket=self.sockets[0], upstream=self.upstream)
        if len(marks) > 1:
            told = replace(told, workers=self.sockets)
        self._options, self._database = told, database_url(settings)
        self._counts_alone = len(marks) > 1 and not settings.gateway_redis_url
        self.drain_delay = settings.gateway_drain_delay
        secret = gateway_secrets.secrets(database_url(settings), settings.gateway_redis_url, os.environ)
        self._folders: list[int] = []
        self.door = self._door()
        self._supervisors = [
            Supervisor(
                "llm_proxy.gateway",
                (replace(told, socket=socket).to_json(),),
                errors=f"{gateway_secrets.folder()}/gateway{mark}.log",
                variables=MEMORY | {SECRETS: secret.to_json()},
            )
            for mark, socket in zip(marks, self.sockets, strict=True)
        ]

    def _door(self) -> Gateway:
        """Raises StateUnusable."""
        addresses = []
        for socket in self.sockets:
            try:
                address, folder = unix.address(socket)
            except (OSError, unix.PathTooLong) as error:
                self._let_go()
                raise StateUnusable(f"the gateway cannot be served here: {error}") from error
            addresses.append(address)
            if folder is not None:
                self._folders.append(folder)
        return Gateway(addresses[0], others=tuple(addresses[1:]))

    def lines(self, url: str) -> str:
        """What start-up says of it."""
        base = self._options.public_url or url
        who = {
            "open": "anybody who reaches it may sign up",
            "invite": "who is invited may sign up",
            "closed": "nobody may sign up",
        }
        return (
            f"gateway: {base}/v1 for OpenAI's clients, {base} for Anthropic's\n"
            f"accounts: {who[self._options.signup]}; the very first is the administrator's: POST {base}/auth/signup\n"
            f"its store: {_shown(self._database)}\n"
            f"its log: {gateway_secrets.folder()}/gateway.log\n"
        )

    def start(self) -> None:
        if self._counts_alone:
            words = "gateway.workers is %d and there is no gateway.redis_url: each process counts limits by itself"
            log.warning(words, len(self._supervisors))
        for supervisor in self._supervisors:
            supervisor.start()

    async def drain(self, forced: asyncio.Event) -> None:
        """From now on nobody new should come; who does is served for `drain_delay`, unless that is cut short."""
        for supervisor in self._supervisors:
            supervisor.wake()
        if self.drain_delay:
            log.info("stopping: for %g s new requests are still taken", self.drain_delay)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.drain_delay):
                    await forced.wait()

    async def stop(self, limit: float) -> None:
        await asyncio.gather(*(supervisor.stop(limit) for supervisor in self._supervisors))
        for path in (*self.sockets, self.upstream):
            with contextlib.suppress(OSError):
                os.unlink(path)  # noqa: PTH108
        self._let_go()

    def _let_go(self) -> None:
        while self._folders:
            os.close(self._folders.pop())


def _shown(url: str) -> str:
    """Without a password."""
    return re.sub(r"(?<=://)[^/@]*@", "", url).partition("?")[0]
