"""Named models, driven as the users of proxy-llm drive theirs; each weakness of that program is a test."""

import asyncio
import contextlib
import gzip
import http.client
import json
import os
import socket
import ssl
import time
from pathlib import Path

import anthropic
import openai
import pytest

from llm_proxy.errors import ConfigError
from llm_proxy.explorer.live.call import Call, Manner
from llm_proxy.journal.frames import Kind, unpack_open
from llm_proxy.proxy.authority import parse_base
from llm_proxy.proxy.callers import Guard
from llm_proxy.proxy.front import Front
from llm_proxy.proxy.models import Models, NamedModel
from llm_proxy.records.exchange import Ending
from llm_proxy.service import proxy_llm
from tests.fakeprovider.answers import SENTENCE as WORDS
from tests.fakeprovider.certificate import CERTIFICATE, KEY
from tests.fakeprovider.http1 import Chunked

SENTENCE = "".join(WORDS)
OPENAI_KEY, ANTHROPIC_KEY = "sk-proj-0123456789abcdefghij", "sk-ant-api03-0123456789abcdefghij"
TOKEN = "my-secret"
PAGE = "http://tool.example"

# As its README has it, but for the upstreams.
CONFIG = """\
server:
  host: "{host}"
  port: {port}
  tls_cert: "{cert}"
  tls_key: "{key}"

models:
  - name: "gpt-4"
    base_url: "{url}/v1"
    api_key: "${{OPENAI_API_KEY}}"
    model: "gpt-4-turbo"
    timeout: 120s
    max_retries: 3

  - name: "claude"
    base_url: "{url}/v1"
    base_url_anthropic: "{url}/anthropic"
    api_key: "${{ANTHROPIC_API_KEY}}"
    model: "claude-3-opus-20240229"
    timeout: 120s
    max_retries: 3

storage:
  directory: "./data"
  format: "jsonl"
  compress: false
  rotate: "daily"
  max_size: "100mb"

proxy:
  enable_stream: true
  max_body_size: "{max_body}"
  rate_limit: {rate}
  enable_cors: true
  allowed_origins:
    - "{origin}"
  enable_auth: {auth}
  auth_header: "X-API-Key"
  auth_token: "{token}"

monitoring:
  enable_health: true
  enable_metrics: true
  metrics_path: "/metrics"
"""
ENV = {"OPENAI_API_KEY": OPENAI_KEY, "ANTHROPIC_API_KEY": ANTHROPIC_KEY}


def configuration(url, **changed):
    values = {
        "host": "0.0.0.0",
        "port": 8080,
        "max_body": "10mb",
        "rate": 0,
        "origin": "*",
        "auth": "false",
        "token": "",
    }
    values |= {"cert": "", "key": ""}
    return CONFIG.format(url=url, **(values | changed))


@pytest.fixture
def work(environ):
    """The folder in which the command is given."""
    folder = Path(environ["HOME"], "work")
    folder.mkdir()
    return folder


@pytest.fixture
def serve_models(start, work, fake, free_port):
    """Start `llm-proxy --config config.yaml` with that file before the fake provider; `free_port` is in the file."""

    def begin(*arguments, env=None, more="", **changed):
        text = configuration(fake.url, **({"port": free_port} | changed)) + more
        (work / "config.yaml").write_text(text)
        daemon = start("--config", "config.yaml", *arguments, cwd=work, env=ENV | (env or {}))
        daemon.wait_for_line(r"listens on https?://127\.0\.0\.1:(\d+)")
        return daemon

    return begin


def call(port, method="POST", path="/v1/chat/completions", body=None, **fields):
    """(status, headers, body) of one call; field names with _ for -."""
    headers = {name.replace("_", "-"): value for name, value in fields.items()}
    data = json.dumps(body).encode() if isinstance(body, dict | list) else body
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as link:
        link.request(method, path, data, headers)
        answer = link.getresponse()
        return answer.status, answer.headers, answer.read()


async def ask(daemon, *args, **fields):
    """The same, while the fake provider in this loop answers."""
    return await asyncio.to_thread(call, daemon.port, *args, **fields)


def sent(fake):
    """The payload of the provider's last answer."""
    head, _, wire = fake.responses[-1].raw.partition(b"\r\n\r\n")
    return Chunked().feed(wire)[0] if b"chunked" in head.lower() else wire


def chat(model="gpt-4", **more):
    return {"model": model, "messages": [{"role": "user", "content": "Hello"}], **more}


def message(model="claude", **more):
    return chat(model, max_tokens=10, **more)


async def lines(folder, count, pattern="*/*.jsonl"):
    """The records below a folder, once there are so many."""
    async with asyncio.timeout(30):
        while True:
            files = sorted(path for path in folder.glob(pattern) if path.parent.name != "streams")
            found = [json.loads(line) for path in files for line in path.read_text().splitlines()]
            if len(found) >= count:
                return found, files
            await asyncio.sleep(0.02)


