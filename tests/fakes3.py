"""S3-compatible storage in memory, which believes nobody whose signature is not right (Signature Version 4)."""

import hmac
import re
import threading
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, quote, unquote, urlsplit

ACCESS, SECRET, REGION = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "eu-test-1"


class FakeS3:
    """`objects` by "bucket/key"; `refusing` answers 503 to everything; `versions`: it keeps what is deleted."""

    def __init__(self):
        self.objects = {}
        self.refusing = self.versions = False
        self.asked = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _do(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, data, headers = fake.answer(self.command, self.path, self.headers, body)
                fake.asked.append((self.command, self.path, status))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PUT = do_DELETE = _do

            def log_message(self, *given):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def bucket(self, **more):
        """The fields of `s3_client.Bucket`."""
        given = {"name": "kept", "prefix": "team", "endpoint": self.url, "region": REGION}
        return given | {"access_key": ACCESS, "secret_key": SECRET} | more

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def answer(self, method, target, headers, body):
        if self.refusing:
            return 503, _error("SlowDown"), {}
        if not _is_signed(method, target, headers, body):
            return 403, _error("SignatureDoesNotMatch"), {}
        name = unquote(urlsplit(target).path)[1:]
        if method == "PUT":
            self.objects[name] = body
            return 200, b"", {"ETag": '"x"'}
        if method == "DELETE":
            self.objects.pop(name, None)
            return 204, b"", {"x-amz-delete-marker": "true", "x-amz-version-id": "v1"} if self.versions else {}
        if name not in self.objects:
            return 404, _error("NoSuchKey"), {}
        data, span = self.objects[name], re.fullmatch(r"bytes=(\d+)-(\d+)", headers.get("Range", ""))
        if span is None:
            return 200, data, {}
        first, last = int(span[1]), int(span[2])
        if first >= len(data):
            return 416, _error("InvalidRange"), {}
        part = data[first : last + 1]
        return 206, part, {"Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(data)}"}


def _error(code):
    return f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code></Error>'.encode()


def _is_signed(method, target, headers, body):
    """The signature over the request as it came, by AWS's description of it."""
    pattern = (
        r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/s3/aws4_request, ?SignedHeaders=([^,]+), ?Signature=(\w+)"
    )
    match = re.fullmatch(pattern, headers.get("Authorization", ""))
    if match is None or match[1] != ACCESS or match[3] != REGION:
        return False
    _, day, region, names, signature = match.groups()
    digest = sha256(body).hexdigest()
    if headers.get("x-amz-content-sha256") != digest or "host" not in names.split(";"):
        return False
    parts = urlsplit(target)
    query = sorted(parse_qsl(parts.query, keep_blank_values=True))
    canonical = "\n".join(
        (
            method,
            parts.path,
            "&".join(f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}" for name, value in query),
            *(f"{name}:{' '.join(headers.get(name, '').split())}" for name in names.split(";")),
            "",
            names,
            digest,
        )
    )
    scope = f"{day}/{region}/s3/aws4_request"
    stamp = headers.get("x-amz-date", "")
    told = "\n".join(("AWS4-HMAC-SHA256", stamp, scope, sha256(canonical.encode()).hexdigest()))
    key = f"AWS4{SECRET}".encode()
    for piece in (day, region, "s3", "aws4_request", told):
        key = hmac.digest(key, piece.encode(), "sha256")
    return stamp.startswith(day) and hmac.compare_digest(key.hex(), signature)
