"""`python -m tests.fakeprovider`: the fake provider alone, until SIGTERM or SIGINT.

Prints `PORT n` first. Keeps counters only; `GET /fake/counts` shows them.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import ssl

from tests.fakeprovider.certificate import tls_context
from tests.fakeprovider.server import FakeProvider


async def serve(host: str, port: int, tls: ssl.SSLContext | None) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with FakeProvider(host=host, port=port, tls=tls, keep=False) as fake:
        print(f"PORT {fake.port}", flush=True)
        await stopped.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.fakeprovider", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--tls", nargs=2, metavar=("CERT", "KEY"), help="PEM files")
    parser.add_argument("--uvloop", action="store_true")
    options = parser.parse_args()
    tls = tls_context(*options.tls) if options.tls else None
    running = serve(options.host, options.port, tls)
    if options.uvloop:
        import uvloop

        uvloop.run(running)
    else:
        asyncio.run(running)


if __name__ == "__main__":
    main()
