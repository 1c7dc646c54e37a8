"""Pytest fixtures: a started fake provider."""

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.fakeprovider.server import FakeProvider


@pytest_asyncio.fixture
async def fake() -> AsyncIterator[FakeProvider]:
    """A fake provider on a free port of 127.0.0.1, stopped after the test."""
    async with FakeProvider() as provider:
        yield provider