# --- as its README says


async def test_the_readmes_own_configuration_and_calls_work(serve_models, work, fake, free_port):
    """config.yaml, two keys in the environment, the two curl commands: upstream's model, its key, and the records."""
    daemon = serve_models()
    assert daemon.port == free_port
    status, headers, body = await ask(daemon, body=chat(), Content_Type="application/json")
    assert status == 200 and json.loads(body)["choices"][0]["message"]["content"] == SENTENCE
    assert headers["Content-Type"] == "application/json"
    status, headers, body = await ask(daemon, body=chat(stream=True), Content_Type="application/json")
    assert (
        status == 200 and body.endswith(b"data: [DONE]\n\n") and headers["Content-Type"].startswith("text/event-stream")
    )
    for seen in fake.requests:
        assert seen.target == "/v1/chat/completions" and json.loads(seen.body)["model"] == "gpt-4-turbo"
        assert seen.header("authorization") == f"Bearer {OPENAI_KEY}"
    records, files = await lines(work / "data", 2)
    assert {path.parent.name for path in files} == {"session_gpt-4"}
    assert files[0].name.startswith("session_gpt-4_2")
    assert [one["model"] for one in records] == ["gpt-4", "gpt-4"] and records[0]["endpoint"] == "chat/completions"
    assert records[0]["request_body"] == chat() and records[0]["status_code"] == 200
    assert records[0]["tokens_used"]["prompt_tokens"] > 0
    (streamed,) = (work / "data/streams").glob("session_gpt-4_????????.jsonl")
    pieces = [json.loads(line) for line in streamed.read_text().splitlines()]
    assert "".join(piece["chunk"] for piece in pieces).encode() == body


async def test_health_metrics_and_the_models_are_where_they_were(serve_models):
    """GET /health, /metrics and /v1/models, and one model of it."""
    daemon = serve_models()
    assert json.loads((await ask(daemon, "GET", "/health"))[2])["status"] == "ok"
    assert b"# HELP llm_proxy_" in (await ask(daemon, "GET", "/metrics"))[2]
    status, _, body = await ask(daemon, "GET", "/v1/models")
    assert status == 200 and json.loads(body)["object"] == "list"
    assert [model["id"] for model in json.loads(body)["data"]] == ["gpt-4", "claude"]
    assert json.loads((await ask(daemon, "GET", "/v1/models/claude"))[2])["owned_by"] == "claude"
    status, _, body = await ask(daemon, "GET", "/v1/models/nope")
    assert status == 404 and "gpt-4, claude" in json.loads(body)["error"]["message"]
    _, _, body = await ask(daemon, "GET", "/v1/models", anthropic_version="2023-06-01")
    told = json.loads(body)
    assert [model["type"] for model in told["data"]] == ["model", "model"]
    assert (told["has_more"], told["first_id"], told["last_id"]) == (False, "gpt-4", "claude")


async def test_both_sdks_ask_for_named_models(serve_models, fake):
    """OpenAI's and Anthropic's own clients: lists, answers, streams, token counts, errors as their own classes."""
    daemon = serve_models()
    async with openai.AsyncOpenAI(base_url=f"{daemon.url}/v1", api_key="any", max_retries=0) as gpt:
        assert [model.id async for model in gpt.models.list()] == ["gpt-4", "claude"]
        answer = await gpt.chat.completions.create(**chat())
        assert answer.choices[0].message.content == SENTENCE and answer.usage.prompt_tokens > 0
        assert answer.model == "gpt-4-turbo"  # upstream's own word
        stream = await gpt.chat.completions.create(**chat(stream=True))
        told = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
        assert "".join(told) == SENTENCE
        assert (await gpt.responses.create(model="gpt-4", input="hi")).output_text == SENTENCE
        assert (await gpt.embeddings.create(model="gpt-4", input="hi")).data[0].embedding
        with pytest.raises(openai.NotFoundError, match="gpt-4, claude"):
            await gpt.chat.completions.create(**chat("gpt-5"))
    async with anthropic.AsyncAnthropic(base_url=daemon.url, api_key="any", max_retries=0) as claude:
        assert [model.id async for model in claude.models.list()] == ["gpt-4", "claude"]
        assert (await claude.messages.create(**message())).content[0].text == SENTENCE
        async with claude.messages.stream(**message()) as events:
            assert await events.get_final_text() == SENTENCE
        assert (await claude.messages.count_tokens(model="claude", messages=chat()["messages"])).input_tokens > 0
        with pytest.raises(anthropic.NotFoundError) as caught:
            await claude.messages.create(**message("claude-9"))
        assert caught.value.body["error"]["type"] == "not_found_error"
        with pytest.raises(anthropic.NotFoundError, match=r"no base_url_anthropic.*gateway"):
            await claude.messages.create(**message("gpt-4"))
    targets = {seen.target for seen in fake.requests}
    assert {
        "/v1/responses",
        "/v1/embeddings",
        "/anthropic/v1/messages",
        "/anthropic/v1/messages/count_tokens",
    } <= targets


