"""`llm-proxy export --format dataset`: into one file, or into a folder of parts with a card."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import IO

from llm_proxy import settings
from llm_proxy.errors import UsageError
from llm_proxy.formats import dataset, dataset_card, privacy
from llm_proxy.formats.call import Call

_PART = re.compile(r"[a-z][a-z0-9_-]{0,31}", re.ASCII)
_FILTERS = ("from", "to", "provider", "model", "project", "session", "status")
_ALL = "data"  # the only part, where nothing is split

Output = Callable[[str], AbstractContextManager[IO[bytes]]]


def check(given: argparse.Namespace) -> None:
    """Raises UsageError."""
    options = {"--style": given.style, "--split": given.split, "--include-private": given.include_private}
    if given.format != "dataset" and (used := next((name for name, value in options.items() if value), "")):
        raise UsageError(f"{used} goes with --format dataset")
    if shares(given.split) and given.output == "-":
        raise UsageError("--split writes a file for each part: --output must name a folder")


def shares(text: str) -> dict[str, float]:
    """How much goes into each part, by `--split`. Raises UsageError."""
    found: dict[str, float] = {}
    for word in text.split(",") if text else ():
        name, _, number = word.strip().partition("=")
        try:
            share = float(number)
        except ValueError:
            share = 0.0
        if not _PART.fullmatch(name) or name in found or not 0 < share <= 1:
            found = {"": 0.0}
            break
        found[name] = share
    if text and abs(sum(found.values()) - 1) > 1e-6:
        raise UsageError(f"--split must be parts that make 1, such as train=0.9,val=0.1, got {text!r}")
    return found


def write(calls: Iterable[Call], given: argparse.Namespace, output: Output) -> None:
    """Raises UsageError, ConfigError, OSError."""
    style = given.style or "messages"
    own = settings.load({}, os.environ, given.config).settings.patterns
    clean = None if given.include_private else privacy.cleaner(own)
    parts = shares(given.split) or {_ALL: 1.0}
    if not given.split and not _is_folder(given.output):
        with output(given.output) as out:
            dataset.write(calls, {_ALL: out}, style=style, shares=parts, clean=clean)
        return
    folder = _folder(given.output)
    files = {part: f"{part}.jsonl" for part in parts}
    with ExitStack() as opened:
        outs = {part: opened.enter_context(output(str(folder / file))) for part, file in files.items()}
        told = dataset.write(calls, outs, style=style, shares=parts, clean=clean)
        filters = {name: getattr(given, f"{name}_") for name in _FILTERS} | {"errors": "only" if given.errors else ""}
        text = dataset_card.card(told, style, files, filters, private=given.include_private)
        opened.enter_context(output(str(folder / "README.md"))).write(text.encode("utf-8", "replace"))


def _is_folder(path: str) -> bool:
    return path != "-" and (path.endswith("/") or Path(path).is_dir())


def _folder(path: str) -> Path:
    folder = Path(path)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output must be a folder that can be made, got {path!r}: {error.strerror}") from error
    return folder
