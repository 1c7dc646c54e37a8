"""From the settings to who may use a port that other machines can reach. Leaves out asking them (`proxy.remote`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_proxy.proxy.remote import Remote
from llm_proxy.service.listen import is_loopback

if TYPE_CHECKING:
    from llm_proxy.settings import Settings


def is_asked(settings: Settings) -> bool:
    """Whether who brings no token is not served: others reach the port, and nobody has said that they all may."""
    return bool(settings.token) and _is_guarded(settings)


def is_open(settings: Settings) -> bool:
    """Whether there are pass-through routes at all. Whoever is let in by `named.token` alone gets none."""
    return is_loopback(settings.host) or settings.remote_routes or (is_asked(settings) and not settings.named_token)


def configured(settings: Settings) -> Remote | None:
    """None where there is no token and needs none."""
    guarded = _is_guarded(settings)
    return Remote(settings.token, asked=guarded) if settings.token or guarded else None


def _is_guarded(settings: Settings) -> bool:
    """Whether others reach the port, and nobody has said that they all may use it."""
    return not is_loopback(settings.host) and not settings.remote_routes


def line(settings: Settings) -> str:
    """What start-up says beside the addresses; empty where nothing is asked for."""
    if not is_asked(settings):
        return ""
    return "Callers bring the token of listen.token: as X-LLM-Proxy-Token, or as /secret/{token} before the path.\n"


def warnings(settings: Settings) -> tuple[str, ...]:
    """What start-up says where nobody could use what is served."""
    if is_open(settings) or settings.target_url or settings.models or settings.gateway_enabled:
        return ()
    return (
        f"host is {settings.host}, which other machines can reach, and there is no token: calls are refused. Set "
        "listen.token (LLM_PROXY_LISTEN_TOKEN, at least 16 signs), which callers then bring, or listen on 127.0.0.1",
    )