async def test_its_two_variables_hold_over_the_file(serve_models, start, work, free_port, fake):
    """PROXY_PORT and PROXY_STORAGE_DIR; a flag, and our own variable, over both."""
    daemon = serve_models(port=1, env={"PROXY_PORT": str(free_port), "PROXY_STORAGE_DIR": "elsewhere"})
    assert daemon.port == free_port
    daemon.wait_for_line(f"dataset: {work}/elsewhere")
    daemon.stop()
    flagged = start("--config", "config.yaml", "--port", "0", cwd=work, env=ENV | {"PROXY_PORT": "1"})
    assert flagged.port not in (1, free_port)


async def test_an_alias_of_chat_completions(serve_models, fake):
    """/v1/api/chat is chat/completions, as there; the query stays."""
    daemon = serve_models()
    status, _, _ = await ask(daemon, path="/v1/api/chat?trace=1", body=chat())
    assert status == 200 and fake.requests[-1].target == "/v1/chat/completions?trace=1"


# --- its weaknesses (compatibility notes, section 2.15)


async def test_01_a_stream_reaches_the_client_byte_for_byte(serve_models, fake):
    """There: lines cut at 8 KB reads, and blank lines lost. Here: what the provider sent, event borders and all."""
    daemon = serve_models()
    _, _, body = await ask(daemon, body=chat(stream=True), X_Fake="words=4000")
    assert len(body) > 100_000 and body == sent(fake)
    events = [event for event in body.decode().split("\n\n") if event]
    assert all(json.loads(event.removeprefix("data: ")) for event in events[:-1])


async def test_02_question_and_answer_of_a_record_belong_together(serve_models, work):
    """There: question 2 was recorded with answer 1, and histories of all clients of a model were one."""
    daemon = serve_models()
    for text in ("first", "second"):
        await ask(daemon, body={"model": "gpt-4", "messages": [{"role": "user", "content": text}]})
    records, _ = await lines(work / "data", 2)
    assert [one["request_body"]["messages"][-1]["content"] for one in records] == ["first", "second"]
    assert all(len(one["request_body"]["messages"]) == 1 for one in records)


async def test_03_streams_have_their_text_and_tokens_in_the_record(serve_models, work):
    """There: that code was never reached."""
    daemon = serve_models()
    await ask(daemon, body=chat(stream=True, stream_options={"include_usage": True}))
    (record,), _ = await lines(work / "data", 1)
    assert record["aggregated_response"]["choices"][0]["message"]["content"] == SENTENCE
    assert record["tokens_used"]["total_tokens"] > 0


async def test_04_the_answer_is_the_providers_own(serve_models, fake):
    """There: usage was renamed, so that SDKs found no prompt_tokens. Here: not a byte of it changes."""
    daemon = serve_models()
    _, _, body = await ask(daemon, body=chat())
    assert body == sent(fake) and json.loads(body)["usage"]["prompt_tokens"] > 0


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500])
async def test_05_an_upstreams_error_is_passed_as_it_is(serve_models, fake, status):
    """There: every 404 became "Endpoint not found", and Anthropic's errors empty messages."""
    daemon = serve_models()
    for path, body in (("/v1/chat/completions", chat()), ("/v1/messages", message())):
        got, headers, told = await ask(daemon, path=path, body=body, X_Fake=f"status={status}")
        assert (got, told) == (status, sent(fake)) and json.loads(told)["error"]
        assert "X-LLM-Proxy-Error" not in headers


async def test_06_no_session_and_no_model_leads_out_of_the_folder(serve_models, work, environ):
    """There: `X-Session-ID: ../../../pwn` wrote a file elsewhere, and a "/" in a model lost the record."""
    daemon = serve_models()
    await ask(daemon, body=chat(), X_Session_ID="../../../pwn")
    await ask(daemon, body=chat("../../org/model"))
    records, files = await lines(work / "data", 2)
    assert len(records) == 2 and all(path.is_relative_to(work / "data") for path in files)
    assert not [path for path in Path(environ["HOME"]).rglob("*pwn*") if not path.is_relative_to(work / "data")]


async def test_06_only_the_models_bytes_change_in_the_body(serve_models, fake):
    """There: numbers lost digits, keys were sorted, signs escaped. Here: white space, order, digits, duplicates stay."""
    daemon = serve_models()
    before = b'{ "seed":12345678901234567890,\n"messages":[{"role":"user","content":"<&> \\u00e9 \xc3\xa9 \\"model\\":1"}],"z":1.10,'
    after = b' "temperature" : 1e0 ,"nested":{"model":"gpt-4"},"a":1, "a":2}\n'
    status, _, _ = await ask(daemon, body=before + b'"mod\\u0065l"  :\t"gpt\\u002d4" ,' + after)
    assert status == 200
    assert fake.requests[-1].body == before + b'"mod\\u0065l"  :\t"gpt-4-turbo" ,' + after


