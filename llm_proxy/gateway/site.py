"""The gateway's parts, made and joined: what every route has at hand. Leaves out serving (`app`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm_proxy.gateway.breaker import Breakers
    from llm_proxy.gateway.catalog import Catalogs
    from llm_proxy.gateway.identity import Identifier
    from llm_proxy.gateway.limiting import Limiter
    from llm_proxy.gateway.options import Options, Secrets
    from llm_proxy.gateway.sealing import Sealer
    from llm_proxy.gateway.sending.sender import Sender
    from llm_proxy.gateway.store.database import Store
    from llm_proxy.gateway.usage import UsageLog


@dataclass(slots=True)
class Site:
    """One for a process. `secrets` are for the parts that need them, and for nobody to show."""

    options: Options
    secrets: Secrets
    store: Store
    identifier: Identifier
    sealer: Sealer
    catalogs: Catalogs
    breakers: Breakers
    sender: Sender
    limiter: Limiter
    usage: UsageLog
