"""From the settings to the door of Bedrock: its hosts, its guard and its keys. Leaves out what the door does."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from llm_proxy import paths
from llm_proxy.errors import ConfigError
from llm_proxy.proxy.authority import BadAuthority, parse_authority
from llm_proxy.proxy.bedrock import Bedrock
from llm_proxy.proxy.callers import Guard
from llm_proxy.service import state
from llm_proxy.service.aws_keys import AwsKeys
from llm_proxy.service.listen import is_loopback
from llm_proxy.wire import aws_regions

if TYPE_CHECKING:
    from llm_proxy.settings import Settings


log = logging.getLogger(__name__)


class Configured(NamedTuple):
    """The door for the proxy, and its keys, which want to be closed."""

    door: Bedrock
    keys: AwsKeys

    @property
    def line(self) -> str:
        """What start-up says of it."""
        return f"Bedrock: /model/... is signed for {self.door.region} and sent to {self.door.runtime}"


def configured(settings: Settings) -> Configured | None:
    """None where Bedrock is off. Raises ConfigError, StateUnusable."""
    region = settings.bedrock_region
    if not region:
        return None
    if not is_loopback(settings.host) and not settings.token:
        raise ConfigError(
            f"host is {settings.host}, so that other machines could spend your AWS credentials: set listen.token, "
            "which they must bring, or leave bedrock.region empty"
        )
    runtime, control = _endpoints(settings, region)
    secrets = [settings.token] if settings.token else []
    if settings.bedrock_secret:
        folder = paths.state_folder()
        state.prepare(folder)
        secrets.append(state.secret(folder))
    keys = AwsKeys(region=region, profile=settings.bedrock_profile)
    door = Bedrock(
        region=region,
        runtime=runtime,
        control=control,
        keys=keys,
        guard=Guard(tuple(secrets), required=settings.bedrock_secret),
        max_body=settings.bedrock_max_body,
        max_concurrent=settings.bedrock_max_concurrent,
    )
    return Configured(door, keys)


def past_us(found: Configured, port: int) -> Configured:
    """Without endpoints that lead back to us: a shell that points its clients here may have started the daemon too.

    Raises ConfigError where nothing else is known.
    """
    door = found.door
    ours = [url for url in {door.runtime, door.control} if _is_ours(url, port)]
    if not ours:
        return found
    if door.region not in aws_regions.REGIONS:
        raise ConfigError(f"bedrock.endpoint is {ours[0]!r}, which is llm-proxy itself")
    log.warning("the endpoint %s for Bedrock is llm-proxy itself; AWS's own is used instead", ours[0])
    runtime, control = aws_regions.runtime_host(door.region), aws_regions.control_host(door.region)
    door = replace(
        door,
        runtime=f"https://{runtime}" if door.runtime in ours else door.runtime,
        control=f"https://{control}" if door.control in ours else door.control,
    )
    return found._replace(door=door)


def _is_ours(url: str, port: int) -> bool:
    authority = parse_authority(url.partition("://")[2])
    return authority.is_loopback and authority.port == port


def _endpoints(settings: Settings, region: str) -> tuple[str, str]:
    """Where models are called and where they are listed, as `scheme://host[:port]`."""
    given = _checked("bedrock.endpoint", settings.bedrock_endpoint)
    control = _checked("bedrock.control_endpoint", settings.bedrock_control_endpoint) or given
    if region not in aws_regions.REGIONS:
        if given and aws_regions.WELL_FORMED.fullmatch(region):
            return given, control
        raise ConfigError(
            f"bedrock.region must be a region in which AWS has Bedrock, got {region!r}; the nearest is "
            f"{aws_regions.nearest(region)!r} (one that is newer than {aws_regions.AS_OF} needs bedrock.endpoint too)"
        )
    return (
        given or f"https://{aws_regions.runtime_host(region)}",
        control or f"https://{aws_regions.control_host(region)}",
    )


def _checked(name: str, url: str) -> str:
    """An endpoint without a trailing slash. Signed requests hold what was asked: in clear they stay on this machine."""
    url = url.rstrip("/")
    if not url:
        return ""
    scheme, _, host = url.partition("://")
    try:
        authority = parse_authority(host)
    except BadAuthority as error:
        raise ConfigError(f"{name} is {url!r}: {error}") from None
    if scheme == "http" and not authority.is_loopback:
        raise ConfigError(f"{name} is {url!r}: http is for loopback addresses alone, others need https")
    return url
