"""A certificate for tests: its own authority, for localhost, 127.0.0.1, ::1 and two providers' names. The key is no secret."""

from __future__ import annotations

import ssl
from pathlib import Path

CERTIFICATE = Path(__file__).parent / "tls" / "cert.pem"
KEY = CERTIFICATE.with_name("key.pem")


def tls_context(certificate: str | Path = CERTIFICATE, key: str | Path = KEY) -> ssl.SSLContext:
    """For a server with that certificate and key (PEM files). Clients trust ours with `cafile=CERTIFICATE`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return context
