"""OpenAI's old completions, for models that only chat: the prompt is said by a user, the answer's text comes back.

Reads requests and writes answers, nothing else: no provider is asked in it. Leaves out several prompts, tokens as
prompts and what only an old model can say (echo, suffix, logprobs): they are lost by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from llm_proxy.gateway.translate.chat_answers import StreamWriter as _Chat
from llm_proxy.gateway.translate.chat_answers import write_reply as _chat_reply
from llm_proxy.gateway.translate.conversation import Ask, Event, Given, Json, Option, Reply, Role, Text, Turn
from llm_proxy.gateway.translate.fields import Fields
from llm_proxy.gateway.translate.losses import BadRequest, Losses

NAME: Final = "OpenAI Completions"
_MOST_TOKENS = 16  # what the old API gives where nobody asks for more

_OPTIONS = {
    "max_tokens": Option.MAX_TOKENS,
    "temperature": Option.TEMPERATURE,
    "top_p": Option.TOP_P,
    "n": Option.COUNT,
    "seed": Option.SEED,
    "frequency_penalty": Option.FREQUENCY_PENALTY,
    "presence_penalty": Option.PRESENCE_PENALTY,
    "user": Option.USER,
}


def read_request(body: Json, losses: Losses) -> Ask:
    """What a body asks. Raises BadRequest, and CannotSay for what a chat has no word for."""
    fields = Fields(body)
    streaming = fields.object("stream_options") or Fields({}, "stream_options")
    options = {ours: Given(fields.any(name), name) for name, ours in _OPTIONS.items() if fields.has(name)}
    options.setdefault(Option.MAX_TOKENS, Given(_MOST_TOKENS, "max_tokens"))
    stop = fields.any("stop")
    if stop:
        options[Option.STOP] = Given([stop] if isinstance(stop, str) else stop, "stop")
    if fields.any("best_of", 1) != 1:
        losses.lose("best_of")
    if fields.flag("echo"):
        losses.lose("echo")
    ask = Ask(
        model=fields.text("model"),
        turns=(Turn(Role.USER, (Text(_prompt(fields.any("prompt")), at="prompt"),), at="prompt"),),
        options=options,
        stream=bool(fields.flag("stream")),
        usage=bool(streaming.flag("include_usage")),
    )
    streaming.leave("include_obfuscation")
    streaming.finish(losses)
    fields.finish(losses)
    return ask


def _prompt(given: Json) -> str:
    match given:
        case str() | [str()]:
            return given if isinstance(given, str) else given[0]
    raise BadRequest("prompt", "must be one text, because the model it goes to chats")


def write_reply(reply: Reply, ask: Ask, created: int = 0) -> Json:
    """The body of a completion."""
    chat = _chat_reply(reply, ask, created)
    told = chat["choices"][0]
    choice = _choice(told["message"]["content"] or "", told["finish_reason"])
    return chat | {"object": "text_completion", "choices": [choice]}


def _choice(said: str, finish: str | None) -> Json:
    return {"text": said, "index": 0, "logprobs": None, "finish_reason": finish}


class StreamWriter:
    """Writes a completion's chunks, from those of a chat. `[DONE]` follows the last one."""

    def __init__(self, ask: Ask, created: int = 0) -> None:
        self._chat = _Chat(ask, created)

    def write(self, event: Event) -> Iterator[tuple[str, Json]]:
        """("", chunk) for each that says something here."""
        for _, chunk in self._chat.write(event):
            if "error" in chunk:
                yield "", chunk
                continue
            choices = [_choice(one["delta"].get("content") or "", one["finish_reason"]) for one in chunk["choices"]]
            if not choices or choices[0]["text"] or choices[0]["finish_reason"]:
                yield "", chunk | {"object": "text_completion", "choices": choices}
