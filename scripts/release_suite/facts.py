"""What is released: the version, its date, its changes. Read from the checkout alone; leaves out building."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PLATFORMS = (("macos", "aarch64"), ("macos", "x86_64"), ("linux", "aarch64"), ("linux", "x86_64"))
_SYSTEMS = {"Linux": "linux", "Darwin": "macos"}
_MACHINES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
_DATED = re.compile(r"## \[.*\] - \d{4}-\d{2}-\d{2}\n")
_DRAFTED = 1577836800  # 2020-01-01: the date of a draft that nothing else dates


class NotReleasable(Exception):
    """This checkout cannot be released as it is. Nothing was written."""


@dataclass(frozen=True, slots=True)
class Facts:
    """`epoch` dates every file, in seconds; `base` is where releases lie, empty where a draft names no place."""

    root: Path
    version: str
    epoch: int
    base: str
    draft: bool
    changes: str

    @property
    def name(self) -> str:
        return f"llm-proxy-{self.version}"

    @property
    def sources(self) -> tuple[str, str]:
        """Names of the sdist and the wheel."""
        return f"llm_proxy-{self.version}.tar.gz", f"llm_proxy-{self.version}-py3-none-any.whl"

    def tarball(self, system: str, machine: str) -> str:
        return f"{self.name}-{system}-{machine}.tar.gz"

    @property
    def environ(self) -> dict[str, str]:
        """For every tool that is run: nothing may depend on the time, the locale or the order of a hash."""
        return os.environ | {
            "SOURCE_DATE_EPOCH": str(self.epoch),
            "PYTHONHASHSEED": "0",
            "LC_ALL": "C.UTF-8",
            "TZ": "UTC",
        }


def read(root: Path, *, base: str, draft: bool, environ: Mapping[str, str]) -> Facts:
    """Raises NotReleasable, unless it is only a draft: then what is missing is filled in or left out."""
    version = version_of(root)
    wanting = list(_wanting(root, version, base))
    if wanting and not draft:
        raise NotReleasable(f"version {version} is not ready: {'; '.join(wanting)} (--draft builds it all the same)")
    changes = section(changelog(root), version) or f"## [{version}] - Unreleased\n"
    return Facts(root, version, _epoch(root, environ), base.rstrip("/"), draft, changes)


def this_platform() -> tuple[str, str]:
    """(OS, ARCH) as names of tarballs have them. Raises NotReleasable for a machine that has none."""
    try:
        return _SYSTEMS[platform.system()], _MACHINES[platform.machine().lower()]
    except KeyError as exc:
        raise NotReleasable(f"there are no releases for {platform.system()} on {platform.machine()}") from exc


def version_of(root: Path) -> str:
    """From `llm_proxy/__init__.py`, where alone it is written. Raises NotReleasable."""
    found = re.search(r'(?m)^__version__ = "([0-9][0-9A-Za-z.+]*)"$', (root / "llm_proxy/__init__.py").read_text())
    if found is None:
        raise NotReleasable("llm_proxy/__init__.py names no version")
    return found[1]


def section(changelog: str, version: str) -> str:
    """The version's section, heading included, as Keep a Changelog has it. Empty where there is none."""
    found = re.search(rf"(?m)^## \[{re.escape(version)}\] - .*\n(?:(?!## |\[[^]]+\]: ).*\n)*", changelog + "\n")
    return found[0].rstrip() + "\n" if found else ""


def changelog(root: Path) -> str:
    return (root / "CHANGELOG.md").read_text() if (root / "CHANGELOG.md").exists() else ""


def _wanting(root: Path, version: str, base: str) -> list[str]:
    status, changes = _git(root, "status", "--porcelain"), section(changelog(root), version)
    return [
        text
        for text, holds in (
            ("it is no git checkout", status is None),
            ("the checkout has changes that are not committed", bool(status)),
            (f"CHANGELOG.md has no section '## [{version}] - YYYY-MM-DD'", not _DATED.match(changes)),
            ("--base does not say where releases lie", not base),
        )
        if holds
    ]


def _epoch(root: Path, environ: Mapping[str, str]) -> int:
    """The date that the caller, or the last commit, gives."""
    said = environ.get("SOURCE_DATE_EPOCH") or _git(root, "log", "-1", "--format=%ct") or str(_DRAFTED)
    if not said.isdecimal():
        raise NotReleasable(f"SOURCE_DATE_EPOCH must be seconds since 1970, got {said!r}")
    return int(said)


def _git(root: Path, *arguments: str) -> str | None:
    """What git says of this very folder; None where that is no checkout."""
    try:
        done = subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, timeout=60)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 and (root / ".git").exists() else None
