"""Settings of clients, ready to be pasted: the gateway's address, a key, a model, written as each file needs it. Pure.

Everything goes in as a literal of the language it stands in. Leaves out showing them (`clients`).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

PLACEHOLDER: Final = "llmp_…"  # in the place of a key, which nobody can show


class Ways(NamedTuple):
    """What goes into the texts: `url` is the gateway's address without a path."""

    url: str
    key: str
    model: str

    @property
    def v1(self) -> str:
        return f"{self.url}/v1"


@dataclass(frozen=True, slots=True)
class Snippet:
    """`place` says where the text goes. `id` is its anchor."""

    id: str
    client: str
    place: str
    write: Callable[[Ways], str]


def _shell(lines: str, **values: str) -> str:
    return lines.format(**{name: shlex.quote(value) for name, value in values.items()})


def _quoted(lines: str, **values: str) -> str:
    """Of Python, JavaScript, TOML: in all of them a string of JSON is a string."""
    for name, value in values.items():
        lines = lines.replace(f"<{name}>", json.dumps(value, ensure_ascii=False))
    return lines


def _claude_code(ways: Ways) -> str:
    told = {
        "ANTHROPIC_BASE_URL": ways.url,
        "ANTHROPIC_AUTH_TOKEN": ways.key,
        "ANTHROPIC_MODEL": ways.model,
        "ANTHROPIC_SMALL_FAST_MODEL": ways.model,
    }
    return json.dumps({"env": told}, indent=2, ensure_ascii=False) + "\n"


def _claude_shell(ways: Ways) -> str:
    return _shell(
        "export ANTHROPIC_BASE_URL={url}\nexport ANTHROPIC_AUTH_TOKEN={key}\nexport ANTHROPIC_MODEL={model}\n"
        "unset ANTHROPIC_API_KEY\n",
        **ways._asdict(),
    )


def _codex(ways: Ways) -> str:
    return _quoted(
        'model = <model>\nmodel_provider = "gateway"\n\n[model_providers.gateway]\nname = "gateway"\n'
        'base_url = <v1>\nenv_key = "LLM_PROXY_KEY"\nwire_api = "responses"\n',
        model=ways.model,
        v1=ways.v1,
    )


def _codex_shell(ways: Ways) -> str:
    return _shell("export LLM_PROXY_KEY={key}\n", key=ways.key)


def _openai_python(ways: Ways) -> str:
    return _quoted(
        "from openai import OpenAI\n\nclient = OpenAI(base_url=<v1>, api_key=<key>)\n"
        "answer = client.chat.completions.create(\n    model=<model>,\n"
        '    messages=[{"role": "user", "content": "hello"}],\n'
        ")\nprint(answer.choices[0].message.content)\n",
        v1=ways.v1,
        key=ways.key,
        model=ways.model,
    )


def _openai_js(ways: Ways) -> str:
    return _quoted(
        'import OpenAI from "openai";\n\nconst client = new OpenAI({ baseURL: <v1>, apiKey: <key> });\n'
        "const answer = await client.chat.completions.create({\n  model: <model>,\n"
        '  messages: [{ role: "user", content: "hello" }],\n});\nconsole.log(answer.choices[0].message.content);\n',
        v1=ways.v1,
        key=ways.key,
        model=ways.model,
    )


def _anthropic_python(ways: Ways) -> str:
    return _quoted(
        "from anthropic import Anthropic\n\nclient = Anthropic(base_url=<url>, auth_token=<key>)\n"
        "answer = client.messages.create(\n    model=<model>,\n    max_tokens=1024,\n"
        '    messages=[{"role": "user", "content": "hello"}],\n)\nprint(answer.content[0].text)\n',
        url=ways.url,
        key=ways.key,
        model=ways.model,
    )


def _anthropic_js(ways: Ways) -> str:
    return _quoted(
        'import Anthropic from "@anthropic-ai/sdk";\n\n'
        "const client = new Anthropic({ baseURL: <url>, authToken: <key>, apiKey: null });\n"
        "const answer = await client.messages.create({\n  model: <model>,\n  max_tokens: 1024,\n"
        '  messages: [{ role: "user", content: "hello" }],\n});\nconsole.log(answer.content[0].text);\n',
        url=ways.url,
        key=ways.key,
        model=ways.model,
    )


def _curl(ways: Ways) -> str:
    body = {"model": ways.model, "messages": [{"role": "user", "content": "hello"}]}
    return _shell(
        "curl {url} \\\n  -H {key} \\\n  -H 'content-type: application/json' \\\n  -d {body}\n",
        url=f"{ways.v1}/chat/completions",
        key=f"authorization: Bearer {ways.key}",
        body=json.dumps(body, ensure_ascii=False),
    )


def _environment(ways: Ways) -> str:
    return _shell("export OPENAI_BASE_URL={v1}\nexport OPENAI_API_KEY={key}\n", v1=ways.v1, key=ways.key)


SNIPPETS: Final = (
    Snippet("claude-code", "Claude Code", "in ~/.claude/settings.json", _claude_code),
    Snippet("claude-code-shell", "Claude Code, for one terminal", "in a shell", _claude_shell),
    Snippet("codex", "Codex", "in ~/.codex/config.toml", _codex),
    Snippet("codex-key", "Codex: its key", "in the shell that starts it", _codex_shell),
    Snippet("openai-python", "OpenAI SDK, Python", "pip install openai", _openai_python),
    Snippet("openai-js", "OpenAI SDK, JavaScript", "npm install openai", _openai_js),
    Snippet("anthropic-python", "Anthropic SDK, Python", "pip install anthropic", _anthropic_python),
    Snippet("anthropic-js", "Anthropic SDK, JavaScript", "npm install @anthropic-ai/sdk", _anthropic_js),
    Snippet("curl", "curl", "in a shell", _curl),
    Snippet("environment", "Whatever reads OpenAI's variables", "in a shell", _environment),
)
