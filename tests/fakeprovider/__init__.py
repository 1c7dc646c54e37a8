"""A provider to test against: answers like the real ones, keeps what it saw byte for byte, and misbehaves on request.

Imports nothing of `llm_proxy`, so that both cannot share a mistake. `FakeProvider` serves inside a test;
`python -m tests.fakeprovider` serves alone. Leaves out HTTP/2 and the AWS formats.
"""

from tests.fakeprovider.faults import FAULTS
from tests.fakeprovider.seen import SeenConnection, SeenRequest, SeenResponse
from tests.fakeprovider.server import FakeProvider

__all__ = ["FAULTS", "FakeProvider", "SeenConnection", "SeenRequest", "SeenResponse"]
