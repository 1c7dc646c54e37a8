"""What a tool call is to a reader: its arguments, as a diff where it changes a file, and what its result says. Pure."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llm_proxy.dialects.reading import mapping, read_value, sequence, text

LONGEST_DIFF = 600  # lines on a side that are compared; more are shown as taken away and added
_LONGEST = 400_000  # characters of arguments that are looked into


@dataclass(frozen=True, slots=True)
class DiffLine:
    """`sign`: + added, - taken away, @ where it is, " " between."""

    sign: str
    text: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """A tool's arguments as they are shown: as a change to a file, as one text in `language`, or as JSON."""

    text: str
    language: str = "json"
    path: str = ""
    diff: tuple[DiffLine, ...] = ()

    @property
    def added(self) -> int:
        return sum(line.sign == "+" for line in self.diff)

    @property
    def removed(self) -> int:
        return sum(line.sign == "-" for line in self.diff)


def arguments(given: str) -> Arguments:
    """`given` as the call's part has it: JSON, or whatever a custom tool takes."""
    if len(given) > _LONGEST:
        return Arguments(given, "")
    if given.lstrip().startswith("*** Begin Patch"):
        return Arguments(given, "", _patched(given), tuple(_patch(given)))
    fields = mapping(read_value(given))
    path = next((text(fields.get(name)) for name in ("file_path", "path", "filename") if fields.get(name)), "")
    changes = list(_changes(fields))
    if changes:
        return Arguments(pretty(given), "json", path, tuple(line for change in changes for line in _diff(*change)))
    patch = next((text(one) for one in fields.values() if text(one).lstrip().startswith("*** Begin Patch")), "")
    if patch:
        return Arguments(pretty(given), "json", _patched(patch), tuple(_patch(patch)))
    if set(fields) in ({"command"}, {"command", "description"}) and text(fields.get("command")):
        return Arguments(text(fields["command"]), "bash")
    if list(fields) == ["code"] and text(fields["code"]):
        return Arguments(text(fields["code"]), "python")
    return Arguments(pretty(given) if fields else given, "json" if fields else "", path)


def _changes(fields: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(old, new) of each change that the arguments ask for, whatever the editor's names for them."""
    for old, new in (("old_string", "new_string"), ("old_str", "new_str"), ("oldText", "newText")):
        if old in fields and new in fields:
            yield text(fields[old]), text(fields[new])
            return
    edits = [mapping(one) for one in sequence(fields.get("edits"))]
    if edits and all("new_string" in one for one in edits):
        for one in edits:
            yield text(one.get("old_string")), text(one["new_string"])
        return
    content = text(fields.get("content")) or text(fields.get("file_text"))
    if content and (fields.get("file_path") or fields.get("path")):
        yield "", content


def _diff(old: str, new: str) -> Iterator[DiffLine]:
    before, after = old.splitlines(), new.splitlines()
    if max(len(before), len(after)) > LONGEST_DIFF or not before or not after:
        yield from (DiffLine("-", line) for line in before)
        yield from (DiffLine("+", line) for line in after)
        return
    for line in list(difflib.unified_diff(before, after, n=3, lineterm=""))[2:]:
        yield DiffLine("@", "") if line.startswith("@@") else DiffLine(line[0], line[1:])


def _patch(patch: str) -> Iterator[DiffLine]:
    for line in patch.splitlines():
        if line.startswith(("+", "-", " ")):
            yield DiffLine(line[0], line[1:])
        elif line.startswith(("***", "@@")) and not line.startswith(("*** Begin", "*** End")):
            yield DiffLine("@", line.removeprefix("*** ").removeprefix("@@").strip())


def _patched(patch: str) -> str:
    return ", ".join(re.findall(r"^\*\*\* (?:Add|Update|Delete) File: (.+)$", patch, re.MULTILINE)[:3])


_EXIT = re.compile(r"\bexit(?:ed with)? (?:code|status)[: ]+(\d{1,3})\b", re.IGNORECASE)


def exit_word(result: str, *, failed: bool) -> str:
    """What the head of a tool call says of a result that is no good: `exit 1`, `failed`; "" for a good one."""
    found = _EXIT.search(result[:400]) or _EXIT.search(result[-400:])
    if found and found[1] != "0":
        return f"exit {found[1]}"
    return "failed" if failed else ""


def pretty(given: str) -> str:
    """JSON as people read it; what is none as it is."""
    try:
        return json.dumps(json.loads(given), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return given
