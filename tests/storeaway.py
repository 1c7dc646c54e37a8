"""A PostgreSQL that does not let anybody into one database, until it is told to: a store that is away."""

from tests.postgresbed import SERVER


async def shut(url):
    name = url.rpartition("/")[2]
    await SERVER.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
    await SERVER.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")


async def unlock(url):
    name = url.rpartition("/")[2]
    await SERVER.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
