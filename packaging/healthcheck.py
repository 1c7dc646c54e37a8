"""Whether the daemon of this container carries traffic: exit status 0 or 1, and the reason.

With a path, whether that is answered well: `/health/gateway`. Leaves out how the record stands, because a restart
would not mend a full disk: `/health/sinks` tells that.
"""

import http.client
import os
import ssl
import sys

PATH = "/llm-proxy/health"  # ours with a single target too
SECONDS = 3


def main() -> int:
    path = sys.argv[1] if len(sys.argv) > 1 else PATH
    port = int(os.environ.get("LLM_PROXY_PORT") or 8080)
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    if os.environ.get("LLM_PROXY_NAMED_TLS_CERT"):
        # Of this container alone, and no name in a certificate fits 127.0.0.1.
        link = http.client.HTTPSConnection("127.0.0.1", port, timeout=SECONDS, context=ssl._create_unverified_context())
    try:
        link.request("GET", path)
        answer = link.getresponse()
    except (OSError, http.client.HTTPException) as error:
        print(f"no answer at port {port}: {error}", file=sys.stderr)
        return 1
    finally:
        link.close()
    print(f"{path} answers {answer.status}")
    return answer.status != 200


if __name__ == "__main__":
    sys.exit(main())
