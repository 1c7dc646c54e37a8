"""What the gateway's parts tell each other: who calls, which keys and aliases there are, what was tried. Frozen facts.

Leaves out where they come from (`store`, `catalog`) and what is done with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

from llm_proxy.dialects.digest import Usage

NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


class Role(StrEnum):
    ADMIN = "admin"
    MEMBER = "member"


class Scope(StrEnum):
    """What an API key may be good for. None lets a key make keys, users or invitations: that takes a session."""

    MODELS = "models"  # call models, list them
    USAGE = "usage"  # read one's own usage
    MANAGE = "manage"  # read and change one's own provider keys and aliases
    CONVERSATIONS = "conversations"  # read one's own conversations in the explorer


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request, proved by a session's token or by an API key; one of the two ids is set.

    `scopes` are those of the key; a session has all. A limit of None is the default of all, 0 none at all. `privacy` is
    the level that he chose, "" where he has not (`privacy`).
    """

    user_id: int
    email: str
    role: Role
    scopes: frozenset[Scope]
    key_id: int | None = None
    key_name: str = ""
    session_id: str | None = None
    rate_limit_minute: int | None = None
    rate_limit_daily: int | None = None
    team_ids: tuple[int, ...] = ()
    privacy: str = ""

    @property
    def is_admin(self) -> bool:
        """Whether he may act as one: by a session only."""
        return self.role is Role.ADMIN and self.session_id is not None


class Provider(StrEnum):
    """Whose API a provider key opens. `COMPATIBLE` speaks OpenAI's chat API at a base URL of its own."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    GEMINI = "gemini"
    BEDROCK = "bedrock"
    COMPATIBLE = "openai-compatible"


@dataclass(frozen=True, slots=True)
class ProviderKey:
    """A row of `provider_keys`. `sealed` is the encrypted key (`sealing`), `base_url` "" for the provider's own.

    `user_id` is its owner's; a `shared` one may be used by everybody.
    """

    id: int
    user_id: int
    provider: Provider
    label: str
    sealed: str = field(repr=False)
    key_version: int = 0
    base_url: str = ""
    region: str = ""
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """One link of an alias' chain: a model at a provider key. `weight` shares calls out among steps of one `rank`."""

    provider_key_id: int
    model: str
    rank: int = 0
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Alias:
    """A row of `model_aliases`: a short name for a model at a provider key, and what else may serve in its place.

    Thresholds are tokens of the prompt: below `light_model_threshold` the `light_model` serves, if `use_light_model`;
    from `long_model_threshold` on the `long_model`. `chain` follows the target, then the alias `fallback_alias_id`.
    `parameters` are laid over the request's own.
    """

    id: int
    user_id: int
    alias: str
    target_model: str
    provider_key_id: int
    shared: bool = False
    fallback_alias_id: int | None = None
    use_light_model: bool = False
    light_model_threshold: int = 100
    light_model: str = ""
    long_model: str = ""
    long_model_threshold: int | None = None
    weight: int = 1
    chain: tuple[Step, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=lambda: NOTHING)


@dataclass(frozen=True, slots=True)
class Target:
    """Where one attempt goes. `alias` is the name it was asked for by ("" for a raw model name)."""

    key: ProviderKey
    model: str
    alias: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: NOTHING)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call to a provider, or none where the request was refused before: a row of `request_logs`.

    `request_id` is the caller's request, shared by its attempts, which `number` counts from 1 (0: none was made).
    `status` is what the provider answered (None: nothing did) or, without a provider, what we did. Times in seconds;
    `cost` in US dollars, None where no price is known.
    """

    request_id: str
    number: int
    at: datetime
    caller: Caller
    api: str  # chat, responses, anthropic, embeddings, completions, count_tokens
    asked: str  # the model as the caller named it
    target: Target | None
    status: int | None
    ending: str  # complete, refused, upstream_failed, client_gone, timed_out
    error: str = ""
    stream: bool = False
    usage: Usage = field(default_factory=Usage)
    cost: float | None = None
    seconds: float = 0.0
    first_token: float | None = None
    project: str = ""  # what the caller says he works on
