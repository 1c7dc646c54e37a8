"""Where things lie: the XDG layout, on every operating system.

State is the exception: always `~/.local/state/llm-proxy`, because a service does not see the `XDG_STATE_HOME` of a
shell and both must find the same files. Plain strings throughout, and `platformdirs` only where it is needed: a new
shell imports this module and waits for it. Leaves out making folders and reading files.
"""

from __future__ import annotations

import os

APP = "llm-proxy"


def home() -> str:
    """The user's home, absolute: `HOME` where it is usable, else the password database's."""
    value = os.environ.get("HOME", "")
    if value.startswith("/"):
        return value
    import pwd

    return pwd.getpwuid(os.getuid()).pw_dir


def expand(path: str) -> str:
    """`~` and `~/…` spelled out and made absolute; `~other` is left to the password database."""
    if path == "~" or path.startswith("~/"):
        return home() + path[1:]
    return os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111


def state_folder() -> str:
    return f"{home()}/.local/state/{APP}"


def config_file() -> str:
    from platformdirs.unix import Unix

    return f"{Unix(APP).user_config_dir}/config.toml"


def data_folder() -> str:
    from platformdirs.unix import Unix

    return Unix(APP).user_data_dir


def price_file() -> str:
    """Prices that were fetched or imported; without it those of the installed package hold."""
    return f"{data_folder()}/prices.json"


def journal_folder(role: str) -> str:
    """The journal of one role: "service", "foreground-1", …"""
    return f"{state_folder()}/journal/{role}"


def index_file(logs: str) -> str:
    """The index of one log folder: `index.db` of the usual one, beside it one for each other."""
    if logs == f"{home()}/.llm-provider-logs":
        return f"{state_folder()}/index.db"
    from hashlib import sha256

    return f"{state_folder()}/index-{sha256(logs.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}.db"
