"""Sums that are kept beside the calls: of each session, of its models, and of each quarter of an hour and model.

Triggers keep them with every row of `calls` that comes, changes or goes, so live ingest and a rebuild come to the same,
and lists are sorted and counted without reading all calls. Of what the gateway called they are kept by account too.
Leaves out who asks (`browse`, `figures`).

In `sessions`, `session_accounts` and `slots`: `calls`, `failed`, `open` (no response yet), `cut` (partial, or the
client left), the classes of tokens, dollars spent and covered by subscriptions (each in microdollars and picodollars
left over, because one sum of absurd prices would not fit in 64 bits) and `unpriced`. A slot is `started` in quarters of
an hour since 1970, -1 of a call whose beginning is not known; its account is "" where no gateway made the call.
"""

from __future__ import annotations

from llm_proxy.dialects.digest import TOKEN_CLASSES

QUARTER = 900 * 10**9  # ns: every time zone is a multiple of it away from the next
_PAID, _COVERED = "{0}.basis IN ('list', 'override')", "{0}.basis = 'subscription'"
_MICRO = 10**6  # picodollars

# Each sum and what one row of `calls` adds to it; {0} is the row.
SUMS: dict[str, str] = {
    "calls": "1",
    "failed": "coalesce({0}.failed, 0)",
    "open": "CASE WHEN {0}.response_file IS NULL THEN 1 ELSE 0 END",
    "cut": "CASE WHEN {0}.partial != 0 OR {0}.ending = 'client_gone' THEN 1 ELSE 0 END",
    **{name: f"coalesce({{0}}.{name}, 0)" for name in TOKEN_CLASSES},
    "spent": f"coalesce(CASE WHEN {_PAID} THEN {{0}}.usd / {_MICRO} END, 0)",
    "spent_rest": f"coalesce(CASE WHEN {_PAID} THEN {{0}}.usd % {_MICRO} END, 0)",
    "covered": f"coalesce(CASE WHEN {_COVERED} THEN {{0}}.usd / {_MICRO} END, 0)",
    "covered_rest": f"coalesce(CASE WHEN {_COVERED} THEN {{0}}.usd % {_MICRO} END, 0)",
    "unpriced": "CASE WHEN {0}.basis = 'unpriced' THEN 1 ELSE 0 END",
}
# For whom the gateway made a call, NULL of all others. An account is given to one user of one gateway, and never again.
WHOSE = ("account", "gateway_user", "gateway_team", "gateway_project")
# All that went in and came out, of a row of `sessions` or `slots`.
TOKENS = "({0}input + {0}cache_read + {0}cache_write_5m + {0}cache_write_1h + {0}output)"
# By what sessions are put in order, never NULL; each has an index with the id behind it.
ORDERS = {
    "when": "coalesce(last, 0)",
    "cost": "(spent + covered)",
    "tokens": TOKENS.format(""),
    "calls": "calls",
    "took": "coalesce(last - started, 0)",
}


def _slot(row: str) -> str:
    return f"coalesce({row}.started / {QUARTER}, -1)"


def _model(row: str) -> str:
    return f"coalesce({row}.model, '')"


def _account(row: str) -> str:
    return f"coalesce({row}.account, '')"


def _change(sign: str, row: str) -> str:
    """`calls = calls + 1, …` of one row."""
    return ", ".join(f"{name} = {name} {sign} {of.format(row)}" for name, of in SUMS.items())


def _add_to(table: str, keys: dict[str, str], row: str) -> str:
    columns = ", ".join((*keys, *SUMS))
    values = ", ".join((*keys.values(), *(of.format(row) for of in SUMS.values())))
    more = ", ".join(f"{name} = {table}.{name} + excluded.{name}" for name in SUMS)
    return f"""
        INSERT INTO {table} ({columns}) VALUES ({values}) ON CONFLICT ({", ".join(keys)}) DO UPDATE SET {more};
    """


def _take_from(table: str, keys: dict[str, str], row: str) -> str:
    which = " AND ".join(f"{name} = {value}" for name, value in keys.items())
    return f"""
        UPDATE {table} SET {_change("-", row)} WHERE {which};
        DELETE FROM {table} WHERE {which} AND calls = 0;
    """


def _slots(row: str) -> dict[str, str]:
    return {"slot": _slot(row), "model": _model(row), "account": _account(row)}


def _shares(row: str) -> dict[str, str]:
    return {"session": f"{row}.session", "account": f"{row}.account"}


_USE_MODEL = """
    INSERT INTO session_models (session, model, calls) VALUES (new.session, new.model, 1)
        ON CONFLICT (session, model) DO UPDATE SET calls = session_models.calls + 1;
"""
_LEAVE_MODEL = """
    UPDATE session_models SET calls = calls - 1 WHERE session = old.session AND model = old.model;
    DELETE FROM session_models WHERE session = old.session AND model = old.model AND calls = 0;
"""
_COUNTS = ", ".join(f"{name} INTEGER NOT NULL" for name in SUMS)
_DELTA = ", ".join(f"{name} = {name} + {of.format('new')} - {of.format('old')}" for name, of in SUMS.items())
_ALL = ", ".join(f"coalesce(sum({of.format('calls')}), 0)" for of in SUMS.values())

