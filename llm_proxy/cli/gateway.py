"""`llm-proxy gateway`, and what looks after its store: check, migrate, rotate-key, import."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict

from llm_proxy import settings
from llm_proxy.cli import commands, show, usage
from llm_proxy.errors import UsageError
from llm_proxy.service import gateway as service


def gateway(arguments: Sequence[str]) -> int:
    """Raises UsageError, ConfigError, CannotListen, ExtraMissing, StoreTrouble."""
    actions = {"check": _check, "migrate": _migrate, "rotate-key": _rotate, "import": _import}
    if not arguments or arguments[0].startswith("-"):
        return _serve(arguments)
    if arguments[0] not in actions:
        near = usage.nearest(arguments[0], actions)
        raise UsageError(f"gateway takes options, or {', '.join(actions)}, got {arguments[0]!r}{near and f'; {near}'}")
    service.needs_its_packages()
    return actions[arguments[0]](arguments[1:])


def _serve(arguments: Sequence[str]) -> int:
    given = usage.parse("gateway", arguments)
    flags = {"port": given.port, "host": given.host, "log_dir": given.log_dir}
    return commands.serve(_loaded(given.config, flags), service=False)


def _loaded(config: str | None, flags: dict[str, object] | None = None) -> settings.Loaded:
    """Flags win over the gateway's own variables, those over everything else."""
    service.needs_its_packages()
    named = {name: value for name, value in (flags or {}).items() if value is not None}
    also = [one for one in service.given(os.environ) if one[0] not in named]
    loaded = settings.load(named, os.environ, config, [*also, ("gateway.enabled", True, "llm-proxy gateway")])
    return service.without_ourselves(loaded)


def _check(arguments: Sequence[str]) -> int:
    from llm_proxy.service import gateway_care

    given = usage.parse("gateway check", arguments)
    findings = gateway_care.check(_loaded(given.config).settings, os.environ)
    if given.json:
        show.print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            print(f"{'ok   ' if finding.ok else 'WRONG'}  {show.line(finding.what, 300)}")
            if finding.remedy and not finding.ok:
                print(f"       {show.line(finding.remedy, 300)}")
    return 0 if all(finding.ok for finding in findings) else 1


def _migrate(arguments: Sequence[str]) -> int:
    from llm_proxy.service import gateway_care

    given = usage.parse("gateway migrate", arguments)
    done = gateway_care.migrate(_loaded(given.config).settings)
    print("\n".join(done) or "the store is of this version already")
    return 0


def _rotate(arguments: Sequence[str]) -> int:
    from llm_proxy.service import gateway_care

    given = usage.parse("gateway rotate-key", arguments)
    done = gateway_care.rotate(_loaded(given.config).settings, os.environ)
    if given.json:
        show.print_json(asdict(done))
    else:
        print(f"provider keys encrypted with the new key: {done.rewritten} now, {done.current} before")
    return 0


def _import(arguments: Sequence[str]) -> int:
    from llm_proxy.service import gateway_care

    given = usage.parse("gateway import", arguments)
    loaded = _loaded(given.config)
    if not given.url.startswith(("postgresql://", "postgres://")):
        raise UsageError("gateway import takes the URL of TokenTracer's database, postgresql://...")
    done = gateway_care.take_over(
        given.url,
        loaded.settings,
        os.environ,
        encryption_key=_secret("--encryption-key", given.encryption_key),
        jwt_secret=_secret("--jwt-secret", given.jwt_secret),
        dry_run=given.dry_run,
    )
    if given.json:
        show.print_json({"dry_run": given.dry_run, **asdict(done)})
        return 0
    for line in done.lines():
        print(show.line(line, 300))
    if given.dry_run:
        print("nothing was changed: --dry-run", file=sys.stderr)
    return 0


def _secret(option: str, file: str | None) -> str:
    """What a file holds, without the line's end: on a command line it would be for everybody to read."""
    if file is None:
        return ""
    try:
        with open(os.path.expanduser(file), encoding="utf-8") as opened:  # noqa: PTH111, PTH123
            return opened.read(4096).strip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{option} {file}: {getattr(error, 'strerror', None) or 'not text'}") from None