async def test_07_knobs_that_did_nothing_work(serve_models, fake):
    """max_body_size and rate_limit; `timeout` and `max_retries` are shown below."""
    daemon = serve_models(max_body="2000 B", rate=3)
    status, _, body = await ask(daemon, body=chat(pad="x" * 2000))
    assert status == 413 and "named.max_body" in json.loads(body)["error"]["message"]
    statuses = [(await ask(daemon, body=chat()))[0] for _ in range(4)]
    assert statuses == [200, 200, 200, 429]
    status, headers, body = await ask(daemon, path="/v1/messages", body=message())
    assert status == 429 and 0 < int(headers["Retry-After"]) <= 20
    assert json.loads(body)["error"]["type"] == "rate_limit_error"
    assert len(fake.requests) == 3


async def test_08_without_models_nothing_starts_and_an_unknown_one_is_billed_to_nobody(
    serve_models, command, work, fake
):
    """There: a panic per call, and the first model paid for names that nobody knew."""
    (work / "none.yaml").write_text("server:\n  port: 0\nmodels: []\n")
    done = command("--config", str(work / "none.yaml"))
    assert done.returncode == 78 and "models lists none" in done.stderr
    daemon = serve_models()
    status, _, body = await ask(daemon, body=chat("gpt-4o"))
    assert status == 404 and json.loads(body)["error"]["code"] == "model_not_found"
    for wrong, code in (({"messages": []}, "no_model"), ([1], "bad_body"), ({"model": 4}, "no_model")):
        status, _, body = await ask(daemon, body=wrong)
        assert status == 400 and json.loads(body)["error"]["code"] == code
    assert fake.requests == []


async def test_10_the_token_is_asked_for_where_it_should_be(serve_models, fake):
    """There: health and preflights too wanted it, and only as the whole header."""
    daemon = serve_models(auth="true", token=TOKEN, host="127.0.0.1", origin=PAGE)
    assert (await ask(daemon, "GET", "/health"))[0] == 200
    for path in ("/metrics", "/v1/models", "/openai/api.openai.com/v1/models", "/v1/files"):
        status, headers, _ = await ask(daemon, "GET", path)
        assert status == 401 and headers["WWW-Authenticate"] == "Bearer", path
    for wrong in (TOKEN[:-1], TOKEN + "x", "", "\xe9"):
        assert (await ask(daemon, body=chat(), X_API_Key=wrong))[0] == 401
    assert fake.requests == []
    for good in ({"X_API_Key": TOKEN}, {"Authorization": f"Bearer {TOKEN}"}):
        assert (await ask(daemon, body=chat(), **good))[0] == 200
        assert TOKEN not in repr(fake.requests[-1].headers)
    async with anthropic.AsyncAnthropic(base_url=daemon.url, api_key=TOKEN, max_retries=0) as claude:
        assert (await claude.messages.create(**message())).content[0].text == SENTENCE
    async with anthropic.AsyncAnthropic(base_url=daemon.url, api_key="other", max_retries=0) as claude:
        with pytest.raises(anthropic.AuthenticationError):
            await claude.messages.create(**message())


async def test_10_the_token_does_not_go_to_other_upstreams_either(serve_models, fake):
    """It opens pass-through routes too, and is taken off there; the client's own key goes on."""
    daemon = serve_models(auth="true", token=TOKEN, host="127.0.0.1")
    path = f"/openai/127.0.0.1:{fake.port}/v1/chat/completions"
    status, _, _ = await ask(daemon, path=path, body=chat(), X_API_Key=TOKEN, Authorization=f"Bearer {OPENAI_KEY}")
    assert status == 200 and fake.requests[-1].header("x-api-key") is None
    assert fake.requests[-1].header("authorization") == f"Bearer {OPENAI_KEY}"


async def test_10_cors_answers_the_page_that_is_listed_and_no_other(serve_models, fake):
    """There: a page that was not listed got another page's origin. A preflight is 204, with what was asked for."""
    daemon = serve_models(auth="true", token=TOKEN, host="127.0.0.1", origin=PAGE)
    wish = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "content-type,x-api-key"}
    status, headers, body = await ask(daemon, "OPTIONS", Origin=PAGE, **wish)
    assert (status, body) == (204, b"") and headers["Access-Control-Allow-Origin"] == PAGE
    assert headers["Access-Control-Allow-Headers"] == "content-type,x-api-key" and headers["Vary"] == "Origin"
    status, headers, _ = await ask(daemon, body=chat(), Origin=PAGE, X_API_Key=TOKEN)
    assert status == 200 and headers.get_all("Access-Control-Allow-Origin") == [PAGE]
    assert fake.requests[-1].header("origin") is None
    status, headers, _ = await ask(daemon, body=chat("nope"), Origin=PAGE, X_API_Key=TOKEN)
    assert status == 404 and headers["Access-Control-Allow-Origin"] == PAGE
    for other in ("http://evil.example", "null", PAGE + ".evil.example"):
        _, headers, _ = await ask(daemon, "OPTIONS", Origin=other, **wish)
        assert headers["Access-Control-Allow-Origin"] is None and headers["Vary"] == "Origin"
        _, headers, _ = await ask(daemon, body=chat(), Origin=other, X_API_Key=TOKEN)
        assert headers["Access-Control-Allow-Origin"] is None


