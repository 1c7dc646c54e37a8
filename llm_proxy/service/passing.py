"""How the process of the lanes is started: which sinks, with what the settings say of each.

Leaves out running it (`supervise`) and what it does (`lanes`).
"""

from __future__ import annotations

import os
import platform
import re
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit
from uuid import NAMESPACE_URL, uuid5

from llm_proxy import __version__, paths
from llm_proxy.lanes.options import DELETING, Options
from llm_proxy.service import state

if TYPE_CHECKING:
    from llm_proxy.settings import Settings

LOKI_PATH = "/loki/api/v1/push"  # where a URL does not say
SESSIONS = "sessions"  # the session logs, which the keeper writes
LOKI = "loki"
OTLP = "otlp"  # goes by its settings, listed or not
SHARED_INDEX, S3 = "shared-index", "s3"  # so do these


def sinks(settings: Settings) -> tuple[str, ...]:
    """Those that have lanes."""
    listed = dict.fromkeys(name for name in settings.sinks if name != SESSIONS)
    if settings.loki_enabled:
        listed[LOKI] = None
    if _sends_otlp(settings):
        listed[OTLP] = None
    elif settings.otlp_enabled == "false":
        listed.pop(OTLP, None)
    for name, place in ((SHARED_INDEX, settings.index_database_url), (S3, settings.bodies_s3_bucket)):
        listed.pop(name, None)
        if place:
            listed[name] = None
    return tuple(listed)


def name(settings: Settings, door: str) -> str:
    """Whose lanes: a door's run has sinks of its own, which get its calls and no others. Empty: everybody's."""
    if not door or not sinks(settings):
        return ""
    places = "\n".join((settings.daily_folder, settings.csv_file, settings.dataset_folder))
    return f"{door}-{sha256(places.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"


def of_journal(folder: str) -> str:
    """Whose lanes get what stands in a journal, by its folder's name: that of the lanes, or of a role, and a number."""
    lanes = folder.rpartition("-")[0]
    return lanes if "-" in lanes else ""


def deletions(settings: Settings, lanes: str) -> str:
    """The folder in which our gateway asks for conversations to be deleted; "" for those who are not asked."""
    return f"{paths.data_folder()}/gateway/deletions" if settings.gateway_enabled and not lanes else ""


def deleting(settings: Settings) -> tuple[str, ...]:
    """The sinks that delete by themselves. Of those of one's own it is told that what they have stays."""
    return tuple(name for name in sinks(settings) if name in DELETING)


def sent(settings: Settings) -> tuple[str, ...]:
    """In words, where calls go from where they cannot be deleted."""
    told = zip(sinks(settings), lines(settings), strict=True)
    return tuple(line for name, line in told if name not in DELETING)


def lines(settings: Settings) -> tuple[str, ...]:
    """What start-up says of each."""
    said = {
        "daily": f"recordings: {settings.daily_folder}/recordings-YYYY-MM-DD.jsonl",
        "csv": f"CSV: {settings.csv_file}",
        "dataset": f"dataset: {settings.dataset_folder}",
        LOKI: f"Loki: {_loki_place(settings)}",
        OTLP: f"OpenTelemetry: {_otlp_place(settings)}",
        SHARED_INDEX: f"shared index: {_host(settings.index_database_url)}, as {machine(settings)}",
        S3: f"copies of session files: {settings.bodies_s3_endpoint or 'S3'}, bucket {settings.bodies_s3_bucket}",
    }
    return tuple(said.get(name, f"sink of your own: {name}") for name in sinks(settings))


def warnings(settings: Settings) -> tuple[str, ...]:
    """What a person should know of sinks that cannot work; the daemon runs all the same."""
    if LOKI not in sinks(settings):
        return ()
    told = loki(settings)
    if not told["url"]:
        return ("Loki is switched on, but loki.url is empty: NOTHING IS SENT to Loki",)
    if told["auth_token"] and (told["username"] or told["password"]):
        return ("Loki is switched on, but has both loki.auth_token and a user's name: NOTHING IS SENT to Loki",)
    return ()


def options(settings: Settings, door: str = "") -> Options:
    told: dict[str, dict[str, Any]] = {
        "daily": {"folder": settings.daily_folder},
        "csv": {
            "file": settings.csv_file,
            "header": settings.csv_header,
            "columns": settings.csv_columns,
            "defuse": settings.csv_defuse,
        },
        "dataset": {
            "folder": settings.dataset_folder,
            "compress": settings.dataset_compress,
            "rotate": settings.dataset_rotate,
            "max_size": settings.dataset_max_size,
        },
        LOKI: loki(settings),
        OTLP: _otlp(settings, name(settings, door)),
        SHARED_INDEX: _shared_index(settings) if settings.index_database_url else {},
        S3: {
            "bucket": bucket(settings),
            "machine": machine(settings),
            "after": settings.bodies_s3_after,
            "state": paths.state_folder(),
        },
    }
    own = {name: dict(table) for name, table in settings.own_sinks}
    listed = tuple((name, told.get(name) or own.get(name, {})) for name in sinks(settings))
    return Options(
        state=paths.state_folder(),
        folder=settings.log_dir,
        sinks=listed,
        name=name(settings, door),
        deletions=deletions(settings, name(settings, door)),
    )


