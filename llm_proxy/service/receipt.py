"""The receipt of setup: every file it wrote with its SHA-256, every folder it made, and what it switched on.

It is what uninstall works from, and it is saved before each change, so a setup that was cut short can be undone. A
file that no longer carries our sum is the user's: it is neither replaced nor removed. Leaves out shells and clients,
which keep their own account.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from llm_proxy.service import state

NAME = "setup.json"


@dataclass(slots=True)
class Receipt:
    """`autostart`: "systemd", "launchd", "brew", "shell" or "". Paths are absolute."""

    folder: str
    autostart: str = ""
    port: int = 0  # of the socket unit
    linger: bool = False  # switched on by us
    files: dict[str, str] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)

    def save(self) -> None:
        """Raises OSError, StateUnusable."""
        self._remember(Path(self.folder))
        state.prepare(self.folder)
        facts = asdict(self)
        del facts["folder"]
        state.write(self.folder, NAME, json.dumps(facts, indent=2) + "\n")

    def holds(self, path: Path) -> bool:
        """Whether the file is still what we wrote."""
        return not path.is_symlink() and digest(path) == self.files.get(str(path), "")

    def outcome(self, path: Path, content: bytes) -> str:
        """What `write` would do: "done", "unchanged", or "warning" where the file is the user's by now."""
        found = digest(path)
        if path.is_symlink() or (path.exists() and found not in (self.files.get(str(path)), _sum(content))):
            return "warning"
        return "unchanged" if found == _sum(content) else "done"

    def write(self, path: Path, content: bytes) -> str:
        """Put a file there, or beside a user's own as `.new`; its outcome. Raises OSError, StateUnusable."""
        outcome = self.outcome(path, content)
        if outcome == "warning":
            path = path.with_name(path.name + ".new")
        self.make_folder(path.parent)
        if self.files.get(str(path)) != _sum(content) or outcome != "unchanged":
            self.files[str(path)] = _sum(content)
            self.save()
            replace(path, content)
        return outcome

    def make_folder(self, folder: Path) -> None:
        """With all that is missing above it, remembered. Raises OSError, StateUnusable."""
        self._remember(folder)
        self.save()
        folder.mkdir(0o700, parents=True, exist_ok=True)

    def _remember(self, folder: Path) -> None:
        missing = [str(part) for part in (folder, *folder.parents) if not part.exists()]
        self.folders += [part for part in missing if part not in self.folders]


def load(folder: str) -> Receipt | None:
    """None where there is none, or none that can be read."""
    try:
        facts = json.loads((Path(folder) / NAME).read_bytes())
        return Receipt(
            folder,
            autostart=str(facts["autostart"]),
            port=int(facts["port"]),
            linger=facts["linger"] is True,
            files={str(path): str(value) for path, value in facts["files"].items()},
            folders=[str(path) for path in facts["folders"]],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def made(folder: str) -> list[str]:
    """Folders that the installer, or a daemon, made before there was a receipt."""
    try:
        return [line for line in (Path(folder) / state.MADE).read_text().splitlines() if line.startswith("/")]
    except (OSError, ValueError):
        return []


def digest(path: Path) -> str:
    """SHA-256 of a file in hex; empty where it cannot be read."""
    try:
        return _sum(path.read_bytes())
    except OSError:
        return ""


def replace(path: Path, content: bytes) -> None:
    """In one step, 0600. Raises OSError."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(fd)
        draft.rename(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