async def test_10_without_a_token_a_star_lets_no_page_in(serve_models, fake):
    """Else any page could spend the user's keys; a page that is listed by name may call, also without a token."""
    daemon = serve_models()
    daemon.wait_for_line(r"named\.origins has \*, which holds only with a named\.token")
    assert (await ask(daemon, body=chat(), Origin="http://evil.example"))[0] == 403
    assert (await ask(daemon, body=chat(), Sec_Fetch_Site="cross-site"))[0] == 403
    assert fake.requests == []
    daemon.stop()
    listing = serve_models(origin=PAGE)
    status, headers, _ = await ask(listing, body=chat(), Origin=PAGE, Sec_Fetch_Site="cross-site")
    assert status == 200 and headers["Access-Control-Allow-Origin"] == PAGE
    assert (await ask(listing, body=chat(), Origin="http://evil.example"))[0] == 403


async def test_11_anthropics_fields_pass_and_its_model_is_translated(serve_models, fake):
    """There: anthropic-version and -beta were dropped and the model was not translated."""
    daemon = serve_models()
    fields = {"anthropic_version": "2023-06-01", "anthropic_beta": "a,b", "X_Stainless_Lang": "python"}
    status, _, _ = await ask(
        daemon, path="/v1/messages?beta=true", body=message(), x_api_key="client", Cookie="a=b", **fields
    )
    seen = fake.requests[-1]
    assert status == 200 and seen.target == "/anthropic/v1/messages?beta=true"
    assert json.loads(seen.body) == message("claude-3-opus-20240229")
    assert {name: seen.header(name.replace("_", "-")) for name in fields} == fields
    assert seen.header("x-api-key") == ANTHROPIC_KEY and seen.header("authorization") == f"Bearer {ANTHROPIC_KEY}"
    assert seen.header("cookie") is None


async def test_11_the_call_is_in_the_session_logs_with_its_key_masked(serve_models, environ, fake):
    """Request as the client sent it, upstream and path as called; no key and no token is on any disk."""
    daemon = serve_models(auth="true", token="a-token-nobody-else-has", host="127.0.0.1")
    await ask(daemon, path="/v1/messages", body=message(), x_api_key="a-token-nobody-else-has")
    daemon.stop()
    entries = daemon.entries(until=lambda found: any(one["type"] == "response" for one in found))
    request = next(one for one in entries if one["type"] == "request")
    assert request["_meta"]["host"] == f"127.0.0.1:{fake.port}" and request["path"] == "/anthropic/v1/messages"
    assert json.loads(request["body"]) == message() and request["headers"]["X-Api-Key"] == ["sk-ant-...ghij"]
    response = next(one for one in entries if one["type"] == "response")
    assert response["ending"] == "complete" and response["digest"]["model"] == "claude-3-opus-20240229"
    disk = b"".join(path.read_bytes() for path in Path(environ["HOME"]).rglob("*") if path.is_file())
    for secret in (OPENAI_KEY, ANTHROPIC_KEY, "a-token-nobody-else-has"):
        assert disk.count(secret.encode()) == (secret.startswith("a-token"))  # in the configuration itself


def test_14_a_key_in_braces_without_a_dollar_is_named(command, work):
    """There: the very words `{ANTHROPIC_API_KEY}` were sent as the key. An unset variable is named too."""
    text = configuration("http://127.0.0.1:9").replace("${OPENAI_API_KEY}", "{OPENAI_API_KEY}")
    (work / "config.yaml").write_text(text)
    done = command("--config", str(work / "config.yaml"))
    assert done.returncode == 78
    assert "models[0].api_key is '{OPENAI_API_KEY}': a variable is written ${OPENAI_API_KEY}" in done.stderr
    assert "models[1].api_key names the variable ANTHROPIC_API_KEY, which is not set" in done.stderr


# --- the configuration


