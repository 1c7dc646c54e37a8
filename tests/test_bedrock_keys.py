"""AWS credentials: found by a process of its own as AWS's tools find them, renewed in time, and never in anybody's way."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest

from llm_proxy.proxy.signed import NoKey
from llm_proxy.service import aws_keys
from llm_proxy.service.aws_keys import Answer, AwsKeys
from llm_proxy.wire.sigv4 import Key

NOWHERE = {"AWS_EC2_METADATA_DISABLED": "true"}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home without AWS, and no metadata service to ask."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "BOTO"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    (tmp_path / ".aws").mkdir()
    return tmp_path


@pytest.fixture
async def keys():
    """Make sources of keys; all are closed behind the test."""
    made = []

    def make(profile=""):
        made.append(AwsKeys(region="us-west-2", profile=profile))
        return made[-1]

    yield make
    for one in made:
        await one.close()


def _config(home, text, name="config"):
    (home / ".aws" / name).write_text(text)


def _process(home, *, seconds=3600, access="AKIDPROCESS", more=""):
    """A profile whose credential_process counts its runs and gives keys that expire in `seconds`."""
    script = home / "process.py"
    script.write_text(
        "import datetime, json, pathlib\n"
        f"runs = pathlib.Path({str(home / 'runs')!r})\n"
        "runs.write_text(runs.read_text() + '.' if runs.exists() else '.')\n"
        f"{more}\n"
        f"end = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds={seconds})\n"
        f"print(json.dumps(dict(Version=1, AccessKeyId={access!r} + str(len(runs.read_text())), SecretAccessKey='s',"
        " SessionToken='t', Expiration=end.isoformat())))\n"
    )
    _config(home, f"[default]\ncredential_process = {sys.executable} -I {script}\n")


def _runs(home):
    runs = home / "runs"
    return len(runs.read_text()) if runs.exists() else 0


async def _first(keys):
    assert keys.current() is None  # nothing is known before the first need, and nobody waits in here
    return await keys.wait(30)


async def test_from_the_environment(keys, monkeypatch):
    """The plainest source: two variables."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-env")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token-env")
    source = keys()
    assert await _first(source) == Key("AKIDENV", "secret-env", "token-env")
    assert source.current() == Key("AKIDENV", "secret-env", "token-env")
    state = source.state()
    assert (state["available"], state["source"], state["expires"], state["last_error"]) == (True, "env", None, None)
    assert "secret-env" not in json.dumps(state) and "token-env" not in json.dumps(state)


async def test_from_a_profile(keys, home):
    """bedrock.profile chooses among the shared file's."""
    _config(
        home,
        "[default]\naws_access_key_id = AKIDDEFAULT\naws_secret_access_key = a\n"
        "[work]\naws_access_key_id = AKIDWORK\naws_secret_access_key = b\n",
        "credentials",
    )
    assert (await _first(keys())).access == "AKIDDEFAULT"
    work = keys("work")
    assert (await _first(work)).access == "AKIDWORK"
    assert work.state()["source"] == "shared-credentials-file"


async def test_from_a_process_with_an_expiry(keys, home):
    """Temporary keys: their token and their end are known."""
    _process(home, seconds=3600)
    source = keys()
    key = await _first(source)
    assert (key.access, key.token) == ("AKIDPROCESS1", "t")
    expires = datetime.fromisoformat(source.state()["expires"])
    assert timedelta(minutes=59) < expires - datetime.now(UTC) <= timedelta(hours=1)


