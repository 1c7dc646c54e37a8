"""Settings: four sources in order, and errors that name the key, the value and the rule."""

import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_proxy import settings
from llm_proxy.errors import ConfigError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    return tmp_path


def _file(folder, text, name="config.toml"):
    path = folder / ".config" / "llm-proxy" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def _load(flags=None, environ=None, config=None):
    return settings.load(flags or {}, environ or {}, config)


def test_flags_beat_environment_beats_file_beats_default(home):
    """Take one source away after the other and the next one shows."""
    flags, environ = {"port": "3"}, {"LLM_PROXY_PORT": "2"}
    path = _file(home, "port = 1")
    assert _load(flags, environ).settings.port == 3
    assert _load({}, environ).settings.port == 2
    assert _load().settings.port == 1
    (home / ".config/llm-proxy/config.toml").unlink()
    assert _load().settings.port == 8080
    assert path


def test_the_source_of_each_value_is_known(home):
    """With --service only a port somebody set holds, so the sources are told apart."""
    path = _file(home, "port = 1\n[journal]\ncap = '1 GB'")
    loaded = _load({"log_dir": "/x"}, {"LLM_PROXY_HOST": "::1"})
    assert loaded.sources == {"port": path, "journal.cap": path, "log_dir": "--log-dir", "host": "LLM_PROXY_HOST"}
    assert loaded.settings.cap == 10**9


def test_an_empty_variable_is_an_unset_one():
    """As in the reference program."""
    assert _load({}, {"LLM_PROXY_PORT": ""}).settings.port == 8080


def test_the_three_formats_say_the_same(home):
    """The suffix chooses the reader; the settings are the same."""
    texts = {
        "c.toml": 'port = 9\n[upstreams]\nallow = ["http://192.168.1.5:8000"]\n[listen]\nremote_routes = true\n',
        "c.json": '{"port": 9, "upstreams": {"allow": ["http://192.168.1.5:8000"]}, "listen": {"remote_routes": true}}',
        "c.yaml": "port: 9\nupstreams:\n  allow: ['http://192.168.1.5:8000']\nlisten:\n  remote_routes: true\n",
    }
    found = [_load(config=_file(home, text, name)).settings for name, text in texts.items()]
    assert found[0] == found[1] == found[2]
    assert found[0].allow == ("http://192.168.1.5:8000",) and found[0].remote_routes is True


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot = 1", ["'prot'", "1", "did you mean 'port'"]),
        ("[upstreams]\nalow = 5", ["'upstreams.alow'", "5", "did you mean 'upstreams.allow'"]),
        ("[upstream]\nallow = []", ["'upstream'", "there is no setting"]),
        ("port = 70000", ["port must be a whole number from 0 to 65535", "70000"]),
        ("port = true", ["port must be", "True"]),
        ("port = '80 '\nhost = 'example.com'", ["host must be an IP address", "'example.com'"]),
        ("[listen]\nhosts = [3]", ["listen.hosts must be a list", "[3]"]),
        ("[listen]\nhosts = 'a b'", ["listen.hosts must be a list", "'a b'"]),
        ("[journal]\ncap = '3 apples'", ["journal.cap must be a size", "'3 apples'"]),
        ("[upstreams]\nidle_timeout = nan", ["upstreams.idle_timeout must be a number of seconds", "nan"]),
        ("loop = 'tokio'", ["loop must be one of auto, uvloop, asyncio", "'tokio'"]),
        ("port = x", ["config.toml", "line 1"]),
    ],
)
def test_a_wrong_file_is_an_error_that_says_what_where_and_why(home, text, words):
    """The file, the key, the value, the rule, and the nearest key we know."""
    path = _file(home, text)
    with pytest.raises(ConfigError) as caught:
        _load()
    assert path in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_wrong_variable_and_a_wrong_flag_are_named():
    """The message begins with where the value came from."""
    with pytest.raises(
        ConfigError, match=r"^LLM_PROXY_LISTEN_REMOTE_ROUTES: listen\.remote_routes must be true or false"
    ):
        _load({}, {"LLM_PROXY_LISTEN_REMOTE_ROUTES": "maybe"})
    with pytest.raises(ConfigError, match=r"^--log-dir: log_dir must be a folder"):
        _load({"log_dir": " "})


