"""How this very program was installed, and the commands that upgrade and remove it.

Told by where the interpreter's prefix lies and what each installer leaves there; nothing is run and nothing is asked.
Leaves out other installations on the machine (`doctor` looks for those) and doing any of it.
"""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

DEB_PREFIX = Path("/usr/lib/llm-proxy")  # what packaging/deb/build fills
DEB_PROGRAM = "/usr/bin/llm-proxy"
DEB_REMOVE = "sudo apt remove llm-proxy"


@dataclass(frozen=True, slots=True)
class Origin:
    """`kind`: "script" (scripts/install.sh), "deb", "homebrew", "uv", "pipx", "checkout" (an editable one) or "pip".

    `place` is the folder of the environment, for a checkout that of the sources. `upgrade` and `remove` are lines for a
    shell; capitals in them stand for what the user has to fill in.
    """

    kind: str
    place: Path
    upgrade: str
    remove: str


def origin() -> Origin:
    """Of the running program. Never fails: what cannot be told is "pip"."""
    prefix = Path(sys.prefix).resolve()
    if prefix == DEB_PREFIX:
        return Origin("deb", prefix, "sudo apt install ./llm-proxy_VERSION_ARCH.deb", DEB_REMOVE)
    if _is_version(prefix):
        return Origin("script", prefix, "llm-proxy upgrade", "llm-proxy --uninstall")
    if ("Cellar", "llm-proxy") in zip(prefix.parts, prefix.parts[1:], strict=False):
        return Origin("homebrew", prefix, "brew upgrade llm-proxy", "brew uninstall llm-proxy")
    if (prefix / "uv-receipt.toml").exists():
        return Origin("uv", prefix, "uv tool upgrade llm-proxy", "uv tool uninstall llm-proxy")
    if (prefix / "pipx_metadata.json").exists():
        return Origin("pipx", prefix, "pipx upgrade llm-proxy", "pipx uninstall llm-proxy")
    python = shlex.quote(sys.executable)
    if sources := _editable():
        pull = f"git -C {shlex.quote(str(sources))} pull"
        return Origin("checkout", sources, pull, f"{python} -m pip uninstall llm-proxy")
    pip = f"{python} -m pip"
    return Origin("pip", prefix, f"{pip} install --upgrade llm-proxy", f"{pip} uninstall llm-proxy")


def _is_version(prefix: Path) -> bool:
    """Whether it is one of the installer's versions, wherever the user's data lies."""
    return prefix.parent.name == "versions" and prefix.parent.parent.name == "llm-proxy"


def _editable() -> Path | None:
    """Where the sources of an editable installation lie (PEP 610)."""
    from importlib import metadata  # 25 ms, which not every start has to pay

    try:
        facts = json.loads(metadata.distribution("llm-proxy").read_text("direct_url.json") or "{}")
        if facts["dir_info"]["editable"] is True:
            return Path(unquote(urlsplit(facts["url"]).path))
    except (metadata.PackageNotFoundError, OSError, ValueError, KeyError, TypeError):
        pass
    return None
