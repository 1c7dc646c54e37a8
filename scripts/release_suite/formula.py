"""The Homebrew formula, from homebrew/llm-proxy.rb.in. Where no tarball is, a draft has placeholders."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from release_suite.facts import PLATFORMS, Facts

TEMPLATE = "homebrew/llm-proxy.rb.in"
NOWHERE = "https://example.invalid/llm-proxy/releases"
NO_SUM = "0" * 64


def text(facts: Facts, sums: Mapping[str, str]) -> str:
    """`sums`: SHA-256 by file name."""
    base = facts.base or NOWHERE
    words = {"VERSION": facts.version, "BASE": base, "HOMEPAGE": base.removesuffix("/releases")}
    for system, machine in PLATFORMS:
        name = facts.tarball(system, machine)
        words[f"SHA256_{system}_{machine}".upper()] = sums.get(name, NO_SUM)
    template = (facts.root / TEMPLATE).read_text()
    return re.sub("@([A-Z0-9_]+)@", lambda found: words.get(found[1], found[0]), template)


def committed(facts: Facts) -> tuple[Path, str]:
    """The formula in the checkout, and what it must be: that of a draft without tarballs."""
    return facts.root / TEMPLATE.removesuffix(".in"), text(facts, {})
