"""A Loki of our own: real sockets, the real one's rules about pushes, queries in a small form, and trouble by switch.

Imports nothing of `llm_proxy`.
"""

from tests.fakeloki.server import FakeLoki
from tests.fakeloki.store import Entry, Limits, Store

__all__ = ["Entry", "FakeLoki", "Limits", "Store"]
