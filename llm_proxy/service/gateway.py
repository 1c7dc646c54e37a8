"""The daemon's gateway: a process of its own beside the proxy, with its secrets, its store and what it is told.

Leaves out what it does (`gateway`), how calls come to it (`proxy.gateway`) and the commands (`cli.gateway`).
"""

from __future__ import annotations

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


def options(settings: Settings, *, socket: str, upstream: str) -> Options:
    signup = settings.gateway_signup
    if signup == "auto":
        signup = "open" if is_loopback(settings.host) else "invite"
    bases = {"anthropic": settings.anthropic, "openai": settings.openai, "gemini": settings.gemini}
    return Options(
        socket=socket,
        upstream=upstream,
        state=gateway_secrets.folder(),
        version=__version__,
        public_url=settings.gateway_public_url,
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
        bases=tuple((name, base) for name, base in bases.items() if base),
        first_token_timeout=settings.gateway_first_token_timeout,
        secrets_file="" if os.environ.get("ENCRYPTION_KEY") else f"{gateway_secrets.folder()}/{gateway_secrets.FILE}",
        trusted_proxies=settings.gateway_trusted_proxies,
        prices=settings.prices,
        price_data=paths.price_file(),
    )


# --- the process


class Gatewaying:
    """The gateway's process and the two sockets: to it, and from it back to us. Owned by the event loop."""

    def __init__(self, settings: Settings, name: str) -> None:
        """`name` tells this daemon from others of the same user. Raises ConfigError, StateUnusable, ExtraMissing."""
        needs_its_packages()
        self.socket = f"{paths.state_folder()}/gateway-{name}.sock"
        self.upstream = f"{paths.state_folder()}/gateway-{name}.up.sock"
        told = options(settings, socket=self.socket, upstream=self.upstream)
        self._options, self._database = told, database_url(settings)
        secret = gateway_secrets.secrets(database_url(settings), settings.gateway_redis_url, os.environ)
        try:
            self._address, self._folder = unix.address(self.socket)
        except (OSError, unix.PathTooLong) as error:
            raise StateUnusable(f"the gateway cannot be served here: {error}") from error
        self.door = Gateway(self._address)
        self._supervisor = Supervisor(
            "llm_proxy.gateway",
            (told.to_json(),),
            errors=f"{gateway_secrets.folder()}/gateway.log",
            variables=MEMORY | {SECRETS: secret.to_json()},
        )

    @property
    def pid(self) -> int | None:
        return self._supervisor.pid

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
        self._supervisor.start()

    async def stop(self, limit: float) -> None:
        await self._supervisor.stop(limit)
        for path in (self.socket, self.upstream):
            with contextlib.suppress(OSError):
                os.unlink(path)  # noqa: PTH108
        if self._folder is not None:
            os.close(self._folder)
            self._folder = None


def _shown(url: str) -> str:
    """Without a password."""
    return re.sub(r"(?<=://)[^/@]*@", "", url).partition("?")[0]
