"""Turns a view into HTML: one Jinja environment, everything escaped, the same words everywhere.

`static(name)` gives a path with the hash of the files in it, so that a browser may keep it. Leaves out what is shown.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import tzinfo
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import Environment, pass_context
from jinja2.runtime import Context
from markupsafe import Markup

from llm_proxy.explorer import highlight, markdown, tools, words
from llm_proxy.explorer.asking import Asked
from llm_proxy.index import syntax
from llm_proxy.web import templates
from llm_proxy.web.assets import SHARED, Assets

HERE = Path(__file__).parent
STATIC = HERE / "static"
ROOT = "/llm-proxy"
assets = Assets(f"{ROOT}/static", STATIC, SHARED)
static = assets.link


def path(*parts: str) -> str:
    """A path of the explorer, its parts percent-encoded: `path("sessions", id)`."""
    return "/".join((ROOT, *(quote(part, safe="") for part in parts)))


def link(asked: Asked, drop: Iterable[str] = (), **change: object) -> str:
    """This page with some parameters changed; None or "" removes one, a list repeats it, `drop` removes others.

    `from_` stands for `from`, which Python keeps for itself.
    """
    changed = {name.rstrip("_"): value for name, value in change.items()}
    pairs = [(name, value) for name, value in asked.given if name not in changed and name not in drop]
    for name, value in changed.items():
        several = value if isinstance(value, list | tuple) else (value,)
        pairs += [(name, str(one)) for one in several if one is not None and one != ""]
    query = urlencode(pairs)
    return ROOT + quote(asked.path) + (f"?{query}" if query else "")


def at(asked: Asked, path: str, *names: str) -> Asked:
    """What was asked, on another page; of its parameters only these, without any names all but the cursor."""
    given = tuple(pair for pair in asked.given if (pair[0] in names if names else pair[0] != "before"))
    return replace(asked, path=path, given=given)


def with_value(asked: Asked, name: str, value: str, *, on: bool) -> str:
    """This page with one value of a repeatable parameter added or taken away; the cursor goes."""
    kept = [one for key, one in asked.given if key == name and one != value]
    return link(asked, ("before", name), **{name: [*kept, value] if on else kept})


@pass_context
def time_tag(context: Context, ns: int | None, form: str = "clock") -> Markup:
    """`<time>` with the local time as text, UTC in `datetime` and both in `title`. Forms: clock, seconds, full,
    date (the clock of yesterday and today), span (date and clock)."""
    if ns is None:
        return Markup("")
    zone: tzinfo | None = context["asked"].zone
    if form == "full":
        shown = words.full(ns, zone)
    elif form == "date":
        shown = words.date_heading(ns, context["asked"].now, zone).partition(" ")[2] or words.clock(ns, zone)
    elif form == "span":
        shown = f"{words.date_heading(ns, context['asked'].now, zone)} {words.clock(ns, zone)}"
    else:
        shown = words.clock(ns, zone, seconds=form == "seconds")
    title = f"{words.full(ns, zone)} · {words.iso(ns)}"
    return Markup('<time datetime="{}" title="{}">{}</time>').format(words.iso(ns), title, shown)


def environment() -> Environment:
    made = templates.environment(HERE / "templates")
    made.filters |= {
        name: getattr(words, name)
        for name in ("money", "about", "tokens", "exact", "duration", "size", "short_id", "iso", "client", "day")
    }
    made.filters |= {
        "markdown": markdown.rendered,
        "marked": markdown.mark,
        "mark_in": markdown.mark_in,
        "holds": markdown.holds,
        "coloured": highlight.highlighted,
        "pretty": tools.pretty,
    }
    made.globals |= {
        "static": static,
        "path": path,
        "link": link,
        "at": at,
        "with_value": with_value,
        "time_tag": time_tag,
        "share": words.share,
        "speed": words.speed,
        "cached_share": words.cached_share,
        "percent": lambda part, whole: f"{100 * part / whole if whole else 0:.3f}".rstrip("0").rstrip(".") + "%",
        "filters": syntax.FILTERS,
        "root": ROOT,
    }
    return made


def page(made: Environment, name: str, asked: Asked, **values: Any) -> str:
    """A whole page from `templates/{name}.html`."""
    return made.get_template(f"{name}.html").render(asked=asked, page=name, **values)
