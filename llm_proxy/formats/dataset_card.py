"""The card beside a dataset: what is in it, where it comes from, what was left out and what it may be used for.

In the form that dataset hubs read: YAML between two lines of dashes, then Markdown. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from llm_proxy.formats.dataset import Told

_STYLES = {
    "messages": '`{"messages": [{"role", "content", "reasoning"?, "tool_calls"?}]}`, in OpenAI\'s roles',
    "reasoning": "`problem`, `thinking` and `solution`, with `difficulty` and `category` by rule of thumb",
    "sharegpt": '`{"conversations": [{"from", "value"}]}`: system, human, gpt, function_call, observation',
    "openai-finetune": '`{"messages": [...], "tools"?: [...]}`, as OpenAI\'s fine-tuning takes it',
}
_PRIVATE = (
    "Texts are as they were recorded, and each line has its id, session, project and time: keep it to yourself.\n"
    "Secrets that the record's redaction knows were taken out when it was recorded."
)
_CLEAN = (
    "Secrets are replaced by their kind, e-mail addresses by `<EMAIL>`, and owners' names in paths of home folders by\n"
    "`user`. What people wrote about themselves or others in plain words is still there: read it before you share it."
)
_LICENCE = (
    "None is granted here. Prompts belong to those who wrote them; the providers' terms say what may be done with\n"
    "their models' answers, and some do not allow training competing models with them."
)


def card(told: Told, style: str, files: Mapping[str, str], filters: Mapping[str, str], *, private: bool) -> str:
    """Markdown. `files` are the names of the parts' files, `filters` the options that chose the calls."""
    parts = [f"| {part} | {told.rows[part]} | `{file}` |" for part, file in files.items()]
    models = [f"| {_cell(model)} | {count} |" for model, count in told.models.most_common()]
    chosen = [f"- {name}: {_cell(value)}" for name, value in filters.items() if value]
    data = [line for part, file in files.items() for line in (f"  - split: {part}", f"    path: {file}")]
    lines = (
        "---",
        "pretty_name: Conversations recorded by llm-proxy",
        "license: other",
        "configs:",
        "- config_name: default",
        "  data_files:",
        *data,
        "---",
        "",
        "# Conversations recorded by llm-proxy",
        "",
        f"Written on {_day(datetime.now(UTC).timestamp())} from calls of {_days(told)}.",
        f"Style `{style}`: {_STYLES[style]}.",
        "",
        "| part | conversations | file |",
        "| --- | --- | --- |",
        *parts,
        "",
        "Each conversation stands once, as its longest form; which part it is in follows from how it begins, so that "
        "forks of",
        "one conversation stay together and a later export divides it the same way.",
        "",
        "## Models",
        "",
        "| model | conversations |",
        "| --- | --- |",
        *models,
        "",
        "## Choice",
        "",
        *(chosen or ["- all calls"]),
        f"- left out: {told.repeated} that were told already, {told.unfit} calls that failed, broke off or say nothing",
        "",
        "## Privacy",
        "",
        _PRIVATE if private else _CLEAN,
        "",
        "## Licence",
        "",
        _LICENCE,
        "",
    )
    return "\n".join(lines)


def _days(told: Told) -> str:
    if not told.first_ns:
        return "no day"
    first, last = _day(told.first_ns / 1e9), _day(told.last_ns / 1e9)
    return first if first == last else f"{first} to {last}"


def _day(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).date().isoformat()


def _cell(text: str) -> str:
    """Recorded text, so that it cannot be anything else in Markdown."""
    plain = "".join(sign if sign.isprintable() else " " for sign in text)[:200]
    return "".join(f"\\{sign}" if sign in "\\`*_[]<>|#" else sign for sign in plain)
