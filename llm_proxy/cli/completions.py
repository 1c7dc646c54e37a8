"""`llm-proxy completions bash|zsh|fish`: what a shell needs to complete our command line, made of `grammar`.

The first word decides what may follow it. Nothing is asked of the record or the daemon: a Tab must not wait. The files
in packaging/completions are these, by scripts/completions. Leaves out where a shell looks for them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from llm_proxy.cli import grammar, usage
from llm_proxy.cli.grammar import Argument, Command, Option
from llm_proxy.errors import UsageError

_MADE = "Completions of llm-proxy for {}; `llm-proxy completions {}` prints them, scripts/completions makes this file."


def completions(arguments: Sequence[str]) -> int:
    """Raises UsageError."""
    shell = usage.parse("completions", arguments).shell
    if shell not in SHELLS:
        raise UsageError(f"completions are made for {', '.join(SHELLS)}, got {shell!r}")
    sys.stdout.write(script(shell))
    return 0


def script(shell: str) -> str:
    """For "bash", "zsh" or "fish"."""
    return "\n".join(SHELLS[shell]()) + "\n"


class _Head(NamedTuple):
    """What may come first, as it may be spelled, and what may follow it: all forms of a command together."""

    names: tuple[str, ...]
    says: str
    words: tuple[str, ...]  # that must follow, as `show` does `prices`
    options: tuple[Option, ...]
    arguments: tuple[Argument, ...]
    flag: bool


def _heads() -> list[_Head]:
    """The last is what a bare `llm-proxy` takes; its names are its options'."""
    words = dict.fromkeys(command.word for command in grammar.COMMANDS if command.name)
    found = [_head(grammar.forms(word)) for word in words]
    bare = grammar.BY_NAME[""].options
    return [*found, _Head(tuple(name for option in bare for name in option.names), "", (), bare, (), True)]


def _head(forms: Sequence[Command]) -> _Head:
    first = forms[0]
    words = [command.name.partition(" ")[2] for command in forms]
    options = {option.name: option for command in forms for option in command.options}
    return _Head(
        first.flag.names if first.flag else (first.word,),
        first.says,
        tuple(word for word in words if word and not word.startswith("-")),
        tuple({**options, grammar.HELP.name: grammar.HELP}.values()),
        tuple({argument.name: argument for command in forms for argument in command.arguments}.values()),
        first.flag is not None,
    )


def _offered(one: Option | Argument) -> tuple[str, ...]:
    """The words that may stand there."""
    if one.kind == "topic":
        return tuple(grammar.topics())
    return (one.choices or one.hints) if isinstance(one, Option) else one.hints


def _quoted(text: str) -> str:
    """For bash and zsh."""
    return "'" + text.replace("'", "'\\''") + "'"


# --- bash: also 3.2, as on macOS, and with or without the package bash-completion

_BASH_HEAD = """
_llm_proxy_paths() { # -f files, -d folders
    local name found
    if declare -F _filedir >/dev/null; then
        case $1 in -d) _filedir -d ;; *) _filedir ;; esac
        return
    fi
    found=$(compgen "$1" -- "$cur")
    [[ -z $found ]] || while IFS= read -r name; do COMPREPLY+=("$name"); done <<<"$found"
    compopt -o filenames 2>/dev/null
}

_llm_proxy_command() { # the words from $1 on are a command line
    if declare -F _command_offset >/dev/null; then
        _command_offset "$1"
    elif [[ $COMP_CWORD -eq $1 ]]; then
        COMPREPLY=($(compgen -c -- "$cur"))
    else
        _llm_proxy_paths -f
    fi
}

_llm_proxy() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} first=${COMP_WORDS[1]}
    local flags='' words='' paths=''
    COMPREPLY=()
    # --format=csv comes as three words
    if [[ $cur == = ]]; then
        cur=''
    elif [[ $prev == = ]]; then
        prev=${COMP_WORDS[COMP_CWORD - 2]}
    fi
    [[ $COMP_CWORD -gt 1 ]] || first=''
    case $first in"""

_BASH_TAIL = """\
    esac
    [[ $cur != -* ]] || words=$flags
    if [[ -n $words ]]; then COMPREPLY=($(compgen -W "$words" -- "$cur")); fi
    if [[ -n $paths && $cur != -* ]]; then _llm_proxy_paths "$paths"; fi
}

complete -F _llm_proxy llm-proxy"""


