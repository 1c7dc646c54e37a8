"""User units that a Debian package brings, for all users of the machine; each user switches them on for themselves.

The files are the package's alone: setup enables them and writes none of its own, uninstall disables them. Leaves out
what is in them (`units`), and what the package's own scripts do (packaging/deb).
"""

from __future__ import annotations

from pathlib import Path

from llm_proxy import paths
from llm_proxy.service import units
from llm_proxy.service.origin import origin

_FOLDER = Path("/usr/lib/systemd/user")
LINKS = {units.SOCKET: "sockets.target.wants", units.SERVICE: "default.target.wants"}


def folder() -> Path | None:
    """Where they lie; None where this program did not come with them."""
    return _FOLDER if origin().kind == "deb" and (_FOLDER / units.SERVICE).exists() else None


def is_enabled(name: str) -> bool:
    """Whether this user's manager starts the unit, by the link that `systemctl enable` makes."""
    return (Path(paths.home()) / ".config/systemd/user" / LINKS[name] / name).is_symlink()