def test_a_missing_config_file_is_an_error_only_when_asked_for(home):
    """No configuration is fine; one that was named and is not there is a mistake."""
    assert _load().sources == {}
    with pytest.raises(ConfigError, match=r"--config: there is no file .*/nope\.toml"):
        _load(config=str(home / "nope.toml"))


def test_an_unknown_suffix_and_a_file_that_holds_no_keys(home):
    """Neither is guessed at."""
    with pytest.raises(ConfigError, match=r"ends in \.toml, \.json, \.yaml, \.yml, got '\.ini'"):
        _load(config=_file(home, "", "c.ini"))
    with pytest.raises(ConfigError, match="must hold keys and values"):
        _load(config=_file(home, "[1]", "c.json"))


def test_yaml_without_pyyaml_says_what_to_do(home, monkeypatch):
    """It is an extra: the message names it."""
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ConfigError, match=r"YAML needs PyYAML \(pip install 'llm-proxy\[yaml\]'\)"):
        _load(config=_file(home, "port: 1", "c.yaml"))


def test_a_tilde_is_the_home(home):
    """In every source, and in the default."""
    assert _load().settings.log_dir == f"{home}/.llm-provider-logs"
    assert _load({"log_dir": "~/x"}).settings.log_dir == f"{home}/x"
    assert _load({}, {"LLM_PROXY_LOG_DIR": "~"}).settings.log_dir == str(home)


@given(st.sampled_from(settings.TABLE), st.text(max_size=30))
def test_no_text_makes_a_rule_raise_anything_else(row, text):
    """A value is read or refused with ValueError, never a crash."""
    try:
        row.rule.read(text)
    except ValueError:
        pass


@given(st.sampled_from(settings.TABLE), st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists))
def test_no_value_of_a_file_makes_loading_crash(row, value):
    """JSON can hold anything: it is a setting or a ConfigError."""
    import tempfile

    tree = value
    for part in reversed(row.name.split(".")):
        tree = {part: tree}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(tree, file)
        file.flush()
        try:
            _load(config=file.name)
        except ConfigError as exc:
            assert row.name in str(exc)


def test_prices_say_the_same_in_every_format(home):
    """A table per model; exact decimals, whatever way they were written."""
    expected = (("my-model", (("input", "1.5"), ("output", "6"))), ("q*", (("input", "0"),)))
    toml = _file(home, '[prices."my-model"]\ninput = 1.5\noutput = "6"\n[prices."q*"]\ninput = 0\n')
    assert _load(config=toml).settings.prices == expected
    text = '{"my-model": {"input": 1.5, "output": 6}, "q*": {"input": 0}}'
    assert _load(config=_file(home, f'{{"prices": {text}}}', "c.json")).settings.prices == expected
    (home / ".config/llm-proxy/config.toml").unlink()
    assert _load({}, {"LLM_PROXY_PRICES": text}).settings.prices == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[prices."m"]\ninptu = 1', 'prices."m" must be a table of prices for input, input_audio,'),
        ('[prices."m"]\ninput = -1', 'prices."m".input must be a number of US dollars, 0 or more, got -1'),
        ('[prices."m"]\ninput = nan', "got nan"),
        ('[prices."m"]\ninput = "cheap"', "got 'cheap'"),
        ('[prices."m"]\ninput = true', "got True"),
        ('[prices."m"]', 'prices."m" must be a table such as'),
        ("[prices]\nm = 1", 'prices."m" must be a table such as'),
        ("prices = 1", "prices must be a table per model"),
        ("prices = [1]", "prices must be a table per model"),
    ],
)
def test_a_wrong_price_is_named(home, text, words):
    """The model, the class, the rule and the value."""
    path = _file(home, text)
    with pytest.raises(ConfigError) as told:
        _load()
    assert words in str(told.value) and path in str(told.value)


def test_what_can_be_priced_is_what_is_computed_with():
    """The names stand in two places, because settings import nothing."""
    from llm_proxy.records.pricing import OVERRIDABLE

    assert set(settings._PRICED) == set(OVERRIDABLE)


@given(st.integers(0, 1 << 50))
def test_sizes_are_shown_as_they_can_be_written(size):
    """What the documentation prints the reader reads."""
    rule = settings._size(0, 1 << 60)
    assert rule.read(settings.size_text(size)) == size
