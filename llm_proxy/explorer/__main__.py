"""`python -m llm_proxy.explorer JSON`: serves the explorer until told to stop; the service starts and ends it."""

from __future__ import annotations

import os
import sys

from aiohttp import web

from llm_proxy.explorer.options import options
from llm_proxy.explorer.site import application


def main() -> int:
    given = options(sys.argv[1])
    os.umask(0o077)
    app = application(given)
    if given.socket:
        web.run_app(app, path=given.socket, print=None)
    else:
        web.run_app(app, host="127.0.0.1", port=given.port, print=None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
