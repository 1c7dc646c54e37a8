"""`llm-proxy attach [NAME…]` and `llm-proxy detach NAME…|--all`: parses, calls, prints.

Exit status: 0 done, 1 something could not be done, 2 wrong usage.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from llm_proxy import paths
from llm_proxy.cli import usage
from llm_proxy.errors import CannotAttach, UsageError

if TYPE_CHECKING:
    from llm_proxy.service.attach import Report, Standing

_VERBS = {
    (False, "created"): "created",
    (False, "changed"): "changed",
    (False, "removed"): "removed",
    (True, "created"): "would create",
    (True, "changed"): "would change",
    (True, "removed"): "would remove",
}


def attach(arguments: Sequence[str]) -> int:
    """Attach the named clients, or list all. Raises UsageError, StateUnusable."""
    given = usage.parse("attach", arguments)
    from llm_proxy.service import attach as service
    from llm_proxy.service import clients

    folder = paths.state_folder()
    names = list(dict.fromkeys(clients.client_called(name).name for name in given.names))
    if given.login and names != ["codex"]:
        raise UsageError("--login goes with attach codex")
    if not names:
        _print_standings(service.standings(folder), as_json=given.json)
        return 0
    wish = clients.Wish(_port(folder), os.environ, given.login)
    reports = []
    for name in names:
        try:
            reports.append(service.attach(folder, name, wish, dry=given.dry_run))
        except CannotAttach as exc:
            reports.append(service.Report(name, "failed", error=str(exc)))
    return _print_reports(reports, dry=given.dry_run, as_json=given.json)


def detach(arguments: Sequence[str]) -> int:
    """Detach the named clients, or all. Raises UsageError, StateUnusable."""
    given = usage.parse("detach", arguments)
    if given.all == bool(given.names):
        raise UsageError("detach takes the names of clients, or --all")
    from llm_proxy.service import attach as service

    names = None if given.all else given.names
    reports = service.detach(paths.state_folder(), names, dry=given.dry_run)
    return _print_reports(reports, dry=given.dry_run, as_json=given.json)


def _port(folder: str) -> int:
    """The running daemon's. Without one a client would be pointed at nothing."""
    from llm_proxy.service import state

    run = state.read_run(folder)
    if run is None or not state.alive(run):
        raise CannotAttach("no daemon runs, and a client attached now would find nobody; llm-proxy --setup starts it")
    return run.port


def _print_reports(reports: Sequence[Report], *, dry: bool, as_json: bool) -> int:
    status = 1 if any(report.state == "failed" for report in reports) else 0
    if as_json:
        _print_json({"dry_run": dry, "clients": [asdict(report) for report in reports]})
        return status
    for report in reports:
        if report.error:
            print(f"llm-proxy: {report.client}: {report.error}", file=sys.stderr)
            continue
        verb = "would be " if dry else ""
        at = f" to http://127.0.0.1:{report.port}" if report.port else ""
        print(f"{report.client}: {verb}{report.state}{at}")
        for file in report.files:
            if file.done != "unchanged":
                print(f"  {_VERBS[dry, file.done]} {file.path}: {', '.join(file.keys)}")
        if report.note:
            print(f"  note: {report.note}")
    if not reports:
        print("no client is attached")
    return status


def _print_standings(standings: Sequence[Standing], *, as_json: bool) -> None:
    if as_json:
        _print_json({"clients": [asdict(standing) for standing in standings]})
        return
    says = {
        "detached": "not attached",
        "attached": "attached to port {}",
        "changed": "attached to port {}, but its file was changed since and leads elsewhere",
        "unfinished": "attaching was cut short: attach it again, or detach it",
    }
    for standing in standings:
        where = f"  ({', '.join(standing.files)})" if standing.files else ""
        print(f"{standing.client:<10}{says[standing.state].format(standing.port)}{where}")


def _print_json(facts: object) -> None:
    import json

    print(json.dumps(facts, indent=2))
