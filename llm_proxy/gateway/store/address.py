"""A store's URL, read: which database it is, what its driver is told, and its name without the password.

Leaves out connecting.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

POSTGRESQL = frozenset({"postgresql", "postgres", "postgresql+asyncpg"})

# libpq knows these parameters, asyncpg takes whatever it does not know for a setting of the server, which knows none.
_LIBPQ_ONLY = frozenset(
    {
        "channel_binding",
        "client_encoding",
        "fallback_application_name",
        "gssencmode",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "load_balance_hosts",
        "requirepeer",
        "sslcompression",
        "sslsni",
        "tcp_user_timeout",
    }
)


class StoreUnusable(Exception):
    """This is no store for us, or no Redis, and waiting does not change that. Nothing in it was touched."""


@dataclass(frozen=True, slots=True)
class Address:
    """`path` is SQLite's file, else `dsn` is PostgreSQL's URL. `told` may be shown to anybody; times are seconds."""

    told: str
    path: Path | None = None
    dsn: str = field(default="", repr=False)
    connect_timeout: float = 5.0

    @property
    def is_sqlite(self) -> bool:
        return self.path is not None


def address(url: str, state: str) -> Address:
    """Of a URL; an empty one means `gateway.db` in the folder `state`. Raises StoreUnusable."""
    if not url:
        return _sqlite(str(Path(state) / "gateway.db"))
    scheme, mark, rest = url.partition("://")
    if mark and scheme.lower() in POSTGRESQL:
        return _postgresql(rest)
    if mark and scheme.lower() in {"sqlite", "sqlite+aiosqlite"}:
        host, _, path = rest.partition("/")
        if host or not path.startswith("/") or "?" in path or "#" in path:
            raise StoreUnusable(
                "the database URL of SQLite is sqlite:///, then the file's absolute path and nothing else"
            )
        return _sqlite(unquote(path))
    raise StoreUnusable("the database URL must begin with postgresql:// or sqlite:////")


def _sqlite(path: str) -> Address:
    return Address(f"sqlite:///{path}", path=Path(path))


def _postgresql(rest: str) -> Address:
    """Its user, password, hosts and database stay as they are written."""
    try:
        parts = urlsplit(f"postgresql://{rest}")
        given = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        seconds = float(dict(given).get("connect_timeout") or 5)
    except ValueError:  # its words may hold the password
        raise StoreUnusable(
            "the database URL cannot be read; is a special character in it not percent-encoded?"
        ) from None
    if parts.fragment:
        raise StoreUnusable("the database URL holds a #; in a password it is written %23")
    kept = [(name, value) for name, value in given if name not in _LIBPQ_ONLY and name != "connect_timeout"]
    user, at, hosts = parts.netloc.rpartition("@")
    shown = quote(unquote(user.partition(":")[0]), safe="")
    return Address(
        f"postgresql://{shown}{at}{hosts}{parts.path}",
        dsn=f"postgresql://{parts.netloc}{parts.path}{'?' if kept else ''}{urlencode(kept, quote_via=quote)}",
        connect_timeout=min(seconds, 60.0) if seconds > 0 else 5.0,
    )
