"""Archives and sums that depend on their contents alone: sorted, root's, of one date."""

from __future__ import annotations

import gzip
import hashlib
import tarfile
from pathlib import Path


def pack(folder: Path, archive: Path, epoch: int) -> None:
    """The folder, under its own name, as .tar.gz."""
    with (
        archive.open("wb") as file,
        gzip.GzipFile("", "wb", 6, file, mtime=epoch) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in (folder, *sorted(folder.rglob("*"))):
            entry = tar.gettarinfo(path, str(path.relative_to(folder.parent)))
            if entry.islnk():  # two names of one file: whichever comes first must not decide
                entry.type, entry.linkname, entry.size = tarfile.REGTYPE, "", path.stat().st_size
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            entry.mtime = epoch
            entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
            if entry.isreg():
                with path.open("rb") as content:
                    tar.addfile(entry, content)
            else:
                tar.addfile(entry)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sums(paths: list[Path]) -> str:
    """As sha256sum writes them, sorted by name."""
    return "".join(f"{sha256(path)}  {path.name}\n" for path in sorted(paths, key=lambda path: path.name))
