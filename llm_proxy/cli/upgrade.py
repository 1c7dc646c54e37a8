"""`llm-proxy upgrade [--version V] [--check] [--rollback] [--dry-run]`: parses, calls, prints.

Exit status: 0 done, or nothing to do; 100 with `--check` where there is a newer release; else as scripts/install.sh.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from llm_proxy import __version__
from llm_proxy.cli import usage
from llm_proxy.errors import UsageError

NEWER = 100  # as `dnf check-update` has it


def upgrade(arguments: Sequence[str]) -> int:
    """Comes back only where nothing was begun. Raises UsageError, CannotUpgrade."""
    given = usage.parse("upgrade", arguments)
    if sum(map(bool, (given.version, given.check, given.rollback))) > 1:
        raise UsageError("upgrade: --version, --check and --rollback exclude each other")
    if given.check and given.dry_run:
        raise UsageError("upgrade: --check changes nothing, so --dry-run does not go with it")
    version = (given.version or "").removeprefix("v")
    if version and not re.fullmatch(r"[0-9][0-9A-Za-z.+]*", version):
        raise UsageError(f"upgrade: --version must be a release's, such as 1.2.3, got {given.version!r}")
    from llm_proxy.service import upgrade as service

    if given.rollback:
        service.roll_back(os.environ, dry_run=given.dry_run)
    here = service.installed(os.environ)
    release = service.find(here.base, version)
    if version or (not given.check and service.is_newer(release.version)):
        service.hand_over(here, release, os.environ, dry_run=given.dry_run)
    if service.is_newer(release.version):
        print(f"llm-proxy {release.version} is there, newer than this one ({__version__}); llm-proxy upgrade takes it")
        return NEWER
    if service.is_newer(__version__, release.version):
        print(f"The newest release is {release.version}, older than this one ({__version__}); --version takes any.")
    else:
        print(f"llm-proxy {__version__} is the newest release; --version {__version__} would install it anew.")
    return 0
