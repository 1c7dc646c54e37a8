"""The tables, as SQLAlchemy describes them to SQLite and PostgreSQL alike. Migrations make them (`migrations`).

Times are UTC. Money is in billionths of a US dollar, a whole number. An id is never given out twice (`AUTOINCREMENT`):
who comes after somebody deleted must not find what is kept of him. Leaves out every query.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.engine import Dialect

NANO = 1_000_000_000  # of money
# Of one call, whatever a provider writes: sums must fit into 64 bits.
MOST_TOKENS = 10**12
MOST_COST = 10**15  # billionths

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class Moment(TypeDecorator[datetime]):
    """An aware datetime in and out, in UTC; SQLite keeps none of the zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value} says no time zone")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


def now() -> datetime:
    return datetime.now(UTC)


Id = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows by itself only in an INTEGER column


def _id() -> Column[int]:
    return Column("id", Id, primary_key=True, autoincrement=True)


def _of(table: str, name: str = "", **more: Any) -> Column[int]:
    return Column(name or f"{table.removesuffix('s')}_id", Id, ForeignKey(f"{table}.id", ondelete="CASCADE"), **more)


users = Table(
    "users",
    metadata,
    _id(),
    Column("email", String(255), nullable=False, unique=True),  # in lower case
    Column("password_hash", String(255), nullable=False),
    Column("role", String(16), nullable=False),
    Column("active", Boolean, nullable=False, default=True),
    Column("rate_limit_minute", Integer),  # null: the default of all; 0: none
    Column("rate_limit_daily", Integer),
    Column("created_at", Moment, nullable=False, default=now),
    sqlite_autoincrement=True,
)

teams = Table(
    "teams",
    metadata,
    _id(),
    Column("name", String(255), nullable=False, unique=True),
    Column("monthly_budget", BigInteger),  # null: none
    Column("created_at", Moment, nullable=False, default=now),
    sqlite_autoincrement=True,
)

team_members = Table(
    "team_members",
    metadata,
    _of("teams", primary_key=True),
    _of("users", primary_key=True),
)

invitations = Table(
    "invitations",
    metadata,
    _id(),
    Column("token_hash", String(64), nullable=False, unique=True),
    Column("email", String(255), nullable=False, default=""),  # "": whoever brings it
    Column("role", String(16), nullable=False),
    Column("created_by", Id, ForeignKey("users.id", ondelete="SET NULL")),
    Column("created_at", Moment, nullable=False, default=now),
    Column("expires_at", Moment, nullable=False),
    Column("used_by", Id, ForeignKey("users.id", ondelete="SET NULL")),
    Column("used_at", Moment),
    sqlite_autoincrement=True,
)

# What a session's tokens are checked against; `refresh_hash` changes whenever one is renewed.
sessions = Table(
    "sessions",
    metadata,
    Column("id", String(36), primary_key=True),
    _of("users", nullable=False, index=True),
    Column("refresh_hash", String(64), nullable=False, unique=True),
    Column("created_at", Moment, nullable=False, default=now),
    Column("expires_at", Moment, nullable=False),
    Column("revoked_at", Moment),
)

# `kind` is "key" for `llmp_…`, "jwt" for a token that TokenTracer gave out.
api_keys = Table(
    "api_keys",
    metadata,
    _id(),
    _of("users", nullable=False, index=True),
    Column("kind", String(8), nullable=False, default="key"),
    Column("name", String(255), nullable=False),
    Column("prefix", String(32), nullable=False),
    Column("key_hash", String(64), nullable=False, unique=True),  # SHA-256 of the whole key, hexadecimal
    Column("scopes", JSON, nullable=False),
    Column("created_at", Moment, nullable=False, default=now),
    Column("expires_at", Moment),
    Column("last_used_at", Moment),
    Column("revoked_at", Moment),
    sqlite_autoincrement=True,
)

provider_keys = Table(
    "provider_keys",
    metadata,
    _id(),
    _of("users", nullable=False, index=True),
    Column("provider", String(50), nullable=False),
    Column("label", String(255), nullable=False, default=""),
    Column("encrypted_key", Text, nullable=False),
    Column("key_version", Integer, nullable=False),  # 0: by TokenTracer's scheme; 1: by ours
    Column("key_id", String(16), nullable=False, default=""),  # which encryption key, by its digest's beginning
    Column("base_url", String(2048), nullable=False, default=""),
    Column("region", String(32), nullable=False, default=""),
    Column("shared", Boolean, nullable=False, default=False),
    Column("created_at", Moment, nullable=False, default=now),
    Column("tested_at", Moment),
    sqlite_autoincrement=True,
)

model_aliases = Table(
    "model_aliases",
    metadata,
    _id(),
    _of("users", nullable=False),
    Column("alias", String(255), nullable=False),
    Column("shared", Boolean, nullable=False, default=False),
    Column("target_model", String(255), nullable=False),
    Column("provider_key_id", Id, ForeignKey("provider_keys.id"), nullable=False, index=True),
    Column("fallback_alias_id", Id, ForeignKey("model_aliases.id", ondelete="SET NULL"), index=True),
    Column("use_light_model", Boolean, nullable=False, default=False),
    Column("light_model_threshold", Integer, nullable=False, default=100),
    Column("light_model", String(255), nullable=False, default=""),
    Column("long_model", String(255), nullable=False, default=""),
    Column("long_model_threshold", Integer),
    Column("weight", Integer, nullable=False, default=1),
    Column("chain", JSON, nullable=False, default=list),  # of facts.Step
    Column("parameters", JSON, nullable=False, default=dict),
    Column("created_at", Moment, nullable=False, default=now),
    UniqueConstraint("user_id", "alias"),
    sqlite_autoincrement=True,
)