_OF_MODELS = ("model_comes", "model_goes", "model_left", "model_taken")
_MODEL_TRIGGERS = f"""
    CREATE TRIGGER model_comes AFTER INSERT ON calls WHEN new.model != '' BEGIN {_USE_MODEL} END;
    CREATE TRIGGER model_goes AFTER DELETE ON calls WHEN old.model != '' BEGIN {_LEAVE_MODEL} END;
    CREATE TRIGGER model_left AFTER UPDATE OF model ON calls
        WHEN old.model != '' AND new.model IS NOT old.model BEGIN {_LEAVE_MODEL} END;
    CREATE TRIGGER model_taken AFTER UPDATE OF model ON calls
        WHEN new.model != '' AND new.model IS NOT old.model BEGIN {_USE_MODEL} END;
"""

MIGRATION = f"""
    {"".join(f"ALTER TABLE sessions ADD COLUMN {name} INTEGER NOT NULL DEFAULT 0;" for name in SUMS)}
    CREATE TABLE session_models (
        session INTEGER NOT NULL, model TEXT NOT NULL, calls INTEGER NOT NULL, PRIMARY KEY (session, model)
    ) WITHOUT ROWID;
    CREATE INDEX session_models_by_model ON session_models (model);

    UPDATE sessions SET ({", ".join(SUMS)}) = (SELECT {_ALL} FROM calls WHERE calls.session = sessions.key);
    INSERT INTO session_models SELECT session, model, count(*) FROM calls WHERE model != '' GROUP BY 1, 2;

    {_MODEL_TRIGGERS}
    {"".join(f"CREATE INDEX sessions_in_order_of_{name} ON sessions ({order}, id);" for name, order in ORDERS.items())}
    CREATE INDEX sessions_for_counts
        ON sessions (project, program, provider, branch, failed, cut, open, unpriced, last);
    CREATE INDEX sessions_open ON sessions (open) WHERE open > 0;
    CREATE INDEX calls_by_pace ON calls (started, ttfb, total, model, session)
"""

# Beside the sums by account it holds what made them without: this stood in the migration before. Between the two, all
# calls may go, without a trigger run for each.
BY_ACCOUNT = f"""
    {"".join(f"DROP TRIGGER IF EXISTS {name};" for name in _OF_MODELS)}
    DROP TRIGGER IF EXISTS call_comes;
    DROP TRIGGER IF EXISTS call_changes;
    DROP TRIGGER IF EXISTS call_goes;
    DROP TABLE IF EXISTS slots;
    {"".join(f"ALTER TABLE calls ADD COLUMN {name} TEXT;" for name in WHOSE)}
    CREATE INDEX calls_by_account ON calls (account, started) WHERE account IS NOT NULL;
    CREATE INDEX calls_by_user ON calls (gateway_user, session) WHERE gateway_user IS NOT NULL;
    CREATE TABLE session_accounts (
        session INTEGER NOT NULL, account TEXT NOT NULL, {_COUNTS}, PRIMARY KEY (account, session)
    ) WITHOUT ROWID;
    CREATE INDEX session_accounts_by_session ON session_accounts (session);
    CREATE TABLE slots (
        slot INTEGER NOT NULL, model TEXT NOT NULL, account TEXT NOT NULL, {_COUNTS},
        PRIMARY KEY (slot, model, account)
    ) WITHOUT ROWID;
    CREATE INDEX slots_by_account ON slots (account, slot) WHERE account != '';
    DELETE FROM session_models
"""
BY_ACCOUNT_KEPT = f"""
    {_MODEL_TRIGGERS}
    CREATE TRIGGER call_comes AFTER INSERT ON calls BEGIN
        UPDATE sessions SET {_change("+", "new")} WHERE key = new.session;
        {_add_to("slots", _slots("new"), "new")}
    END;
    CREATE TRIGGER call_changes AFTER UPDATE ON calls BEGIN
        UPDATE sessions SET {_DELTA} WHERE key = new.session;
        {_take_from("slots", _slots("old"), "old")}
        {_add_to("slots", _slots("new"), "new")}
    END;
    CREATE TRIGGER call_goes AFTER DELETE ON calls BEGIN
        UPDATE sessions SET {_change("-", "old")} WHERE key = old.session;
        {_take_from("slots", _slots("old"), "old")}
    END;
    CREATE TRIGGER share_comes AFTER INSERT ON calls WHEN new.account IS NOT NULL
        BEGIN {_add_to("session_accounts", _shares("new"), "new")} END;
    CREATE TRIGGER share_left AFTER UPDATE ON calls WHEN old.account IS NOT NULL
        BEGIN {_take_from("session_accounts", _shares("old"), "old")} END;
    CREATE TRIGGER share_taken AFTER UPDATE ON calls WHEN new.account IS NOT NULL
        BEGIN {_add_to("session_accounts", _shares("new"), "new")} END;
    CREATE TRIGGER share_goes AFTER DELETE ON calls WHEN old.account IS NOT NULL
        BEGIN {_take_from("session_accounts", _shares("old"), "old")} END;
"""
