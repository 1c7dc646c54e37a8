"""Turns what a page shows into HTML: one Jinja environment, everything escaped. Leaves out what is shown."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment
from markupsafe import Markup

from llm_proxy.gateway.screens.page import ROOT
from llm_proxy.web import templates
from llm_proxy.web.assets import SHARED, Assets

HERE: Final = Path(__file__).parent
assets: Final = Assets(f"{ROOT}/static", HERE / "static", SHARED)


def day(moment: datetime | None) -> Markup:
    """`<time>` with the day as text and the moment, in UTC, in `datetime` and `title`."""
    return _time(moment, "%-d %b %Y")


def minute(moment: datetime | None) -> Markup:
    return _time(moment, "%-d %b %Y %H:%M")


def _time(moment: datetime | None, form: str) -> Markup:
    if moment is None:
        return Markup("")
    at = moment.astimezone(UTC)
    iso = at.isoformat(timespec="seconds").replace("+00:00", "Z")
    return Markup('<time datetime="{}" title="{} UTC">{}</time>').format(
        iso, f"{at:%Y-%m-%d %H:%M:%S}", at.strftime(form)
    )


def attributes(given: Mapping[str, object]) -> Markup:
    """Of an element: True is one without a value, None and False are none at all."""
    told = ((name, value) for name, value in given.items() if value is not None and value is not False)
    return Markup("").join(
        Markup(" {}").format(name) if value is True else Markup(' {}="{}"').format(name, value) for name, value in told
    )


@cache
def environment() -> Environment:
    made = templates.environment(HERE / "templates")
    made.filters |= {"day": day, "minute": minute, "attributes": attributes}
    made.globals |= {"static": assets.link, "root": ROOT}
    return made


def page(template: str, **values: Any) -> str:
    """A whole page from `templates/{template}.html`."""
    return environment().get_template(f"{template}.html").render(template=template, **values)