provider_models = Table(
    "provider_models",
    metadata,
    Column("provider_key_id", Id, ForeignKey("provider_keys.id", ondelete="CASCADE"), primary_key=True),
    Column("model_id", String(255), primary_key=True),
    Column("created_at", Moment, nullable=False, default=now),
)

# One row per attempt (facts.Attempt); whoever is deleted, what he spent stays.
request_logs = Table(
    "request_logs",
    metadata,
    Column("id", String(48), primary_key=True),  # request id, "-", attempt's number: written twice it is one row
    Column("request_id", String(40), nullable=False, index=True),
    Column("attempt", Integer, nullable=False),
    Column("user_id", Id, nullable=False),
    Column("api_key_id", Id),
    Column("team_id", Id),
    Column("api", String(16), nullable=False),
    Column("alias_used", String(255), nullable=False),
    Column("provider_used", String(50), nullable=False),
    Column("model_used", String(255), nullable=False),
    Column("provider_key_id", Id),
    Column("stream", Boolean, nullable=False, default=False),
    Column("input_tokens", BigInteger, nullable=False, default=0),  # all that went in, cached or not
    Column("output_tokens", BigInteger, nullable=False, default=0),
    Column("cache_read_tokens", BigInteger, nullable=False, default=0),
    Column("cache_write_tokens", BigInteger, nullable=False, default=0),
    Column("reasoning_tokens", BigInteger, nullable=False, default=0),
    Column("cost", BigInteger),  # null: no price is known
    Column("status_code", Integer),
    Column("ending", String(20), nullable=False),
    Column("error", String(500), nullable=False, default=""),
    Column("milliseconds", BigInteger, nullable=False, default=0),
    Column("first_token_milliseconds", BigInteger),
    Column("created_at", Moment, nullable=False),
    Column("project", String(255), nullable=False, default="", server_default=""),
    Index("ix_request_logs_user_id_created_at", "user_id", "created_at"),
    Index("ix_request_logs_team_id_created_at", "team_id", "created_at"),
    Index("ix_request_logs_created_at", "created_at"),
)

audit_log = Table(
    "audit_log",
    metadata,
    _id(),
    Column("at", Moment, nullable=False, default=now, index=True),
    Column("user_id", Id),  # who did it; null: nobody who is known
    Column("action", String(64), nullable=False),  # as in "alias.delete"
    Column("object", String(255), nullable=False, default=""),  # as in "alias:17"
    Column("detail", JSON, nullable=False, default=dict),  # never a secret
    Column("address", String(64), nullable=False, default=""),
    sqlite_autoincrement=True,
)

# What may be used at most; null: as much as one likes. `subject` is everybody (0), a user, team, key or alias.
_MOST = ("requests_minute", "requests_day", "tokens_minute", "tokens_day", "streams", "spend_day", "spend_month")
limits = Table(
    "limits",
    metadata,
    _id(),
    Column("subject", String(16), nullable=False),
    Column("subject_id", Id, nullable=False),
    *(Column(name, BigInteger) for name in _MOST),
    Column("created_at", Moment, nullable=False, default=now),
    UniqueConstraint("subject", "subject_id"),
    sqlite_autoincrement=True,
)

# How much is kept of whose conversations: none, metadata, redacted or full. No row: as the operator sets it.
privacy = Table(
    "privacy",
    metadata,
    _of("users", primary_key=True),
    Column("level", String(16), nullable=False),
    Column("changed_at", Moment, nullable=False, default=now),
)

# The machines that use this store. `address` is where others reach it, "" where nobody has said.
machines = Table(
    "machines",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", String(255), nullable=False),
    Column("version", String(64), nullable=False),
    Column("address", String(2048), nullable=False, default=""),
    Column("seen_at", Moment, nullable=False),
)

# Whose conversations every machine is to delete: those begun before a moment. The rows outlive the user.
deletions = Table(
    "deletions",
    metadata,
    _id(),
    Column("account", String(64), nullable=False),
    Column("user_id", Id, nullable=False, index=True),
    Column("requested_by", Id, nullable=False),
    Column("requested_at", Moment, nullable=False, default=now),
    Column("before", Moment, nullable=False),
    sqlite_autoincrement=True,
)

# What a machine has done of it; `left` says what was out of its reach, "" where nothing was.
deletion_reports = Table(
    "deletion_reports",
    metadata,
    Column("deletion_id", Id, ForeignKey("deletions.id", ondelete="CASCADE"), primary_key=True),
    Column("machine", String(64), primary_key=True),
    Column("done_at", Moment, nullable=False, default=now),
    Column("conversations", BigInteger, nullable=False),
    Column("left", Text, nullable=False, default=""),
)

# `changes` counts what every machine must know of at once. Of the facts `store` tells this store from every other one,
# `oldest` is the version of the oldest program that stands these tables, and `canary` tells whether the encryption key
# is the right one.
facts = Table(
    "facts",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)
changes = Table(
    "changes",
    metadata,
    Column("id", Integer, primary_key=True),  # one row
    Column("count", BigInteger, nullable=False),
)