def _bash() -> Iterator[str]:
    *heads, bare = _heads()
    yield f"# {_MADE.format('bash', 'bash')}\n# shellcheck shell=bash disable=SC2207" + _BASH_HEAD
    flags = [name for head in (*heads, bare) if head.flag for name in head.names]
    words = [name for head in heads if not head.flag for name in head.names]
    yield f"        '') flags={_quoted(' '.join(flags))} words={_quoted(' '.join(words))} ;;"
    for head in (*heads, bare):
        yield f"        {' | '.join(head.names)})"
        yield from _bash_follows(head)
        yield "            ;;"
    yield _BASH_TAIL


def _bash_follows(head: _Head) -> Iterator[str]:
    if any(argument.kind == "command" for argument in head.arguments):
        yield "            if [[ ${COMP_WORDS[2]} == -- && $COMP_CWORD -gt 2 ]]; then _llm_proxy_command 3; return; fi"
        yield "            if [[ $cur != -* ]]; then _llm_proxy_command 2; return; fi"
        yield f"            flags={_quoted(f'-- {_names(head)}')}"
        return
    if head.words:
        words = _quoted(" ".join(head.words))
        yield f"            if [[ $COMP_CWORD -eq 2 && $cur != -* ]]; then prev='' words={words}; fi"
    yield "            case $prev in"
    if head.words:
        yield "                '') ;;"
    for option in head.options:
        if option.value:
            yield f"                {' | '.join(option.names)}) {_bash_gives(option)} ;;"
    rest = " ".join(filter(None, (_bash_gives(*head.arguments), f"flags={_quoted(_names(head))}")))
    yield f"                *) {rest} ;;\n            esac"


def _names(head: _Head) -> str:
    return " ".join(name for option in head.options for name in option.names)


def _bash_gives(*ones: Option | Argument) -> str:
    offered = " ".join(word for one in ones for word in _offered(one))
    paths = next(
        (f"paths={'-d' if one.kind == 'folder' else '-f'}" for one in ones if one.kind in ("file", "folder")), ""
    )
    return " ".join(filter(None, (f"words={_quoted(offered)}" if offered else "", paths)))


# --- zsh

_ZSH_TAIL = """
if [[ $funcstack[1] == _llm-proxy ]]; then
  _llm-proxy "$@"
else
  compdef _llm-proxy llm-proxy
fi"""


def _zsh() -> Iterator[str]:
    *heads, bare = _heads()
    yield f"#compdef llm-proxy\n# {_MADE.format('zsh', 'zsh')}\n\n_llm-proxy() {{\n  local -a commands flags"
    yield from _zsh_list("commands", ((name, head.says) for head in heads if not head.flag for name in head.names))
    flags = [(name, head.says) for head in heads if head.flag for name in head.names]
    own = [(name, option.says) for option in bare.options for name in option.names]
    yield from _zsh_list("flags", [*flags, *own])
    yield "  if (( CURRENT == 2 )); then\n    if [[ $PREFIX == -* ]]; then _describe -o option flags"
    yield "    else _describe -t commands command commands; fi\n    return\n  fi\n  case ${words[2]%%=*} in"
    for head in (*heads, bare):
        yield f"    {'|'.join(head.names)})"
        yield from (f"      {line}" for line in _zsh_follows(head))
        yield "      ;;"
    yield "  esac\n}" + _ZSH_TAIL


