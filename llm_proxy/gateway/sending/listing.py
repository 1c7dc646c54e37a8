"""The models that a provider lists: pages of each one's own shape, read to the end or to a limit.

Leaves out how a page is asked for (`sender`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Final
from urllib.parse import quote

from llm_proxy.dialects.reading import mapping, read_value, sequence, text
from llm_proxy.gateway.facts import Provider, ProviderKey
from llm_proxy.gateway.sending.client import Unreachable
from llm_proxy.gateway.translate.conversation import Json

PATIENCE: Final = 20.0  # seconds for all pages
LARGEST: Final = 8 << 20  # bytes of a page
MOST: Final = 5000  # ids
PAGES: Final = 20

Page = Callable[[ProviderKey, str, float], Awaitable[bytes]]  # the key, what stands behind the list's path, seconds


async def models(key: ProviderKey, page: Page) -> list[str]:
    """Ids, each once. Raises Unreachable, and what `page` raises."""
    found: dict[str, None] = {}
    rest = _FIRST.get(key.provider, "")
    try:
        async with asyncio.timeout(PATIENCE):
            for _ in range(PAGES):
                told = read_value(await page(key, rest, PATIENCE))
                found.update(dict.fromkeys(filter(None, _IDS[key.provider](told))))
                rest = _following(key.provider, mapping(told))
                if not rest or len(found) >= MOST:
                    break
    except TimeoutError:
        raise Unreachable("upstream_timeout", f"no list of models came within {PATIENCE:g} s", timed_out=True) from None
    return list(found)[:MOST]


_PROFILES: Final = "/inference-profiles?maxResults=1000"
_FIRST: Final = {
    Provider.ANTHROPIC: "?limit=1000",
    Provider.GEMINI: "?pageSize=1000",
    Provider.BEDROCK: "/foundation-models",
}


def _following(provider: Provider, told: dict[str, Json]) -> str:
    """What asks for the next page, "" behind the last."""
    if provider is Provider.ANTHROPIC and told.get("has_more") and (last := text(told.get("last_id"))):
        return f"?limit=1000&after_id={quote(last, safe='')}"
    if provider is Provider.GEMINI and (token := text(told.get("nextPageToken"))):
        return f"?pageSize=1000&pageToken={quote(token, safe='')}"
    if provider is Provider.BEDROCK and (token := text(told.get("nextToken"))):
        return f"{_PROFILES}&nextToken={quote(token, safe='-_.~')}"
    return _PROFILES if provider is Provider.BEDROCK and "modelSummaries" in told else ""


def _data(told: Json) -> Iterable[str]:
    """OpenAI's shape; some hosts leave out what is around the list."""
    listed = sequence(mapping(told).get("data")) or sequence(mapping(told).get("models")) or sequence(told)
    return (text(one) or text(mapping(one).get("id")) for one in listed)


def _gemini(told: Json) -> Iterable[str]:
    names = (text(mapping(one).get("name")) for one in sequence(mapping(told).get("models")))
    return (name.removeprefix("models/") for name in names)


def _bedrock(told: Json) -> Iterable[str]:
    """Models that are called by their own id and write text, and inference profiles, by which others are called."""
    for one in map(mapping, sequence(mapping(told).get("modelSummaries"))):
        ways, modes = sequence(one.get("inferenceTypesSupported")), sequence(one.get("outputModalities"))
        if (not ways or "ON_DEMAND" in ways) and (not modes or "TEXT" in modes):
            yield text(one.get("modelId"))
    for one in map(mapping, sequence(mapping(told).get("inferenceProfileSummaries"))):
        yield text(one.get("inferenceProfileId"))


_IDS: Final[dict[Provider, Callable[[Json], Iterable[str]]]] = {
    Provider.OPENAI: _data,
    Provider.COMPATIBLE: _data,
    Provider.ANTHROPIC: _data,
    Provider.GEMINI: _gemini,
    Provider.BEDROCK: _bedrock,
}