@pytest.mark.parametrize(
    ("name", "config", "wanted"),
    [
        ("nothing at all", "", r"no AWS credentials were found; run `aws configure` or `aws sso login`"),
        ("half a pair", "[default]\naws_access_key_id = A\n", r"an access key and its secret belong together"),
        (
            "sso without a login",
            "[default]\nsso_session = s\nsso_account_id = 123456789012\nsso_role_name = r\n"
            "[sso-session s]\nsso_region = us-east-1\nsso_start_url = https://example.awsapps.com/start\n",
            r"\(sso\).*`aws sso login`",
        ),
        (
            "a process that fails",
            f"[default]\ncredential_process = {sys.executable} -c 'raise SystemExit(\"vault is sealed\")'\n",
            r"\(custom-process\).*vault is sealed.*credential_process by hand",
        ),
        (
            "a role that wants a code",
            "[default]\nrole_arn = arn:aws:iam::123456789012:role/r\nsource_profile = base\n"
            "mfa_serial = arn:aws:iam::123456789012:mfa/u\n"
            "[profile base]\naws_access_key_id = A\naws_secret_access_key = b\n",
            r"\(assume-role\).*MFA",
        ),
        ("a file that cannot be read", "[default\n", "mend ~/.aws/config"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value and "\n" not in value and "\\" not in value else "",
)  # fmt: skip
async def test_what_fails_is_named_with_what_to_do(keys, home, name, config, wanted):
    """The error says which source of the chain failed and what mends it; it is kept for /health/bedrock."""
    _config(home, config)
    source = keys()
    assert source.current() is None
    with pytest.raises(NoKey, match=f"(?s){wanted}"):
        await source.wait(30)
    assert source.state()["last_error"] and source.state()["last_error_time"]
    assert not source.state()["available"]


async def test_a_profile_that_does_not_exist(keys):
    """The setting's name is in the message."""
    source = keys("nonesuch")
    assert source.current() is None
    with pytest.raises(NoKey, match=r"nonesuch.*bedrock.profile or AWS_PROFILE"):
        await source.wait(30)


def test_without_botocore_the_answer_says_how_to_install_it():
    """It is an extra; the daemon runs without it."""
    assert "pip install 'llm-proxy[bedrock]'" in _without_botocore("/nowhere")["error"]


@pytest.mark.parametrize("profile", ["", "work"])
def test_without_botocore_awss_command_line_is_asked(home, profile):
    """Who uses AWS has it; simulated by a program of that name, which answers as its manual says."""
    (home / "aws").write_text(
        '#!/bin/sh\n[ "$*" = "configure export-credentials --format process$WANTED" ] || exit 9\n'
        """echo '{"Version": 1, "AccessKeyId": "AKIDCLI", "SecretAccessKey": "s", "SessionToken": "t","""
        """ "Expiration": "2026-01-02T03:04:05+00:00"}'\n"""
    )
    (home / "aws").chmod(0o755)
    found = _without_botocore(str(home), profile, WANTED=f" --profile {profile}" if profile else "")
    assert found == {
        "access": "AKIDCLI", "secret": "s", "token": "t", "source": "aws-cli",
        "expires": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp(),
    }  # fmt: skip


@pytest.mark.parametrize("script", ["echo no", "echo '[]'", "echo '{}'", "echo sealed >&2; exit 1"])
def test_what_the_command_line_says_otherwise_is_an_error(home, script):
    """No traceback and no key, but its words."""
    (home / "aws").write_text(f"#!/bin/sh\n{script}\n")
    (home / "aws").chmod(0o755)
    found = _without_botocore(str(home))
    assert found["source"] == "aws-cli" and "export-credentials" in found["error"]
    assert "sealed" in found["error"] or "exit" not in script


def _without_botocore(path, profile="", **environ):
    code = (
        "import json, sys; sys.modules['botocore'] = None\n"
        f"from llm_proxy.service.aws_credentials import find; print(json.dumps(find('us-west-2', {profile!r} or None)))"
    )
    environ = {"PATH": path, "HOME": os.environ["HOME"], **environ}
    command = [sys.executable, "-c", code]
    return json.loads(subprocess.run(command, env=environ, capture_output=True, check=True, timeout=30).stdout)


def test_the_daemon_never_imports_botocore():
    """Its import would hold up every stream and stay in memory."""
    code = "import sys, llm_proxy.service.daemon; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert not {"botocore", "boto3", "difflib", "subprocess32"} & set(done.stdout.split())


async def test_the_wait_is_bounded(keys, home):
    """A source that hangs: who asks is told after the limit, and the looking goes on."""
    _process(home, more="import time; time.sleep(600)")
    source = keys()
    assert source.current() is None
    began = time.monotonic()
    with pytest.raises(NoKey, match=r"did not come within 0\.2 s"):
        await source.wait(0.2)
    assert time.monotonic() - began < 5


async def test_keys_are_renewed_before_they_expire_while_calls_go_on(keys, home):
    """Within the margin the old key is given at once, and the new one replaces it."""
    _process(home, seconds=3600)
    source = keys()
    old = await _first(source)
    await _nearly_over(source)
    assert source.current() == old
    await _until(lambda: source.current() != old)
    assert source.current().access == "AKIDPROCESS2" and _runs(home) == 2


async def test_a_failing_renewal_leaves_what_is_still_valid(keys, home):
    """Calls go on with the old key; the trouble is told; the next attempt is not at once."""
    _process(home, seconds=3600)
    source = keys()
    old = await _first(source)
    _process(home, more="raise SystemExit('sealed')")
    await _nearly_over(source)
    assert source.current() == old
    await _until(lambda: source.state()["last_error"])
    assert source.current() == old and source.state()["available"]
    runs = _runs(home)
    for _ in range(20):
        source.current()
        await asyncio.sleep(0)
    assert _runs(home) == runs


async def test_what_has_expired_is_not_used(keys, home):
    """A key that is over is none: who asks waits for the next."""
    _process(home, seconds=3600)
    source = keys()
    old = await _first(source)
    source._answer = source._answer._replace(expires=time.time() + 1)
    source._not_before = 0.0
    assert source.current() is None
    assert (await source.wait(30)) != old


async def test_a_refused_key_makes_the_next_call_wait_for_a_new_one(keys, home):
    """AWS says ExpiredToken: not the call that heard it, but the next has the new key."""
    _process(home)
    source = keys()
    old = await _first(source)
    source._not_before = 0.0
    source.rejected(old, "AWS says ExpiredTokenException")
    assert source.current() is None
    assert (await source.wait(30)).access == "AKIDPROCESS2"


async def test_refusals_do_not_start_a_process_each(keys, home):
    """A key that stays wrong is looked up once in a while; calls meanwhile go out with it and AWS answers."""
    _process(home)
    source = keys()
    key = await _first(source)
    for _ in range(10):
        source.rejected(key, "AWS says ExpiredTokenException")
    assert source.current() == key and _runs(home) == 1
    assert "ExpiredToken" in source.state()["last_error"]


async def test_edited_files_are_seen(keys, home):
    """Keys without an expiry are looked up again after some minutes, because tools rewrite the file."""
    _config(home, "[default]\naws_access_key_id = AKIDONE\naws_secret_access_key = a\n", "credentials")
    source = keys()
    old = await _first(source)
    _config(home, "[default]\naws_access_key_id = AKIDTWO\naws_secret_access_key = a\n", "credentials")
    source._answer = source._answer._replace(fetched=time.time() - aws_keys.STATIC_FOR - 1)
    source._not_before = 0.0
    assert source.current() == old
    await _until(lambda: source.current().access == "AKIDTWO")


async def test_an_unused_daemon_asks_for_nothing(keys, home, monkeypatch):
    """The timer renews only where there were calls; else a laptop would ask AWS for ever."""
    monkeypatch.setattr(aws_keys, "USED", -1.0)
    _process(home)
    source = keys()
    await _first(source)
    source._not_before = 0.0
    source._renew_if_used()
    assert source._renewing is None


async def test_closing_ends_the_looking(keys, home):
    """The daemon stops: no process of ours stays."""
    _process(home, more="import time; time.sleep(600)")
    source = keys()
    assert source.current() is None
    task = source._renewing
    await asyncio.sleep(0.1)
    await source.close()
    assert task.done()
    assert source.current() is None and source._renewing is None


def test_when_a_key_is_renewed():
    """A quarter of an hour before its end, or in the last quarter of a short life; plain keys after five minutes."""
    key = Key("a", "b")
    assert Answer(key, "x", 13_600.0, 10_000.0).renewal == 13_600 - 900
    assert Answer(key, "x", 10_400.0, 10_000.0).renewal == 10_300
    assert Answer(key, "x", 0.0, 10_000.0).renewal == 10_300


async def _nearly_over(source):
    """As if the last quarter of the key's life had begun, and the last look were long ago."""
    now = time.time()
    source._answer = source._answer._replace(fetched=now - 3000, expires=now + 600)
    source._not_before = 0.0


async def _until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)
