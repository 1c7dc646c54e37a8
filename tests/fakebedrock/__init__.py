"""A Bedrock of our own: real sockets, signatures that are recomputed, real event streams, and trouble by script.

Imports nothing of `llm_proxy`.
"""

from tests.fakebedrock.server import FakeBedrock, Plan, Seen
from tests.fakebedrock.sigv4 import Account, Refused

__all__ = ["Account", "FakeBedrock", "Plan", "Refused", "Seen"]
