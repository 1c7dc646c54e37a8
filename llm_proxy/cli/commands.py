"""One function per command: reads settings, calls `service`, prints. Errors become one line and an exit status."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from llm_proxy import __version__
from llm_proxy.errors import AlreadyRunning, ConfigError, CrashLoop, LlmProxyError, SetupFailed, UsageError

if TYPE_CHECKING:
    from llm_proxy.cli.options import Options
    from llm_proxy.service.steps import Steps
    from llm_proxy.settings import Loaded

EX_CONFIG = 78  # sysexits.h

_LABELS = ("io.github.llm-proxy", "homebrew.mxcl.llm-proxy")  # launchd's names for us

_STATUS: dict[type[LlmProxyError], int] = {UsageError: 2, ConfigError: EX_CONFIG}


def main(arguments: Sequence[str]) -> None:
    """Run the command and exit with its status."""
    try:
        word = WORDS.get(arguments[0]) if arguments else None
        if word and arguments[1:2] in (["--help"], ["-h"]):
            status = _about(arguments[:1])
        else:
            status = word(arguments[1:]) if word else _flagged(arguments)
        sys.stdout.flush()
    except LlmProxyError as exc:
        print(f"llm-proxy: {exc}", file=sys.stderr)
        status = _STATUS.get(type(exc), 1)
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    except BrokenPipeError:  # the reader of our output has seen enough
        status = _without_output(0)
    except OSError as exc:
        if exc.filename is not None:
            raise
        print(f"llm-proxy: the answer cannot be written: {exc.strerror}", file=sys.stderr)
        status = _without_output(1)
    sys.exit(status)


def _without_output(status: int) -> int:
    """Or the interpreter's last flush would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return status


def _flagged(arguments: Sequence[str]) -> int:
    from llm_proxy.cli import grammar, usage
    from llm_proxy.cli.options import parse

    if len(arguments) > 1 and usage.has(arguments, *grammar.HELP.names):
        return _about(arguments[1:2] if usage.has(arguments[:1], *grammar.HELP.names) else arguments[:1])
    options = parse(arguments)
    return COMMANDS[options.command](options)


def _run(arguments: Sequence[str]) -> int:
    """Become the command that follows; as shells do, 127 where there is none and 126 where it cannot be run."""
    command = list(arguments[1:] if arguments[:1] == ["--"] else arguments)
    if not command or (command == list(arguments) and command[0].startswith("-")):
        raise UsageError("run takes a command: llm-proxy run -- COMMAND [ARGUMENT...]")
    from llm_proxy.service import environment

    error = environment.run(command)
    print(f"llm-proxy: {command[0]}: {error.strerror}", file=sys.stderr)
    return 127 if isinstance(error, FileNotFoundError) else 126


def _serve(options: Options) -> int:
    if "passthrough" in options.switches:
        return _passthrough()
    try:
        loaded = _loaded(options)
    except ConfigError as exc:
        return _without_configuration(options, exc)
    if loaded.settings.target_url and options.command == "serve":
        from llm_proxy.service import doors

        loaded = doors.through(loaded, doors.TARGET)
    elif options.for_target:
        raise UsageError(f"{options.for_target} goes with --target-url, which says where calls are to go")
    return serve(loaded, service=options.command == "service")


def _loaded(options: Options) -> Loaded:
    """The settings; `--config` may be a file of proxy-llm's. Raises ConfigError."""
    from llm_proxy import settings

    if options.config is None:
        return settings.load(options.flags, os.environ, None)
    from llm_proxy.service import proxy_llm

    loaded, warnings = proxy_llm.load(options.flags, os.environ, options.config)
    for warning in warnings:
        print(f"llm-proxy: {warning}", file=sys.stderr, flush=True)
    return loaded


def serve(loaded: Loaded, *, service: bool) -> int:
    """Carry until told to stop; comes back only where nothing was begun."""
    _forget_the_command_line()
    from llm_proxy.service import daemon

    try:
        status = daemon.run(loaded, service=service)
    except AlreadyRunning as exc:
        print(f"llm-proxy: {exc}")
        return 0
    except CrashLoop as exc:
        from llm_proxy.service import passthrough

        print(f"llm-proxy: {exc}; safe mode", file=sys.stderr, flush=True)
        passthrough.enter()
    # A thread that hangs in the system's resolver would hold up the interpreter's own way out. All is on disk.
    os._exit(status)


def _passthrough() -> int:
    _forget_the_command_line()
    from llm_proxy.service import passthrough

    try:
        os._exit(passthrough.run())
    except AlreadyRunning as exc:
        print(f"llm-proxy: {exc}")
        return 0


def _without_configuration(options: Options, error: ConfigError) -> int:
    """systemd takes our exit status for what it is, and starts safe mode. launchd would try again for ever."""
    if options.command != "service" or not os.environ.get("XPC_SERVICE_NAME", "").startswith(_LABELS):
        raise error
    from llm_proxy.service import passthrough

    print(f"llm-proxy: {error}; safe mode", file=sys.stderr, flush=True)
    passthrough.enter()


