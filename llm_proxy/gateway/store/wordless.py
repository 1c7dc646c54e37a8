"""An error's words may repeat what was asked: they leave the usage log with their user's conversations.

Leaves out when: as it is asked for, as attempts are written that come later, and as a machine reports that it is done.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, Update, exists, update

from llm_proxy.gateway.store.schema import deletions, request_logs


def wordless(which: ColumnElement[bool]) -> Update:
    """Of these attempts, those that were begun before the moment of a deletion keep no words."""
    deleted = exists().where(
        deletions.c.user_id == request_logs.c.user_id, deletions.c.before > request_logs.c.created_at
    )
    return update(request_logs).where(which, request_logs.c.error != "", deleted).values(error="")