def test_variables_expand_in_any_scalar_and_the_result_has_its_type(work):
    """There: `port: "${P}"` could not start, because an expanded number stayed a text."""
    text = configuration("http://127.0.0.1:9/${DEPTH}", port='"${P}"', auth='"${ON}"', token="${T}-${T}", rate='"${R}"')
    (work / "c.yaml").write_text(text)
    env = ENV | {"P": "4321", "ON": "true", "T": "secret", "R": "7", "DEPTH": "a/b"}
    loaded, _ = proxy_llm.load({}, env, str(work / "c.yaml"))
    settings = loaded.settings
    assert (settings.port, settings.named_token, settings.named_rate_limit) == (4321, "secret-secret", 7)
    assert settings.models[0].base_url == "http://127.0.0.1:9/a/b/v1" and settings.models[0].api_key == OPENAI_KEY
    with pytest.raises(ConfigError, match=r"server\.port: port must be a whole number .* got 'many'"):
        proxy_llm.load({}, env | {"P": "many"}, str(work / "c.yaml"))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("agent:\n  workspace_dir: ./x\n", "agent: there is no agent here"),
        ("modelscope:\n  enable: true\n", "modelscope.enable is True, but nothing is pushed"),
        ("huggingface:\n  enable: true\n", "huggingface.enable is True, but nothing is pushed"),
        ("daily_export:\n  enable: true\n", "daily_export.enable is True, but `llm-proxy export"),
        ("logging:\n  file: ./logs/app.log\n", "logging.file is './logs/app.log', but"),
        ("logging:\n  upstream_http_log: true\n", "logging.upstream_http_log is True, but the record has every body"),
        ("tracing:\n  enable: true\n", "there is no setting 'tracing'"),
        ("logging:\n  lebel: info\n", "there is no setting 'logging.lebel'"),
    ],
)
def test_what_has_no_effect_is_refused_by_name(work, more, words):
    """Nothing is read and then forgotten."""
    (work / "c.yaml").write_text(configuration("http://127.0.0.1:9") + more)
    with pytest.raises(ConfigError) as caught:
        proxy_llm.load({}, ENV, str(work / "c.yaml"))
    assert words in str(caught.value)


def test_sections_that_are_off_may_stay(work):
    """Their variables need not be set, and their other keys mean nothing."""
    off = "modelscope:\n  enable: false\n  repo_url: https://oauth2:${GIT_TOKEN}@example.com/x.git\n"
    (work / "c.yaml").write_text(
        configuration("http://127.0.0.1:9") + off + "logging:\n  level: warn\n  request_log: true\n"
    )
    loaded, _ = proxy_llm.load({}, ENV, str(work / "c.yaml"))
    assert (loaded.settings.console, loaded.settings.console_level) == ("plain", "warn")
    assert loaded.settings.sinks == ("sessions", "dataset") and loaded.settings.dataset_max_size == 100 * 10**6


def test_no_message_shows_a_key(command, work):
    """A key with a space is wrong, and stays unseen."""
    (work / "config.yaml").write_text(configuration("http://127.0.0.1:9"))
    done = command("--config", str(work / "config.yaml"), env=ENV | {"OPENAI_API_KEY": "sk-proj-very secret"})
    assert done.returncode == 78 and 'models."gpt-4".api_key must be a key without spaces' in done.stderr
    assert "very secret" not in done.stderr + done.stdout


async def test_without_a_token_only_this_machine_is_served(serve_models):
    """`0.0.0.0`, as the README has it, would let the whole network spend the keys; it is said."""
    daemon = serve_models()
    daemon.wait_for_line(r"server\.host is '0\.0\.0\.0', but without proxy\.enable_auth only this machine is served")
    listening = Path("/proc/net/tcp").read_text() if os.path.exists("/proc/net/tcp") else ""
    assert f" 00000000:{daemon.port:04X} " not in listening


async def test_with_a_token_others_are_served_by_any_name(serve_models):
    """Who has the token need not name the machine as we know it."""
    daemon = serve_models(auth="true", token=TOKEN)
    assert (await ask(daemon, body=chat(), Host="llm.lan:8080", X_API_Key=TOKEN))[0] == 200
    assert (await ask(daemon, body=chat(), Host="llm.lan:8080"))[0] == 401
    assert (await ask(daemon, "GET", "/llm-proxy/", Host="llm.lan:8080", X_API_Key=TOKEN))[0] == 403


async def test_our_own_configuration_has_models_too(start, work, fake):
    """`[[models]]` in config.toml: the same door, and no sink that nobody asked for."""
    text = f'port = 0\n[[models]]\nname = "a/b"\nbase_url = "{fake.url}/v1"\napi_key = "{OPENAI_KEY}"\n'
    (work / "c.toml").write_text(text)
    daemon = start("--config", "c.toml", cwd=work)
    daemon.wait_for_line(r"a/b: http://127\.0\.0\.1:\d+/v1, as a/b")
    status, _, _ = await ask(daemon, body=chat("a/b"))
    assert status == 200 and json.loads(fake.requests[-1].body)["model"] == "a/b"
    assert json.loads((await ask(daemon, "GET", "/v1/models/a%2Fb"))[2])["id"] == "a/b"
    assert not (work / "data").exists()


