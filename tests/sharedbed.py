"""A shared index of its own for each test: a fresh database in the tests' PostgreSQL, with the schema in it."""

import asyncio
from contextlib import closing

import pytest

from llm_proxy.index.postgres_write import SharedIndexer
from tests.postgresbed import SERVER

_templates = []


def template(folder):
    """The database that others are copied from."""
    if not _templates:
        name = asyncio.run(SERVER.create())
        folder.joinpath("nothing").mkdir()
        with closing(SharedIndexer(SERVER.url(name), "nobody", folder / "nothing")) as made:
            made.fill()
        _templates.append(name)
    return _templates[0]


def database(folder):
    """The URL of a new one."""
    return SERVER.url(asyncio.run(SERVER.create(template(folder))))


@pytest.fixture
def shared(tmp_path):
    yield (url := database(tmp_path))
    asyncio.run(SERVER.drop(url.rpartition("/")[2]))


@pytest.fixture(scope="module")
def shared_by_all(tmp_path_factory):
    yield (url := database(tmp_path_factory.mktemp("shared")))
    asyncio.run(SERVER.drop(url.rpartition("/")[2]))