def _zsh_list(name: str, rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    yield f"  {name}=("
    for word, says in rows:
        yield f"    {_quoted(f'{word}:{says}')}"
    yield "  )"


def _zsh_follows(head: _Head) -> Iterator[str]:
    if not head.flag:
        yield "shift words\n      (( CURRENT-- ))"
    if any(argument.kind == "command" for argument in head.arguments):
        yield "if [[ $words[2] == -- ]] && (( CURRENT > 2 )); then shift words; (( CURRENT-- )); fi"
        yield "shift words\n      (( CURRENT-- ))\n      _normal"
        return
    flag = [one.flag for one in grammar.forms(head.names[0]) if one.flag] if head.flag else []
    specs = [_zsh_option(option) for option in (*flag, *head.options)]
    if head.words:
        specs.append(f"1:command:({' '.join(head.words)})")
    specs += [_zsh_argument(argument, later=bool(head.words)) for argument in head.arguments[:1]]
    yield " \\\n        ".join(["_arguments -S", *(_spec(spec) for spec in specs)])


def _spec(spec: tuple[str, str] | str) -> str:
    """Quoted; what stands before the spec is expanded by the shell."""
    return _quoted(spec) if isinstance(spec, str) else spec[0] + _quoted(spec[1])


def _zsh_option(option: Option) -> tuple[str, str] | str:
    says = option.says.replace("[", "\\[").replace("]", "\\]").replace(":", "\\:")
    value = f":{option.value}:{_zsh_gives(option)}" if option.value else ""
    marks = [f"{name}{('=' if name.startswith('--') else '+') if value else ''}" for name in option.names]
    star = "*" if option.many else ""
    if len(marks) == 1:
        return f"{star}{marks[0]}[{says}]{value}"
    before = _quoted("*" if option.many else f"({' '.join(option.names)})")
    return f"{before}{{{','.join(marks)}}}", f"[{says}]{value}"


def _zsh_argument(argument: Argument, *, later: bool) -> str:
    place = "*" if later or argument.times == "*" else "1"
    return f"{place}:{argument.name}:{_zsh_gives(argument)}"


def _zsh_gives(one: Option | Argument) -> str:
    if offered := _offered(one):
        return f"({' '.join(offered)})"
    return {"file": "_files", "folder": "_files -/"}.get(one.kind, " ")


# --- fish

_FISH_HEAD = """
function __llm_proxy_words -a number
    test (count (commandline -opc)) -eq $number
end

function __llm_proxy_after
    set -l words (commandline -opc)
    test (count $words) -gt 1; and contains -- (string replace -r '=.*' '' -- $words[2]) $argv
end

function __llm_proxy_command
    set -l words (commandline -opc)
    set -l skip 2
    test (count $words) -gt 2; and test $words[3] = --; and set skip 3
    __fish_complete_subcommand --fcs-skip=$skip
end

complete -c llm-proxy -f"""


def _fish() -> Iterator[str]:
    *heads, bare = _heads()
    yield f"# {_MADE.format('fish', 'fish')}" + _FISH_HEAD
    for head in heads:
        flag = next((one.flag for one in grammar.forms(head.names[0]) if one.flag), None)
        shown = _fish_option(flag) if flag else f"-a {head.names[0]} -d {_fish_quoted(head.says)}"
        yield f"complete -c llm-proxy -n '__llm_proxy_words 1' {shown}"
    for option in bare.options:
        yield f"complete -c llm-proxy -n '__llm_proxy_words 1' {_fish_option(option)}"
    for head in (*heads, bare):
        yield from _fish_follows(head)


def _fish_follows(head: _Head) -> Iterator[str]:
    after = f"__llm_proxy_after {' '.join(head.names)}"
    if any(argument.kind == "command" for argument in head.arguments):
        yield f"complete -c llm-proxy -n '{after}' -x -a '(__llm_proxy_command)'"
        return
    for option in head.options:
        yield f"complete -c llm-proxy -n '{after}' {_fish_option(option)}"
    if head.words:
        yield f"complete -c llm-proxy -n '{after}; and __llm_proxy_words 2' -a {_fish_quoted(' '.join(head.words))}"
        after += "; and not __llm_proxy_words 2"
    for argument in head.arguments:
        if gives := _fish_gives(argument):
            yield f"complete -c llm-proxy -n '{after}' {gives} -d {_fish_quoted(argument.name)}"


def _fish_option(option: Option) -> str:
    names = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names)
    value = _fish_gives(option) or "-x" if option.value else ""
    return " ".join(filter(None, (names, value, f"-d {_fish_quoted(option.says)}")))


def _fish_gives(one: Option | Argument) -> str:
    needed = "-x " if isinstance(one, Option) else ""
    if offered := _offered(one):
        return f"{needed}-a {_fish_quoted(' '.join(offered))}"
    if one.kind == "folder":
        return f"{needed}-a '(__fish_complete_directories)'"
    return ("-r -F" if needed else "-F") if one.kind == "file" else ""


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SHELLS = {"bash": _bash, "zsh": _zsh, "fish": _fish}
