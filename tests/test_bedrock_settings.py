"""Switching Bedrock on: the names of its settings, what is refused before anything listens, and what is said of it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import botocore.session
import pytest

from llm_proxy import settings
from llm_proxy.errors import ConfigError
from llm_proxy.service import bedrock
from llm_proxy.wire import aws_regions

ON = {"BEDROCK_REGION": "us-west-2", "AWS_EC2_METADATA_DISABLED": "true"}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    return tmp_path


def _load(environ=None, text="", folder=None):
    config = None
    if text:
        (folder / "c.toml").write_text(text)
        config = str(folder / "c.toml")
    return settings.load({}, environ or {}, config).settings


def test_the_region_by_each_of_its_names(tmp_path):
    """The Go program's variable and key, ours, and a section; ours win."""
    assert _load({"BEDROCK_REGION": "us-east-1"}).bedrock_region == "us-east-1"
    both = {"BEDROCK_REGION": "us-east-1", "LLM_PROXY_BEDROCK_REGION": "eu-west-1"}
    assert _load(both).bedrock_region == "eu-west-1"
    flat = 'bedrock_region = "us-east-2"\nbedrock_secret = true\n'
    assert (_load({}, flat, tmp_path).bedrock_region, _load({}, flat, tmp_path).bedrock_secret) == ("us-east-2", True)
    section = '[bedrock]\nregion = "us-east-2"\nsecret = true\n'
    assert _load({}, section, tmp_path) == _load({}, flat, tmp_path)
    assert _load({"BEDROCK_REGION": ""}).bedrock_region == ""


def test_the_endpoint_by_awss_own_variable():
    """What AWS's SDKs read, we read; a general AWS_ENDPOINT_URL would send other services' calls here."""
    url = "https://vpce-1.bedrock-runtime.us-west-2.vpce.amazonaws.com"
    found = bedrock.configured(_load(ON | {"AWS_ENDPOINT_URL_BEDROCK_RUNTIME": url + "/"})).door
    assert (found.runtime, found.control) == (url, url)
    found = bedrock.configured(_load(ON | {"AWS_ENDPOINT_URL_BEDROCK": "http://127.0.0.1:4000"})).door
    assert (found.runtime, found.control) == (
        "https://bedrock-runtime.us-west-2.amazonaws.com",
        "http://127.0.0.1:4000",
    )


def test_off_by_default():
    """No region, no door."""
    assert bedrock.configured(_load()) is None


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"BEDROCK_REGION": "us-wset-2"}, "'us-wset-2'; the nearest is 'us-west-2'"),
        ({"BEDROCK_REGION": "eu-west-9"}, "the nearest is 'eu-west-"),
        ({"BEDROCK_REGION": "US WEST 2"}, "bedrock.region must be an AWS region"),
        (ON | {"LLM_PROXY_HOST": "0.0.0.0"}, "set listen.token"),
        (ON | {"LLM_PROXY_HOST": "::"}, "set listen.token"),
        (ON | {"LLM_PROXY_BEDROCK_ENDPOINT": "http://bedrock.example"}, "http is for loopback"),
        (ON | {"LLM_PROXY_BEDROCK_ENDPOINT": "http://127.0.0.1.example"}, "http is for loopback"),
        (ON | {"LLM_PROXY_BEDROCK_ENDPOINT": "https://a.example/path"}, "bedrock.endpoint must be a URL"),
        (ON | {"LLM_PROXY_BEDROCK_ENDPOINT": "https://a.example:99999"}, "bedrock.endpoint is"),
        (ON | {"AWS_ENDPOINT_URL_BEDROCK": "http://10.0.0.1"}, "bedrock.control_endpoint is"),
        (ON | {"LLM_PROXY_BEDROCK_MAX_BODY": "12"}, "bedrock.max_body must be a size"),
    ],
)
def test_what_is_wrong_is_an_error_at_start(environ, words):
    """Named with its rule and its value, before anything listens."""
    with pytest.raises(ConfigError) as caught:
        bedrock.configured(_load(environ))
    assert words in str(caught.value)


