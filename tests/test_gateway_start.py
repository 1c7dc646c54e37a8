"""What `llm-proxy gateway` takes from its environment, and what it says at its start."""

import pytest

from llm_proxy import settings
from llm_proxy.service import gateway


def told(tmp_path, monkeypatch, environ):
    monkeypatch.setenv("HOME", str(tmp_path))
    return gateway.without_ourselves(settings.load({}, environ, None, gateway.given(environ))).settings


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:46381/anthropic/api.anthropic.com",  # what --env puts into every shell
        "http://localhost:8080",  # its own port
        "http://[::1]:8080/v1",
    ],
)
def test_a_base_that_leads_back_is_ignored_loudly(tmp_path, monkeypatch, caplog, url):
    """Every call would be carried and recorded twice, or for ever."""
    assert told(tmp_path, monkeypatch, {"ANTHROPIC_BASE_URL": url}).anthropic == ""
    assert "leads back to llm-proxy itself: it is ignored" in caplog.text


@pytest.mark.parametrize(
    ("variable", "url", "setting", "base"),
    [
        ("ANTHROPIC_BASE_URL", "https://llm.example.com/a/", "anthropic", "https://llm.example.com/a"),
        ("OPENAI_BASE_URL", "http://127.0.0.1:9000/v1", "openai", "http://127.0.0.1:9000"),
        ("GEMINI_BASE_URL", "https://g.example.com/v1beta/openai", "gemini", "https://g.example.com"),
        ("GEMINI_BASE_URL", "https://g.example.com/v1beta", "gemini", "https://g.example.com"),
    ],
)
def test_bases_are_taken_as_tokentracer_takes_them(tmp_path, monkeypatch, caplog, variable, url, setting, base):
    """Without the part of the path that is the API's own."""
    assert getattr(told(tmp_path, monkeypatch, {variable: url}), setting) == base
    assert not caplog.text


def test_limits_and_stores_come_from_its_own_environment(tmp_path, monkeypatch):
    """As TokenTracer's do; the database's URL stays as it is."""
    url = "postgresql://me:word@db.example.com/tokentracer?sslmode=disable"
    environ = {"PORT": "9090", "DATABASE_URL": url, "RATE_LIMIT_MINUTE": "60", "RATE_LIMIT_DAILY": "1000"}
    found = told(tmp_path, monkeypatch, environ)
    assert (found.port, found.gateway_rate_limit_minute, found.gateway_rate_limit_daily) == (9090, 60, 1000)
    assert gateway.database_url(found) == url and "word" not in repr(found)
