"""Parsers and help, made of `grammar`: how each command is read, and what `--help` says of it.

One dash does for two, as users of the reference programs type. Wrong usage is one line, with what comes nearest. Leaves
out what goes with what: the commands know.
"""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from llm_proxy import __version__
from llm_proxy.cli import grammar
from llm_proxy.cli.grammar import Command, Option
from llm_proxy.errors import UsageError

_WIDTH = 80
_PAGE_INDENT = 24  # where the page says what a command does
_INDENT = 26  # and at most, where a command's help says what an option does


class Parser(argparse.ArgumentParser):
    """Of some options. Wrong usage is a `UsageError` of one line."""

    def __init__(self, word: str, options: Iterable[Option]) -> None:
        super().__init__(prog=word, add_help=False, allow_abbrev=False)
        self.known = [name for option in options for name in option.names]
        for option in options:
            self.add_argument(*option.names, **_as_argparse(option))

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}{': ' if self.prog else ''}{message}; {self.hint()}")

    def hint(self) -> str:
        return f"llm-proxy {f'{self.prog} ' if self.prog else ''}--help shows what there is"

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Raises UsageError."""
        given, left = self.parse_known_args(_two_dashes(arguments))
        if left:
            raise UsageError(self._unknown(left[0]))
        return given

    def _unknown(self, word: str) -> str:
        where = f"{self.prog}: " if self.prog else ""
        flag = word.partition("=")[0]
        if flag.startswith("-") and flag != "-":
            return f"{where}there is no option {flag!r}; {nearest(flag, self.known) or self.hint()}"
        if self.prog:
            return f"{where}there is nothing to be done with {word!r}; {self.hint()}"
        return _no_command(word)


def parse(name: str, arguments: Sequence[str]) -> argparse.Namespace:
    """What was given to the command of this name in the grammar. Exits where help is asked for. Raises UsageError."""
    command = grammar.BY_NAME[name]
    parser = Parser(command.name, command.options)
    parser.add_argument(*grammar.HELP.names, action=_Help)
    parser.known += grammar.HELP.names
    for argument in command.arguments:
        more: dict[str, Any] = {"nargs": argument.times, "default": argument.default} if argument.times else {}
        parser.add_argument(argument.dest or argument.name.lower(), metavar=argument.name, **more)
    return parser.read(arguments)


def has(arguments: Sequence[str], *names: str) -> bool:
    """Whether an option is given, by one of its names, whatever else is."""
    return any(word.partition("=")[0] in names for word in _two_dashes(arguments))


def nearest(word: str, known: Iterable[str]) -> str:
    """The question whether a known word was meant; empty where none is like it."""
    import difflib

    found = difflib.get_close_matches(word, list(known), 1)
    return f"did you mean {found[0]}?" if found else ""


def _no_command(word: str) -> str:
    known = {command.word for command in grammar.COMMANDS if command.name}
    near = nearest(word, [f"--{word}"] if f"--{word}" in known else sorted(known))
    return f"there is no command {word!r}; {near or 'llm-proxy --help shows what there is'}"


class _Help(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        sys.stdout.write(about(parser.prog.split()))
        sys.stdout.flush()
        parser.exit()


def _as_argparse(option: Option) -> dict[str, Any]:
    named = {"dest": option.dest} if option.dest else {}
    if not option.value:
        return {"action": "store_true"} | named
    more: dict[str, Any] = {"choices": option.choices} if option.choices else {}
    if option.number:
        more["type"] = _number
    if option.many:
        more["action"] = "append"
    return {"metavar": option.value, "default": option.default} | more | named


def _number(text: str) -> int:
    return int(text)


_number.__name__ = "number"  # argparse names it so in "invalid number value"


def _two_dashes(arguments: Sequence[str]) -> list[str]:
    """`-help` for `--help`, until `--`; values that are joined to a letter, as in `-p8080` and `-n5`, stay."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return [_doubled(word) for word in arguments[:end]] + list(arguments[end:])


def _doubled(word: str) -> str:
    long = len(word) > 2 and word[0] == "-" and word[1].isalpha() and not word[2:].isdigit()
    return f"-{word}" if long else word


