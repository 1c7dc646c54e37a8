"""Files that pages load, from several folders under one path with a hash in it, so that a browser may keep them.

Leaves out serving them.
"""

from __future__ import annotations

import re
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

SHARED: Final = Path(__file__).parent / "static"  # the style of all pages
CACHE: Final = "public, max-age=31536000, immutable"

_TYPES: Final = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_EDITION: Final = re.compile(r"v-[0-9a-f]{12}/")


class File(NamedTuple):
    data: bytes
    type: str


class Assets:
    """The files of some folders, of which the first that has a name counts, served under `root`."""

    def __init__(self, root: str, *folders: Path) -> None:
        self._root = root
        self._paths = {
            str(path.relative_to(folder)): path
            for folder in reversed(folders)
            for path in folder.rglob("*")
            if path.is_file()
        }

    @cached_property
    def _edition(self) -> str:
        """One hash for all files: modules that import each other by relative paths stay the same modules."""
        files = (path for _, path in sorted(self._paths.items()))
        return sha256(b"\0".join(one.name.encode() + one.read_bytes() for one in files)).hexdigest()[:12]

    def link(self, name: str) -> str:
        """`/root/v-1a2b3c4d5e6f/style.css`. Raises KeyError where there is no such file of ours."""
        self._paths[name]
        return f"{self._root}/v-{self._edition}/{name}"

    def file(self, name: str) -> File | None:
        """What is under `root`, of this edition or another."""
        name = _EDITION.sub("", name, count=1) if _EDITION.match(name) else name
        path = self._paths.get(name)
        kind = _TYPES.get(path.suffix) if path is not None else None
        return File(path.read_bytes(), kind) if path is not None and kind is not None else None