def _setup(options: Options) -> int:
    from llm_proxy.service import setup

    switches = options.switches
    wishes = setup.Wishes(shell="no_shell" not in switches, socket_activation="socket_activation" in switches)
    return _report(options, lambda steps: setup.run(steps, wishes, os.environ))


def _uninstall(options: Options) -> int:
    from llm_proxy.service import uninstall

    return _report(options, lambda steps: uninstall.run(steps, os.environ, purge="purge" in options.switches))


def _setup_shell(options: Options) -> int:
    from llm_proxy.service import setup, shells

    def work(steps: Steps) -> int:
        if refusal := setup.why_not(os.environ):
            raise SetupFailed(refusal)
        return 0 if shells.setup(steps, os.environ) else setup.SHELL_NOT_EDITED

    return _report(options, work)


def _unsetup_shell(options: Options) -> int:
    from llm_proxy.service import setup, shells

    return _report(options, lambda steps: 0 if shells.unsetup(steps, os.environ) else setup.SHELL_NOT_EDITED)


def _report(options: Options, work: Callable[[Steps], int]) -> int:
    """Each step as it is done; as JSON, all of them at the end."""
    import json

    from llm_proxy.service.steps import Step, Steps

    marks = {"done": "ok", "unchanged": "--", "would": "..", "warning": "!!", "failed": "XX"}

    def tell(step: Step) -> None:
        if not options.json:
            print(f"{marks[step.outcome]}  {step.text}", flush=True)

    steps = Steps(tell, dry_run="dry_run" in options.switches)
    status = work(steps)
    if options.json:
        shown = [{"name": step.name, "outcome": step.outcome, "text": step.text} for step in steps.all]
        print(json.dumps({"exit": status, "steps": shown}, indent=2))
    return status


def _announce_socket(options: Options) -> int:
    from llm_proxy import paths
    from llm_proxy.service import activation

    if options.announced:
        activation.announce(options.announced, paths.state_folder())
    else:
        activation.withdraw(paths.state_folder())
    return 0


def _explore(options: Options) -> int:
    from llm_proxy.service import explore

    return explore.run(_loaded(options), port=options.explore_port, print_only=False)


def _status(options: Options) -> int:
    from llm_proxy.service import status

    found = status.look(_loaded(options).settings, dict(os.environ))
    print(status.as_json(found) if options.json else status.as_text(found))
    return 0 if found.running else 1


def _version(options: Options) -> int:
    print(f"llm-proxy {__version__}")
    return 0


def _help(options: Options) -> int:
    return _about(())


def _help_word(arguments: Sequence[str]) -> int:
    from llm_proxy.cli import usage

    return _about(usage.parse("help", arguments).words)


def _about(words: Sequence[str]) -> int:
    from llm_proxy.cli import usage

    print(usage.about(words), end="")
    return 0


def _forget_the_command_line() -> None:
    """A daemon lives for months: what only served to read its arguments need not stay in memory."""
    ours = (f"llm_proxy.cli.{name}" for name in ("options", "usage", "grammar"))
    for name in ("argparse", "gettext", "textwrap", "tomllib", "tomllib._parser", "tomllib._re", *ours):
        sys.modules.pop(name, None)


COMMANDS: dict[str, Callable[[Options], int]] = {
    "help": _help,
    "version": _version,
    "status": _status,
    "setup": _setup,
    "uninstall": _uninstall,
    "setup_shell": _setup_shell,
    "unsetup_shell": _unsetup_shell,
    "announce_socket": _announce_socket,
    "explore": _explore,
    "serve": _serve,
    "service": _serve,
}


def _word(module: str, name: str = "") -> Callable[[Sequence[str]], int]:
    """The command `name` of a module of this package, imported when it is called."""

    def call(arguments: Sequence[str]) -> int:
        from importlib import import_module

        return int(getattr(import_module(f"llm_proxy.cli.{module}"), name or module)(arguments))

    return call


# Commands that are a word, and read what follows it themselves.
WORDS: dict[str, Callable[[Sequence[str]], int]] = {
    "attach": _word("attach"),
    "compare": _word("compare"),
    "completions": _word("completions"),
    "detach": _word("attach", "detach"),
    "doctor": _word("doctor"),
    "explore": _word("explore"),
    "export": _word("export"),
    "gateway": _word("gateway"),
    "help": _help_word,
    "import": _word("import_"),
    "loki": _word("loki"),
    "prices": _word("prices"),
    "reindex": _word("reindex"),
    "reprice": _word("prices", "reprice"),
    "retention": _word("reindex", "retention"),
    "run": _run,
    "scan": _word("scan"),
    "search": _word("search"),
    "sessions": _word("sessions"),
    "start": _word("start"),
    "stats": _word("stats"),
    "tail": _word("tail"),
    "upgrade": _word("upgrade"),
    "view": _word("view"),
}