async def test_tls_on_our_own_port(serve_models, fake, free_port):
    """tls_cert and tls_key: clients speak https to it; who does not gets nothing, and harms nobody."""
    daemon = serve_models(cert=CERTIFICATE, key=KEY)
    assert daemon.wait_for_line(r"listens on https://127\.0\.0\.1:(\d+)")[1] == str(free_port)

    def over_tls(**options):
        context = ssl.create_default_context(cafile=CERTIFICATE)
        link = http.client.HTTPSConnection("127.0.0.1", free_port, timeout=20, context=context)
        with contextlib.closing(link):
            link.request("POST", "/v1/chat/completions", json.dumps(chat(**options)))
            return link.getresponse().read()

    assert await asyncio.to_thread(over_tls) == sent(fake)
    with pytest.raises((http.client.HTTPException, OSError)):
        await asyncio.to_thread(call, free_port, body=chat())
    assert await asyncio.to_thread(over_tls, stream=True) == sent(fake)


def test_a_certificate_that_does_not_fit_is_named(command, work):
    """Before anything listens."""
    for changed, words in (({"cert": KEY, "key": KEY}, "do not fit"), ({"cert": CERTIFICATE}, "go together")):
        (work / "config.yaml").write_text(configuration("http://127.0.0.1:9", host="127.0.0.1", **changed))
        done = command("--config", str(work / "config.yaml"), env=ENV)
        assert done.returncode == 78 and words in done.stderr


async def test_an_upstream_that_is_ourselves_is_refused(command, work, free_port):
    """Calls would go round."""
    (work / "config.yaml").write_text(configuration(f"http://127.0.0.1:{free_port}", port=free_port))
    done = command("--config", str(work / "config.yaml"), env=ENV)
    assert done.returncode == 78 and "which is llm-proxy itself" in done.stderr


# --- on the wire


def door(url, *, anthropic_url="", max_body=1 << 20, retries=0, timeout=0.0, front=None, guard=None, model="upstream"):
    named = NamedModel(
        name="m",
        model=model,
        openai=parse_base(f"{url}/v1"),
        anthropic=parse_base(anthropic_url) if anthropic_url else None,
        api_key=OPENAI_KEY,
        timeout=timeout,
        max_retries=retries,
    )
    return Models((named,), guard or Guard(), front or Front(), max_body)


def head(length=None, path="/v1/chat/completions", *more):
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return "\r\n".join((f"POST {path} HTTP/1.1", "Host: 127.0.0.1:1", framing, *more, "", "")).encode()


async def test_a_chunked_body_goes_on_with_its_length(rigs):
    """In pieces of any size, a trailer behind it: the length is known by then."""
    rig = await rigs(models=door("http://127.0.0.1:1"))
    upstream = rig.upstream()
    rig.core.models._models["m"] = door(f"http://127.0.0.1:{upstream.port}").models[0]
    client = rig.client()
    await client.send(
        head() + b"".join(b"1\r\n%c\r\n" % byte for byte in b'{"model":"m","a":[1]}') + b"0\r\nX-T: 1\r\n\r\n"
    )
    server = await upstream.accept()
    seen = await server.message()
    assert seen.payload == b'{"model":"upstream","a":[1]}' and seen.get(b"content-length") == b"28"
    assert not seen.get(b"transfer-encoding")
    await server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    assert (await client.message()).payload == b"ok"
    record = await rig.recorded()
    assert record.opening.route == ("openai", "http", f"127.0.0.1:{upstream.port}", "named model")
    assert record.ending is Ending.COMPLETE and OPENAI_KEY.encode() not in record.opening.head


@pytest.mark.parametrize("size", [1, 7, 4096])
async def test_the_name_may_lie_across_pieces(rigs, size):
    """Wherever the pieces are cut, the bytes around the name are the client's."""
    rig = await rigs()
    upstream = rig.upstream()
    served = await rigs(models=door(f"http://127.0.0.1:{upstream.port}"))
    body = b'{"a":"\\\\\\"","model": "m" ,"b":{}}'
    client = served.client()
    await client.send(head(len(body)))
    for start in range(0, len(body), size):
        await client.send(body[start : start + size])
        await asyncio.sleep(0)
    seen = await (await upstream.accept()).message()
    assert seen.payload == body.replace(b'"m"', b'"upstream"')


async def test_a_name_that_is_upstreams_own_changes_nothing(rigs):
    """Not even how it is spelled."""
    rig = await rigs()
    upstream = rig.upstream()
    served = await rigs(models=door(f"http://127.0.0.1:{upstream.port}", model="m"))
    client = served.client()
    await client.send(head(18) + b'{"model":"\\u006d"}')
    assert (await (await upstream.accept()).message()).payload == b'{"model":"\\u006d"}'