def test_a_region_that_is_too_new_is_taken_with_an_endpoint():
    """The table is of a day."""
    environ = {
        "BEDROCK_REGION": "eu-west-9",
        "LLM_PROXY_BEDROCK_ENDPOINT": "https://bedrock-runtime.eu-west-9.amazonaws.com",
    }
    assert bedrock.configured(_load(environ)).door.region == "eu-west-9"


def test_a_bad_token_is_not_repeated_in_the_error():
    """It is a secret, even where it is too short."""
    with pytest.raises(ConfigError) as caught:
        _load({"LLM_PROXY_LISTEN_TOKEN": "hunter2"})
    assert "listen.token" in str(caught.value) and "hunter2" not in str(caught.value)


def test_the_table_of_regions_is_awss():
    """Against botocore's endpoint data: every region of Bedrock, with its partition's domain."""
    session = botocore.session.get_session()
    data = {partition["partition"]: partition for partition in session.get_data("endpoints")["partitions"]}
    for name in session.get_available_partitions():
        for region in session.get_available_regions("bedrock", name):
            assert aws_regions.REGIONS[region] == data[name]["dnsSuffix"], region


def _get(daemon, path, **headers):
    request = urllib.request.Request(
        daemon.url + path, data=None if path.startswith("/health") else b"{}", headers=headers
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.mark.parametrize(
    ("arguments", "environ", "words"),
    [
        ((), {"BEDROCK_REGION": "us-wset-2"}, "us-west-2"),
        (("--host", "0.0.0.0"), ON, "listen.token"),
    ],
)
def test_a_daemon_that_is_wrongly_configured_does_not_start(command, arguments, environ, words):
    """Exit status 78, one line."""
    done = command("--port", "0", *arguments, env=environ)
    assert done.returncode == 78 and words in done.stderr and done.stderr.count("\n") == 1


def test_a_daemon_without_credentials_says_what_to_do(start):
    """In the answer and in /health/bedrock; everything else is served."""
    daemon = start("--port", "0", env=ON)
    status, body = _get(daemon, "/model/anthropic.claude-v1/invoke")
    assert status == 503 and "aws configure" in body["message"]
    _, health = _get(daemon, "/health/bedrock")
    assert health["region"] == "us-west-2" and not health["credentials"]["available"]
    assert "aws configure" in health["credentials"]["last_error"] and daemon.health()["status"] == "ok"


def test_the_local_secret_is_the_file_in_the_state_folder(start):
    """bedrock.secret = true: made where it is missing, 0600, and what it holds opens the door."""
    daemon = start("--port", "0", env=ON | {"LLM_PROXY_BEDROCK_SECRET": "true"})
    assert _get(daemon, "/model/a/invoke")[0] == 403
    file = daemon.state / "secret"
    assert file.stat().st_mode & 0o777 == 0o600
    status, body = _get(daemon, f"/secret/{file.read_text()}/model/a/invoke")
    assert status == 503 and "credentials" in body["message"]  # past the guard


def test_beyond_loopback_the_token_is_asked_for(start):
    """On all addresses: a caller by loopback is known by its owner, one by another address brings the token."""
    token = "a-token-of-16-signs-or-more"
    daemon = start("--port", "0", "--host", "0.0.0.0", env=ON | {"LLM_PROXY_LISTEN_TOKEN": token})
    assert daemon.port
    assert _get(daemon, "/model/a/invoke")[0] == 503
    assert _get(daemon, "/model/a/invoke", Authorization=f"Bearer {token}")[0] == 503
    status, body = _get(daemon, "/v1/messages")
    assert status == 403 and body["error"]["code"] == "not_allowed"


def test_an_endpoint_that_is_ourselves_is_left_aside(start, free_port):
    """AWS_ENDPOINT_URL_BEDROCK_RUNTIME leads clients here; a daemon started in that shell must not call itself."""
    here = {"AWS_ENDPOINT_URL_BEDROCK_RUNTIME": f"http://127.0.0.1:{free_port}"}
    daemon = start("--port", str(free_port), env=ON | here)
    assert daemon.port == free_port and daemon.wait_for_line("is llm-proxy itself; AWS's own is used")
    _, health = _get(daemon, "/health/bedrock")
    assert health["endpoint"] == "https://bedrock-runtime.us-west-2.amazonaws.com"
