"""Credentials from AWS's standard chain, once, as one line of JSON on stdout: run as a process of its own.

`{"access", "secret", "token", "expires", "source"}`, `expires` in seconds since 1970 or null; or `{"error", "source"}`
in words for the user. botocore does the work, so whatever the AWS command line finds is found: environment, shared
files, SSO, assumed roles, processes, containers, instances. Where it is not installed, that command line is asked
itself. Leaves out keeping and renewing (`aws_keys`).
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from typing import Any

TIME_LIMIT = 60  # seconds for the whole chain; it may ask web services

INSTALL = (
    "AWS credentials are found by botocore or by AWS's command line, and neither is installed: put `aws` (version 2) "
    f"on the daemon's PATH, or pip install 'llm-proxy[bedrock]', here: {sys.executable} -m pip install botocore"
)
NOTHING = (
    "no AWS credentials were found; run `aws configure` or `aws sso login`, or set AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY where the daemon starts"
)
# What to do, by the name of botocore's error.
_ADVICE = {
    "ProfileNotFound": "bedrock.profile or AWS_PROFILE must name a profile of ~/.aws/config",
    "PartialCredentialsError": "an access key and its secret belong together",
    "ConfigParseError": "mend ~/.aws/config or ~/.aws/credentials",
    "SSOTokenLoadError": "run `aws sso login`",
    "UnauthorizedSSOTokenError": "run `aws sso login`",
    "TokenRetrievalError": "run `aws sso login`",
    "LoginRefreshRequired": "run `aws login`",
    "LoginTokenLoadError": "run `aws login`",
    "LoginInsufficientPermissions": "run `aws login`",
    "InvalidConfigError": "mend the profile in ~/.aws/config",
    "InfiniteLoopConfigError": "mend source_profile in ~/.aws/config",
    "MissingDependencyException": "pip install 'botocore[crt]'",
    "EOFError": "the profile wants an MFA code, and nobody can be asked here; use `aws sso login` or temporary keys",
}
_BY_SOURCE = {
    "custom-process": "run the profile's credential_process by hand and see what it says",
    "assume-role": "see role_arn and source_profile of the profile, and the role's trust policy",
    "container-role": "see AWS_CONTAINER_CREDENTIALS_FULL_URI and its token",
    "iam-role": "see the instance's role",
    "aws-cli": "`aws configure export-credentials` shows the same",
}


def main(arguments: list[str]) -> None:
    """Print the answer; `arguments` are a region and a profile, either may be empty."""
    signal.alarm(TIME_LIMIT)  # whoever started us may be gone
    logging.disable()
    region, profile = arguments
    print(json.dumps(find(region, profile or None)), flush=True)


def find(region: str, profile: str | None) -> dict[str, Any]:
    """The chain's answer, or what was in its way. `region` is where roles are assumed unless AWS's own files say so."""
    try:
        from botocore.session import Session
    except ImportError:
        return _by_command(profile)
    session, source = Session(profile=profile), ""
    try:
        if session.get_config_variable("region") is None:
            session.set_config_variable("region", region)
        for provider in session.get_component("credential_provider").providers:
            source = str(provider.METHOD)
            credentials = provider.load()
            if credentials is not None:
                source = str(credentials.method or source)
                break
        else:
            return {"error": NOTHING, "source": "none"}
        frozen = credentials.get_frozen_credentials()
        expires = getattr(credentials, "_expiry_time", None)
        return {
            "access": frozen.access_key,
            "secret": frozen.secret_key,
            "token": frozen.token or "",
            "expires": None if expires is None else expires.timestamp(),
            "source": source,
        }
    except Exception as error:  # a stranger's chain: files, processes and web services of all kinds
        return {"error": _in_words(error, source), "source": source}


def _by_command(profile: str | None) -> dict[str, Any]:
    """The same by `aws configure export-credentials`."""
    import shutil
    import subprocess
    from datetime import datetime

    program = shutil.which("aws")
    if program is None:
        return {"error": INSTALL, "source": "botocore"}
    command = [program, "configure", "export-credentials", "--format", "process"]
    try:
        done = subprocess.run(
            [*command, "--profile", profile] if profile else command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ValueError(done.stderr)
        found = json.loads(done.stdout)
        expires = found.get("Expiration")
        return {
            "access": found["AccessKeyId"],
            "secret": found["SecretAccessKey"],
            "token": found.get("SessionToken") or "",
            "expires": None if not expires else datetime.fromisoformat(expires).timestamp(),
            "source": "aws-cli",
        }
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        return {"error": _in_words(error, "aws-cli"), "source": "aws-cli"}


def _in_words(error: Exception, source: str) -> str:
    name = type(error).__name__
    advice = _ADVICE.get(name) or _BY_SOURCE.get(source) or "`aws sts get-caller-identity` shows more"
    said = " ".join(str(error).split())[:500] or name
    return f"AWS credentials ({source or 'configuration'}): {said.rstrip('.')}; {advice}"


if __name__ == "__main__":
    main(sys.argv[1:])
    os._exit(0)  # no thread of a stranger's holds up our end