# --- what is said of it


def page() -> str:
    """What `llm-proxy --help` prints."""
    parts = [f"llm-proxy {__version__}: carries LLM API traffic unchanged and keeps a faithful record."]
    parts.append("Usage: llm-proxy [COMMAND] [OPTION...]")
    for group, names in grammar.PAGE.items():
        rows = [_row(_heading(grammar.BY_NAME[name]), grammar.BY_NAME[name].says) for name in names]
        parts.append("\n".join([title(grammar.GROUPS[group]), *rows]))
    parts.append("\n".join([title("Examples"), *(f"  {example}" for example in grammar.EXAMPLES)]))
    parts.append("llm-proxy help COMMAND tells a command's options, llm-proxy help all everything.")
    return "\n\n".join(parts) + "\n"


def about(words: Sequence[str]) -> str:
    """What `llm-proxy help` says: of a command, of "all", of nothing: the page. Raises UsageError."""
    if not words:
        return page()
    word = _two_dashes(words)[0].partition("=")[0]
    commands = grammar.COMMANDS if word == "all" else grammar.forms(word) or grammar.forms(f"--{word}")
    bare = grammar.BY_NAME[""]
    if not commands and any(word.lstrip("-") == name.lstrip("-") for option in bare.options for name in option.names):
        commands = (bare,)
    if not commands:
        raise UsageError(_no_command(word))
    return "\n".join(_told(command) for command in commands)


def usage(command: Command) -> str:
    """`llm-proxy view [OPTION...] [ID]`."""
    flag = " ".join([command.name, *([command.flag.value] if command.flag and command.flag.value else [])])
    placeholders = (grammar.placeholder(argument) for argument in command.arguments)
    options = "[OPTION...]" if command.options else ""
    return " ".join(filter(None, ("llm-proxy", flag, options, *placeholders)))


def options(command: Command) -> tuple[Option, ...]:
    """Its own; before them the flag that it is, if that has several names."""
    flag = command.flag
    return (flag, *command.options) if flag and len(flag.names) > 1 else command.options


def title(text: str) -> str:
    """Bold where a person looks and did not ask for plain text."""
    plain = not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if plain else f"\x1b[1m{text}\x1b[0m"


def sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}{'' if text[-1] in '.?' else '.'}"


def spelled(option: Option) -> str:
    """`-p, --port N`."""
    return ", ".join(option.names) + (f" {option.value}" if option.value else "")


def _told(command: Command) -> str:
    told = [(argument.name, argument.says) for argument in command.arguments]
    told += [(spelled(option), _with_choices(option)) for option in options(command)]
    indent = min(max((len(left) for left, _ in told), default=0) + 4, _INDENT)
    rows = [_row(left, right, indent) for left, right in told]
    said = " ".join(filter(None, (sentence(command.says), command.more)))
    parts = [f"{title('Usage')}  {usage(command)}", textwrap.fill(said, _WIDTH, break_on_hyphens=False)]
    parts += ["\n".join(rows)] if rows else []
    parts += ["\n".join([title("Examples"), *(f"  {line}" for line in command.examples)])] if command.examples else []
    return "\n\n".join(parts) + "\n"


def _with_choices(option: Option) -> str:
    return f"{option.says}: {', '.join(option.choices)}" if option.choices else option.says


def _heading(command: Command) -> str:
    """A command as the page lists it."""
    flag = command.flag.value if command.flag else ""
    words = (command.name or "llm-proxy", flag, *(grammar.placeholder(argument) for argument in command.arguments))
    return " ".join(filter(None, words)).replace(" [-- COMMAND...]", " -- COMMAND")


def _row(left: str, right: str, indent: int = _PAGE_INDENT) -> str:
    """Two columns; what does not fit beside the first stands below it."""
    first, *more = textwrap.wrap(right, _WIDTH - indent, break_on_hyphens=False)
    told = [f"  {left:<{indent - 4}}  {first}"] if len(left) <= indent - 4 else [f"  {left}", " " * indent + first]
    return "\n".join([*told, *(" " * indent + line for line in more)])
