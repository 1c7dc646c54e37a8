"""`python -m tests.fakeloki`: the fake Loki alone, until SIGTERM or SIGINT.

Prints `PORT n` first; `GET /fake/counts` shows what it has taken.
"""

from __future__ import annotations

import argparse
import signal
import ssl

from tests.fakeloki.server import FakeLoki


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.fakeloki", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--multi-tenant", action="store_true")
    parser.add_argument("--tls", nargs=2, metavar=("CERT", "KEY"), help="PEM files")
    options = parser.parse_args()
    tls = None
    if options.tls:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(*options.tls)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    with FakeLoki(options.port, options.host, tls, multi_tenant=options.multi_tenant) as loki:
        print(f"PORT {loki.port}", flush=True)
        signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    main()
