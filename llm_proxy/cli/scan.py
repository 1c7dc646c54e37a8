"""`llm-proxy scan [PATH]`: secrets in logs that were written earlier: where, and what to do; never what they are."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from llm_proxy import settings
from llm_proxy.cli import show, usage
from llm_proxy.errors import UsageError
from llm_proxy.service import scan as service

_COLUMNS = (
    show.Column("FILE"),
    show.Column("LINE", right=True),
    show.Column("KIND"),
    show.Column("TIMES", right=True, spare=1),
    show.Column("FINGERPRINT", spare=2),
)
_NAMED = 20  # files in the advice


def scan(arguments: Sequence[str]) -> int:
    """0: nothing found, 1: something, or a file could not be read. Raises UsageError, ConfigError, StateUnusable."""
    given = usage.parse("scan", arguments)
    flags = {"log_dir": given.log_dir} if given.log_dir else {}
    configured = settings.load(flags, os.environ, given.config).settings
    path = Path(given.path or configured.log_dir).absolute()
    if given.path and not path.exists():
        raise UsageError(f"scan takes a log file or a folder of them, and there is no {given.path!r}")
    files: dict[str, str] = {}
    found = list(service.scan(path, configured.patterns, files.__setitem__))
    unread = {file: trouble for file, trouble in files.items() if trouble}
    if given.json:
        secrets = [one._asdict() for one in found]
        show.print_json({"path": str(path), "files": len(files), "found": secrets, "unreadable": unread})
        return 1 if found or unread else 0
    if found:
        show.table(_COLUMNS, ((one.file, str(one.line), one.kind, str(one.times), one.fingerprint) for one in found))
    for file, trouble in unread.items():
        print(show.line(f"not read to its end: {file}: {trouble}"))
    _advise(found, len(files))
    return 1 if found or unread else 0


def _advise(found: Sequence[service.Found], looked_at: int) -> None:
    if not found:
        print(f"no secrets in {looked_at} files")
        return
    different = len({(one.kind, one.fingerprint) for one in found})
    files = list(dict.fromkeys(one.file for one in found))
    print(f"\n{different} different secrets in {len(files)} of {looked_at} files")
    print("Whoever could read these files may have them: revoke each where it was issued. Then delete")
    for file in files[:_NAMED]:
        print(show.line(f"  rm -- {shlex.quote(file)}"))
    if len(files) > _NAMED:
        print(f"  and {len(files) - _NAMED} more; --json lists them all")
    print("and, because the index holds copies:\n  llm-proxy reindex")
