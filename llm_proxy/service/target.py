"""From the settings to where requests go that name no host: a single target, and upstreams for bare API paths.

Leaves out what is done with them (`proxy.target`, `proxy.router`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_proxy.errors import ConfigError
from llm_proxy.proxy.authority import BadAuthority, Base, parse_base
from llm_proxy.proxy.callers import Guard
from llm_proxy.proxy.target import Target
from llm_proxy.service import remote
from llm_proxy.service.listen import is_loopback

if TYPE_CHECKING:
    from llm_proxy.settings import Settings

URL = "target.url"


def configured(settings: Settings) -> Target | None:
    """None where there is no single target. Raises ConfigError."""
    if not settings.target_url:
        return None
    if settings.target_headers and not is_loopback(settings.host) and not settings.token:
        raise ConfigError(
            f"host is {settings.host}, so that other machines could spend what target.headers adds: set listen.token, "
            "which they must bring, or add no header"
        )
    return Target(
        base=_base(URL, settings.target_url),
        headers=settings.target_headers,
        guard=Guard(
            (settings.token,) if settings.token else (),
            required=not settings.target_headers and remote.is_asked(settings),
        ),
    )


def bases(settings: Settings) -> dict[str, Base]:
    """Of each provider that is not called at its own host. Raises ConfigError."""
    given = {"anthropic": settings.anthropic, "openai": settings.openai, "gemini": settings.gemini}
    return {provider: _base(f"upstreams.{provider}", url) for provider, url in given.items() if url}


def refuse_ourselves(target: Target | None, upstreams: dict[str, Base], port: int) -> None:
    """Raises ConfigError where one of them leads back to this port: calls would go round."""
    named = {f"upstreams.{provider}": base for provider, base in upstreams.items()}
    if target is not None:
        named[URL] = target.base
    for name, base in named.items():
        if base.authority.is_loopback and base.port == port:
            raise ConfigError(f"{name} is {str(base)!r}, which is llm-proxy itself")


def _base(name: str, url: str) -> Base:
    try:
        return parse_base(url)
    except BadAuthority as error:
        raise ConfigError(f"{name} is {url!r}: {error}") from None
