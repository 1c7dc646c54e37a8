"""From the settings to the door of named models: its upstreams, its guard, its front, and TLS on our own port.

Leaves out what the door does (`proxy.models`) and the other program's configuration (`proxy_llm`).
"""

from __future__ import annotations

import logging
import ssl
from typing import TYPE_CHECKING

from llm_proxy.errors import ConfigError
from llm_proxy.proxy.authority import BadAuthority, Base, parse_base
from llm_proxy.proxy.callers import Guard
from llm_proxy.proxy.front import ANY, Front
from llm_proxy.proxy.models import Models, NamedModel
from llm_proxy.service.listen import is_loopback

if TYPE_CHECKING:
    from llm_proxy.settings import Model, Settings

log = logging.getLogger(__name__)

_BASES = ("base_url", "base_url_anthropic")


def configured(settings: Settings) -> Models | None:
    """None where there are none. Raises ConfigError."""
    if not settings.models:
        if settings.named_token:
            raise ConfigError("named.token is set, but there are no models that it could guard")
        return None
    if settings.target_url:
        raise ConfigError("there are models and a target.url, where everything goes: only one of them can hold")
    if not is_loopback(settings.host) and not settings.named_token and not settings.token:
        raise ConfigError(
            f"host is {settings.host}, so that other machines could spend the keys of your models: set named.token, "
            "which they must bring"
        )
    if ANY in settings.named_origins and not settings.named_token:
        log.warning("named.origins has *, which holds only with a named.token: no page of another site may call")
    return Models(
        models=tuple(_named(model) for model in settings.models),
        guard=Guard((settings.token,) if settings.token else ()),
        front=Front(
            token=settings.named_token,
            header=settings.named_header or "Authorization",
            origins=settings.named_origins,
            rate=settings.named_rate_limit,
        ),
        max_body=settings.named_max_body,
    )


def pages(settings: Settings) -> tuple[str, ...]:
    """Origins that may call at all; any others are let in by the token alone."""
    return tuple(origin for origin in settings.named_origins if origin != ANY) if settings.models else ()


def tls(settings: Settings) -> ssl.SSLContext | None:
    """None where our port speaks plain HTTP. Raises ConfigError."""
    cert, key = settings.named_tls_cert, settings.named_tls_key
    if not cert and not key:
        return None
    if not cert or not key:
        raise ConfigError("named.tls_cert and named.tls_key go together, and only one of them is set")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(cert, key, password=lambda: b"")
    except ssl.SSLError as error:
        raise ConfigError(f"named.tls_cert {cert} and named.tls_key {key} do not fit: {error.reason}") from None
    except OSError as error:
        raise ConfigError(f"named.tls_cert {cert} or named.tls_key {key}: {error.strerror}") from None
    return context


def refuse_ourselves(models: Models | None, port: int) -> None:
    """Raises ConfigError where a model's upstream is this port: calls would go round."""
    for model in models.models if models is not None else ():
        for name, base in zip(_BASES, (model.openai, model.anthropic), strict=True):
            if base is not None and base.authority.is_loopback and base.port == port:
                raise ConfigError(f'models."{model.name}".{name} is {str(base)!r}, which is llm-proxy itself')


def lines(models: Models, url: str) -> str:
    """What start-up says of them."""
    told = [f"  {model.name}: {model.openai or model.anthropic}, as {model.model}" for model in models.models]
    token = f"\nEvery request brings the token, in {models.front.shown}." if models.front.token else ""
    return "\n".join(
        ("models, by what a request names:", *told, "", f"Base URLs for clients: {url}/v1 (OpenAI), {url} (Anthropic)")
    ) + (token)


def _named(model: Model) -> NamedModel:
    return NamedModel(
        name=model.name,
        model=model.model,
        openai=_base(model, "base_url"),
        anthropic=_base(model, "base_url_anthropic"),
        api_key=model.api_key,
        timeout=model.timeout,
        max_retries=model.max_retries,
    )


def _base(model: Model, name: str) -> Base | None:
    url = getattr(model, name)
    try:
        return parse_base(url) if url else None
    except BadAuthority as error:
        raise ConfigError(f'models."{model.name}".{name} is {url!r}: {error}') from None
