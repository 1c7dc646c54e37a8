"""Limits, privacy, projects, and what machines know of each other. Adds only, so the program before stands it."""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
MOMENT = sa.DateTime(timezone=True)
_MOST = ("requests_minute", "requests_day", "tokens_minute", "tokens_day", "streams", "spend_day", "spend_month")


def upgrade() -> None:
    op.create_table(
        "limits",
        sa.Column("id", ID, autoincrement=True, nullable=False),
        sa.Column("subject", sa.String(length=16), nullable=False),
        sa.Column("subject_id", ID, nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=True) for name in _MOST),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_limits"),
        sa.UniqueConstraint("subject", "subject_id", name="uq_limits_subject_subject_id"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "privacy",
        sa.Column("user_id", ID, nullable=False),
        sa.Column("level", sa.String(length=16), nullable=False),
        sa.Column("changed_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_privacy_user_id_users", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("user_id", name="pk_privacy"),
    )
    op.add_column("request_logs", sa.Column("project", sa.String(length=255), nullable=False, server_default=""))
    op.create_table(
        "machines",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("address", sa.String(length=2048), nullable=False),
        sa.Column("seen_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_machines"),
    )
    op.create_table(
        "deletions",
        sa.Column("id", ID, autoincrement=True, nullable=False),
        sa.Column("account", sa.String(length=64), nullable=False),
        sa.Column("user_id", ID, nullable=False),
        sa.Column("requested_by", ID, nullable=False),
        sa.Column("requested_at", MOMENT, nullable=False),
        sa.Column("before", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_deletions"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_deletions_user_id", "deletions", ["user_id"], unique=False)
    op.create_table(
        "deletion_reports",
        sa.Column("deletion_id", ID, nullable=False),
        sa.Column("machine", sa.String(length=64), nullable=False),
        sa.Column("done_at", MOMENT, nullable=False),
        sa.Column("conversations", sa.BigInteger(), nullable=False),
        sa.Column("left", sa.Text, nullable=False),
        sa.ForeignKeyConstraint(
            ["deletion_id"],
            ["deletions.id"],
            name="fk_deletion_reports_deletion_id_deletions",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("deletion_id", "machine", name="pk_deletion_reports"),
    )
    facts = sa.table("facts", sa.column("name", sa.String), sa.column("value", sa.Text))
    op.bulk_insert(facts, [{"name": "store", "value": secrets.token_hex(4)}, {"name": "oldest", "value": "0001"}])
