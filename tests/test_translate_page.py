"""docs/translation.md says what each API is told, what it is told otherwise, and what it cannot be told: as the code does it."""

import re
from dataclasses import replace
from pathlib import Path

from llm_proxy.gateway.translate.apis import APIS
from llm_proxy.gateway.translate.conversation import Role, Text, Turn
from llm_proxy.gateway.translate.losses import CannotSay, Losses
from tests.test_translate_losses import VARIATIONS, asked

PAGE = (Path(__file__).parent.parent / "docs/translation.md").read_text()

# The page's columns and rows, by the names that the code and the other tests have.
COLUMNS = {
    "Anthropic": "anthropic",
    "chat": "chat",
    "responses": "responses",
    "Gemini": "gemini",
    "Converse": "bedrock",
}
ROWS = {
    "a picture by its bytes": "a picture by its bytes",
    "a picture by its URL": "a picture by its url",
    "a picture's `detail`": "a picture in detail",
    "a PDF by its bytes": "a document by its bytes",
    "a PDF by its URL": "a document by its url",
    "a document that is text": "a document that is text",
    "a file or picture by its id in another provider's store": "a document in a store",
    "sound": "sound",
    "a speaker's `name`": "a speaker's name",
    "a system or developer message between turns": "the system in the middle",
    "a model's refusal": "a refusal",
    "cache control of texts, tools, calls, results": "a text that is cached",
    "a thought with Anthropic's signature": "a thought that is signed",
    "a thought without one": "a thought that nobody signed",
    "tools, calls at once, results": "a tool must be called",
    "a result that says it failed": "a result that failed",
    "a result with a picture": "a result with a picture",
    "a strict schema": "a tool that is strict",
    "a tool that takes text instead of JSON": "a tool that takes text",
    "its grammar": "a tool with a grammar",
    "no tool may be called": "no tool may be called",
    "a tool must be called": "a tool must be called",
    "this tool must be called": "this tool must be called",
    "one call at a time": "option parallel_tool_calls",
    "JSON of any shape": "JSON",
    "JSON after a schema": "JSON after a schema",
    "thinking by effort": "much thinking",
    "thinking by a budget": "thinking by budget",
    "no thinking": "no thinking",
    "`temperature` above 1": "option temperature",
    "`top_p`": "option top_p",
    "`top_k`": "option top_k",
    "stop sequences": "option stop",
    "`seed`": "option seed",
    "`n` above 1": "option n",
    "frequency and presence penalty": "option frequency_penalty",
    "`logprobs`, `top_logprobs`": "option logprobs",
    "`verbosity`": "option verbosity",
    "`service_tier`": "option service_tier",
    "`user`": "option user",
    "`metadata`": "option metadata",
    "`prompt_cache_key`": "option prompt_cache_key",
    "`store`": "option store",
}


def _ask(row, api):
    """Thinking is asked for in a first turn: behind a call without its thoughts Anthropic's models cannot think."""
    ask = VARIATIONS[row](api)
    return replace(ask, turns=(Turn(Role.USER, (Text("hello"),)),)) if "thinking" in row else ask


def _word(row, api):
    """yes, told (it is left out, or put otherwise, and listed) or no (it is refused where dropping is not allowed)."""
    usual, losses = Losses("", refuse=False), Losses("", refuse=False)
    APIS[api].write_request(asked(api), usual)
    APIS[api].write_request(_ask(row, api), losses)
    try:
        APIS[api].write_request(_ask(row, api), Losses(""))
    except CannotSay:
        return "no"
    return "told" if set(losses.dropped) - set(usual.dropped) else "yes"


def rows():
    """The lines of the table."""
    yield f"| of the request | {' | '.join(COLUMNS)} |"
    for label, row in ROWS.items():
        yield f"| {label} | {' | '.join(_word(row, api) for api in COLUMNS.values())} |"


def test_the_page_has_the_table_as_the_code_has_it():
    """Each row, in its order, and no other."""
    table = re.search(r"^\| of the request .*?\n\n", PAGE, re.MULTILINE | re.DOTALL)[0].strip().splitlines()
    assert [table[0], *table[2:]] == list(rows())
    assert re.fullmatch(r"\|( --- \|)+", table[1])


def test_every_variation_is_on_the_page_or_is_one_of_a_row():
    """A thing that comes to the form between the APIs comes to the page."""
    of_a_row = {
        "a picture in a store": "a document in a store",
        "a document that is text, by its bytes": "a document that is text",
        "a call that is cached": "a text that is cached",
        "a result that is cached": "a text that is cached",
        "a tool that is cached": "a text that is cached",
        "option presence_penalty": "option frequency_penalty",
        "option top_logprobs": "option logprobs",
    }
    assert set(ROWS.values()) | set(of_a_row) == set(VARIATIONS)
    for variation, row in of_a_row.items():
        assert [_word(variation, api) for api in APIS] == [_word(row, api) for api in APIS], variation