async def test_expect_continue_is_answered_and_a_long_body_refused_at_once(rigs):
    """The body is awaited here; one that is announced as too long need not be sent at all."""
    rig = await rigs()
    upstream = rig.upstream()
    served = await rigs(models=door(f"http://127.0.0.1:{upstream.port}", max_body=1000))
    client = served.client()
    await client.send(head(13, "/v1/completions", "Expect: 100-continue"))
    await client.until(b"HTTP/1.1 100 Continue\r\n\r\n")
    await client.send(b'{"model":"m"}')
    seen = await (await upstream.accept()).message()
    assert seen.payload == b'{"model":"upstream"}' and not seen.get(b"expect")
    other = served.client()
    await other.send(head(1001, "/v1/completions", "Expect: 100-continue"))
    answer = await other.message()
    assert answer.status == 413 and not answer.interim and b"named.max_body" in answer.payload


async def test_a_connection_is_tried_again_before_anything_was_sent(rigs, free_port):
    """max_retries: until somebody listens. What was sent once is not sent again."""
    served = await rigs(models=door(f"http://127.0.0.1:{free_port}", retries=8))
    client = served.client()
    await client.send(head(13) + b'{"model":"m"}')
    await served.until(lambda: served.core.metrics.retries >= 1)
    with socket.create_server(("127.0.0.1", free_port)) as late:
        late.setblocking(False)
        link, _ = await asyncio.wait_for(asyncio.get_running_loop().sock_accept(late), 15)
        with link:
            assert b"upstream" in await asyncio.get_running_loop().sock_recv(link, 65536)
        assert (await client.message()).status == 502  # it was reset behind its request: nobody knows what was done
    rejecting = await rigs(models=door(f"http://127.0.0.1:{free_port}", retries=0))
    client = rejecting.client()
    await client.send(head(13) + b'{"model":"m"}')
    assert (await client.message()).status == 502 and rejecting.core.metrics.retries == 0


async def test_a_models_own_timeout_is_one_of_silence(rigs):
    """`timeout`: without a byte for so long the call ends; it holds for this model alone."""
    rig = await rigs()
    upstream = rig.upstream()
    served = await rigs(models=door(f"http://127.0.0.1:{upstream.port}", timeout=1.0))
    client = served.client()
    await client.send(head(13) + b'{"model":"m"}')
    await upstream.accept()
    began = time.monotonic()
    answer = await client.message()
    assert answer.status == 504 and b"1 s" in answer.payload and time.monotonic() - began < 8


async def test_a_packed_body_is_refused_with_the_reason(rigs):
    """Its model cannot be read."""
    served = await rigs(models=door("http://127.0.0.1:1"))
    client = served.client()
    body = gzip.compress(b'{"model":"m"}')
    await client.send(head(len(body), "/v1/responses", "Content-Encoding: gzip") + body)
    answer = await client.message()
    assert answer.status == 415 and b"not as gzip" in answer.payload
    await client.send(b"GET /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert (await client.message()).status == 405


async def test_whoever_is_not_this_users_program_is_turned_away(rigs, monkeypatch):
    """The keys are the user's; a secret opens the door to others."""
    monkeypatch.setattr("llm_proxy.proxy.callers.owner", lambda peer: os.geteuid() + 1)
    served = await rigs(models=door("http://127.0.0.1:1", guard=Guard(("a-token-of-24-characters",))))
    client = served.client()
    await client.send(head(13) + b'{"model":"m"}')
    answer = await client.message()
    assert answer.status == 403 and b"a program of user" in answer.payload
    opened = served.client()
    await opened.send(head(13, "/v1/responses", "Authorization: Bearer a-token-of-24-characters") + b'{"model":"m"}')
    assert (await opened.message()).status == 502  # nobody listens there


async def test_a_client_that_leaves_while_it_uploads_is_recorded(rigs):
    """It never named a model, and there is no upstream to tell."""
    served = await rigs(models=door("http://127.0.0.1:1"))
    client = served.client()
    await client.send(head(100) + b'{"model":"m"')
    await served.until(lambda: served.core.relays)
    client.reset()
    record = await served.recorded()
    assert record.ending is Ending.CLIENT_GONE and record.opening.route[2] == "no-upstream"
    assert record.request == b'{"model":"m"'


async def test_a_live_call_shows_where_it_goes(rigs):
    """The explorer follows the journal: before the body is there nobody knows, then provider, host and path."""
    rig = await rigs()
    upstream = rig.upstream()
    url = f"http://127.0.0.1:{upstream.port}"
    served = await rigs(models=door(url, anthropic_url=f"{url}/v1"))
    client = served.client()
    await client.send(head(13, "/v1/messages") + b'{"model":"m"}')
    server = await upstream.accept()
    await server.message()
    await server.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    await client.message()
    record = await served.recorded()
    kinds = [frame.kind for frame in record.frames]
    assert kinds.index(Kind.ROUTE) < kinds.index(Kind.HEAD)
    first, *others = record.frames
    live = Call(first, unpack_open(first.payload), Manner())
    assert live.seen.upstream == "no-upstream"
    for frame in others:
        live.take(frame)
    told = live.seen
    assert (told.provider, told.upstream, told.path) == ("anthropic", f"127.0.0.1:{upstream.port}", "/v1/messages")