def machine(settings: Settings) -> str:
    """This machine's name in what machines share."""
    return settings.index_machine or re.sub(r"[^A-Za-z0-9._-]+", "-", platform.node())[:64].strip("._-") or "machine"


def bucket(settings: Settings) -> dict[str, str]:
    """The fields of `sinks.s3_client.Bucket`."""
    return {
        "name": settings.bodies_s3_bucket,
        "prefix": settings.bodies_s3_prefix,
        "endpoint": settings.bodies_s3_endpoint,
        "region": settings.bodies_s3_region,
        "access_key": settings.bodies_s3_access_key,
        "secret_key": settings.bodies_s3_secret_key,
    }


def _shared_index(settings: Settings) -> dict[str, Any]:
    from llm_proxy.index.bodies import key_of

    return {
        "url": settings.index_database_url,
        "machine": machine(settings),
        "address": settings.index_address,
        "key": key_of(state.secret(paths.state_folder())),
        "state": paths.state_folder(),
    }


def _host(url: str) -> str:
    """Without a password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def loki(settings: Settings) -> dict[str, Any]:
    """Credentials in the URL are taken out of it; those with a setting of their own win."""
    parts = urlsplit(settings.loki_url)
    place = parts._replace(netloc=parts.netloc.rpartition("@")[2])
    if place.netloc and place.path in ("", "/"):
        place = place._replace(path=LOKI_PATH)
    return {
        "url": place.geturl(),
        "auth_token": settings.loki_auth_token,
        "username": settings.loki_username or unquote(parts.username or ""),
        "password": settings.loki_password or unquote(parts.password or ""),
        "tenant": settings.loki_tenant,
        "ca_file": settings.loki_ca_file,
        "batch_size": settings.loki_batch_size,
        "max_batch_bytes": settings.loki_max_batch_bytes,
        "batch_wait": settings.loki_batch_wait,
        "retry_max": settings.loki_retry_max,
        "use_gzip": settings.loki_use_gzip,
        "environment": settings.loki_environment,
        "machine": settings.loki_machine,
        "max_line": settings.loki_max_line,
    }


def _loki_place(settings: Settings) -> str:
    parts = urlsplit(settings.loki_url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.netloc else "NOWHERE: loki.url is empty"


# --- OTLP: the standard variables are the daemon's own, and may have been set for other programs


def _sends_otlp(settings: Settings) -> bool:
    """By ours, else by the one standard variable that names a place; never by those that only say how."""
    if settings.otlp_enabled != "auto":
        return settings.otlp_enabled == "true"
    if settings.otlp_endpoint:
        return True
    place = re.match(r"https?://[^/?#]+", os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", ""))
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    # 4317 is where gRPC is spoken, which we do not speak.
    grpc = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") == "grpc" or (place is not None and place[0].endswith(":4317"))
    return place is not None and not disabled and not grpc


def _otlp_place(settings: Settings) -> str:
    """Without a path or a password, which may be secret."""
    variables = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    told = settings.otlp_endpoint or next(filter(None, map(os.environ.get, variables)), "http://localhost:4318")
    scheme, _, rest = told.partition("://")
    return f"{scheme}://{re.split('[/?#]', rest)[0].rpartition('@')[2]}"


def _otlp(settings: Settings, lanes: str) -> dict[str, Any]:
    asked = os.environ.get("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "").lower()
    by_variable = asked in ("true", "span_only", "span_and_event")
    return {
        "endpoint": settings.otlp_endpoint,
        "headers": settings.otlp_headers,
        "content": by_variable if settings.otlp_content == "auto" else settings.otlp_content == "true",
        "traces": settings.otlp_traces,
        "metrics": settings.otlp_metrics,
        "service_name": settings.otlp_service_name,
        "compression": settings.otlp_compression,
        "timeout": settings.otlp_timeout,
        "certificate": settings.otlp_certificate,
        "version": __version__,
        # Whose totals these are: they live in this folder.
        "instance": str(uuid5(NAMESPACE_URL, f"llm-proxy:{platform.node()}:{paths.state_folder()}:{lanes}")),
    }
