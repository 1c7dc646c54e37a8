"""The compose set-ups: files that the specification takes, services that find each other, and what each of them is given.

The gateway's set-up is lived through with this machine's PostgreSQL and Redis in the place of those of the images.
"""

import asyncio
import contextlib
import http.client
import json
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import anthropic
import pytest
import yaml
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer
from compose_spec import PyCompose

from llm_proxy.cli import usage
from llm_proxy.service.gateway import VARIABLES
from tests.fakeloki import FakeLoki
from tests.gatewaybed import PASSWORD, Gateway
from tests.grafana import laid_out
from tests.imagebed import DOCKERFILE, instructions
from tests.nginxbed import an_nginx, nginx_of
from tests.postgresbed import SERVER as POSTGRES
from tests.recorded import converse
from tests.redisbed import a_redis

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "packaging/compose"
DASHBOARD = json.loads((ROOT / "packaging/grafana/llm-proxy-loki.json").read_text())
TEAM = FOLDER / "gateway"
MACHINES = FOLDER / "gateway-team"
GIVEN = {"LLM_PROXY_LISTEN_TOKEN": "a-token-of-24-characters", "GRAFANA_PASSWORD": "a-password"}
TEAM_GIVEN = {"POSTGRES_PASSWORD": "a-password", "JWT_SECRET": "of-sessions", "ENCRYPTION_KEY": "of-keys"}
# What docs/loki.md gives as labels.
LABELS = frozenset(
    [
        "app",
        "provider",
        "environment",
        "machine",
        "log_type",
        "model",
        "stream",
        "has_tools",
        "status_bucket",
        "stop_reason",
        "ratelimit_status",
        "tool_name",
        "is_retry",
        "error_type",
        "transport",
    ]
)


class Missing(Exception):
    """A variable without which compose does not start."""


def compose(given=GIVEN, folder=FOLDER):
    """The folder's file as compose reads it: variables put in, anchors followed. Raises Missing."""

    def value(match):
        name, how, word = match.groups()
        if given.get(name):
            return given[name]
        if how == "?":
            raise Missing(f"{name} {word}")
        return word or ""

    text = (folder / "compose.yaml").read_text()
    return yaml.safe_load(re.sub(r"\$\{(\w+)(?::([-?])([^}]*))?\}", value, text))


SPEC = compose()
SERVICES = SPEC["services"]
TEAM_SPEC = compose(TEAM_GIVEN, TEAM)
MACHINES_SPEC = compose(TEAM_GIVEN, MACHINES)
_GATEWAYS = [(TEAM, TEAM_SPEC), (MACHINES, MACHINES_SPEC)]
ALL = pytest.mark.parametrize(("folder", "spec"), [(FOLDER, SPEC), *_GATEWAYS], ids=["loki", "gateway", "machines"])
GATEWAYS = pytest.mark.parametrize(("folder", "spec"), _GATEWAYS, ids=["gateway", "machines"])


# -- the file ------------------------------------------------------------------------------------------------------


def check(spec):
    """Raises ValueError where the specification's own types are not met."""
    return PyCompose.from_json(json.dumps(spec))


def test_the_specification_takes_it():
    """By the types that the specification has; the same check refuses a key, a duration and a condition that it has not."""
    assert check(SPEC).service_names() == list(SERVICES)
    assert check(TEAM_SPEC).service_names() == ["gateway", "postgres", "redis"]
    assert check(MACHINES_SPEC).service_names() == ["nginx", "gateway-1", "gateway-2", "postgres", "redis"]
    for place, key, value in (
        (SERVICES["loki"], "helthcheck", {}),
        (SERVICES["loki"]["healthcheck"], "interval", "soon"),
        (SERVICES["grafana"]["depends_on"]["loki"], "condition", "service_fine"),
    ):
        kept = dict(place)
        place[key] = value
        with pytest.raises(ValueError):
            check(SPEC)
        place.clear()
        place.update(kept)


@ALL
def test_it_does_not_start_without_its_secrets(folder, spec):
    """Compose says which variable is missing, and where it belongs."""
    given = GIVEN if folder == FOLDER else TEAM_GIVEN
    for name in given:
        with pytest.raises(Missing, match=rf"{name} is not set: copy \.env\.example to \.env"):
            compose({**given, name: ""}, folder)


def test_the_example_names_every_variable():
    """No other, none with a value that anybody could leave in; optional ones stand there with their defaults."""
    text, said = (FOLDER / "compose.yaml").read_text(), (FOLDER / ".env.example").read_text()
    used = dict(re.findall(r"\$\{(\w+)(?::-([^}]*))?", text))
    example = dict(re.findall(r"(?m)^#?([A-Z_]+)=(.*)$", said))
    assert example == used and {name for name, value in example.items() if not value} == set(GIVEN)
    assert re.findall(r"(?m)^([A-Z_]+)=", said) == list(GIVEN)


@ALL
def test_nothing_is_published_beyond_loopback(folder, spec):
    """And what asks nobody who they are not at all, nor has it a way out."""
    for name, service in spec["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
        assert service.get("privileged", False) is False and "network_mode" not in service
    assert spec["networks"]["inside"]["internal"] is True
    for name in {"loki", "prometheus", "postgres", "redis"} & set(spec["services"]):
        service = spec["services"][name]
        assert service["networks"] == ["inside"] and "ports" not in service


@ALL
def test_versions_are_pinned_and_every_service_is_checked(folder, spec):
    """All their numbers each (PostgreSQL has two), never `latest`; ours is built here and brings its check in the image."""
    for name, service in spec["services"].items():
        if "build" in service:
            build = service["build"]
            assert (folder / build["context"]).resolve() == ROOT and ROOT / build["dockerfile"] == DOCKERFILE
            assert "HEALTHCHECK" in dict(instructions(DOCKERFILE.read_text()))
            continue
        assert re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+|postgres:\d+\.\d+", service["image"]), name
        test = service["healthcheck"]["test"]
        assert test[0] == "CMD" and "curl" not in test, name
    for service in spec["services"].values():
        assert all("healthcheck" in spec["services"][waited] for waited in service.get("depends_on", ()))


def test_loki_is_not_waited_for():
    """What it misses is sent once it is there."""
    assert "depends_on" not in SERVICES["llm-proxy"]  # Loki's trouble is no reason not to carry


def mounts(service):
    """(source, target, mode) of each."""
    return [tuple([*volume.split(":"), "rw"][:3]) for volume in service.get("volumes", ())]


@ALL
def test_everything_that_is_mounted_exists(folder, spec):
    """Files of this repository, read-only; volumes that are declared, each of one service."""
    seen = []
    for name, service in spec["services"].items():
        for source, _, mode in mounts(service):
            if source.startswith("."):
                assert (folder / source).exists() and mode == "ro", (name, source)
            else:
                seen.append(source)
        assert set(service.get("networks", ())) <= set(spec["networks"])
        assert set(service.get("secrets", ())) <= set(spec.get("secrets", ()))
    assert sorted(seen) == sorted(spec["volumes"])
    image = dict(instructions(DOCKERFILE.read_text()))
    for ours in (service for service in spec["services"].values() if "build" in service):
        assert {target for _, target, _ in mounts(ours)} == set(json.loads(image["VOLUME"]))


def test_services_find_each_other_by_name():
    """Every URL in the set-up names a service of a network that both have, at the port it listens on."""
    ports = {"llm-proxy": 8080, "loki": 3100, "prometheus": 9090, "grafana": 3000}
    loki = yaml.safe_load((FOLDER / "loki/config.yaml").read_text())
    assert loki["server"]["http_listen_port"] == ports["loki"]
    assert f"EXPOSE {ports['llm-proxy']}" in DOCKERFILE.read_text()
    scraped = yaml.safe_load((FOLDER / "prometheus/prometheus.yml").read_text())["scrape_configs"]
    sources = yaml.safe_load((FOLDER / "grafana/provisioning/datasources/llm-proxy.yaml").read_text())["datasources"]
    links = [("prometheus", target) for job in scraped for one in job["static_configs"] for target in one["targets"]]
    links += [("grafana", source["url"].removeprefix("http://")) for source in sources]
    links += [("llm-proxy", re.search("//([^/]+)/", SERVICES["llm-proxy"]["environment"]["LLM_PROXY_LOKI_URL"])[1])]
    assert len(links) == 5
    for user, address in links:
        name, port = address.split(":")
        assert ports[name] == int(port)
        assert set(SERVICES[user]["networks"]) & set(SERVICES[name]["networks"]), (user, name)


def test_our_settings_there_are_settings_and_leave_time_to_stop(command):
    """Each name and value is taken; drain, record and Loki together stay below the grace period."""
    environment = SERVICES["llm-proxy"]["environment"]
    page = (ROOT / "docs/settings.md").read_text()
    for name in environment:
        assert f"Environment: `{name}`" in page, name
    grace = int(SERVICES["llm-proxy"]["stop_grace_period"].removesuffix("s"))
    assert int(environment["LLM_PROXY_DRAIN_TIMEOUT"]) + 4 + 10 < grace
    assert command("--env", env=environment).returncode == 0


# -- a team's gateway ----------------------------------------------------------------------------------------------


def example(folder=TEAM):
    """Its .env.example: what stands there, and what is only said that it might."""
    said = (folder / ".env.example").read_text()
    return dict(re.findall(r"(?m)^([A-Z_]+)=(.*)$", said)), dict(re.findall(r"(?m)^#([A-Z_]+)=(.*)$", said))


@GATEWAYS
def test_the_gateways_example_is_taken_as_a_whole(command, environ, tmp_path, folder, spec):
    """Each line is a variable of the gateway's own, a setting, or one that the file uses; every value is taken."""
    stands, might = example(folder)
    text, page = (folder / "compose.yaml").read_text(), (ROOT / "docs/settings.md").read_text()
    used = set(re.findall(r"\$\{(\w+)", text))
    known = used | set(VARIABLES) | {"OLD_ENCRYPTION_KEYS"} | set(re.findall(r"Environment: `(\w+)`", page))
    assert {*stands, *might} <= known and used <= {*stands, *might}
    assert {name for name, value in stands.items() if not value} == set(TEAM_GIVEN)
    assert might["GATEWAY_PUBLISHED_PORT"] == re.search(r"GATEWAY_PUBLISHED_PORT:-(\d+)", text)[1]
    given = {**stands, **might, **TEAM_GIVEN}
    given["DATABASE_URL"] = f"sqlite:///{tmp_path}/gateway.db"  # of the rest `check` takes no connection
    with a_redis(tmp_path) as redis:
        done = command("gateway", "check", env=given | {"REDIS_URL": redis.url})
    assert "WRONG" not in done.stdout and "Traceback" not in done.stderr and done.returncode == 0, done


def gateways_of(spec):
    return [service for name, service in spec["services"].items() if name.startswith("gateway")]


@GATEWAYS
def test_the_gateway_finds_its_stores_by_name(folder, spec):
    """PostgreSQL with the user, password and database that it is made with; Redis; nothing secret in a command."""
    stands, _ = example(folder)
    database, services = stands["DATABASE_URL"].replace("${POSTGRES_PASSWORD}", "a-password"), spec["services"]
    made = services["postgres"]["environment"]
    assert database == (
        f"postgresql://{made['POSTGRES_USER']}:{made['POSTGRES_PASSWORD']}@postgres:5432/{made['POSTGRES_DB']}"
    )
    assert stands["REDIS_URL"] == "redis://redis:6379/0"
    told = json.dumps([[one.get("command"), one.get("healthcheck")] for one in services.values()])
    assert not [secret for secret in TEAM_GIVEN.values() if secret in told]
    for gateway in gateways_of(spec):
        assert gateway["env_file"] == [".env"] and set(gateway["networks"]) == {"outside", "inside"}
        assert gateway["command"] == ["gateway"] and "gateway" in usage.about(["all"])
        grace = int(gateway["stop_grace_period"].removesuffix("s"))
        delay = int(gateway["environment"].get("LLM_PROXY_GATEWAY_DRAIN_DELAY", 0))
        assert delay + int(gateway["environment"]["LLM_PROXY_DRAIN_TIMEOUT"]) + 4 + 10 < grace


@GATEWAYS
def test_nothing_of_the_gateways_set_up_is_root_or_writes_but_where_it_says(folder, spec):
    """A user, a root file system to read from, and volumes or memory for whatever is written."""
    image = dict(instructions(DOCKERFILE.read_text()))
    for name, service in spec["services"].items():
        assert service["read_only"] is True and service["cap_drop"] == ["ALL"], name
        assert (service.get("user") or image["USER"]).split(":")[0] not in ("0", "root"), name
        assert service["tmpfs"], name


def test_nginx_finds_the_gateways_by_name():
    """Each of them, at the port that it listens on, and no other; what they are built of is one image."""
    upstream = (MACHINES / "nginx/gateways.conf").read_text()
    names = re.findall(r"(?m)^ +server ([\w-]+):8080 ", upstream)
    assert names == [name for name in MACHINES_SPEC["services"] if name.startswith("gateway")]
    assert "EXPOSE 8080" in DOCKERFILE.read_text()
    one, two = gateways_of(MACHINES_SPEC)
    assert {name: one[name] for name in one if two[name] != one[name]}.keys() == {"hostname", "volumes"}
    assert MACHINES_SPEC["services"]["nginx"]["ports"] == ["127.0.0.1:8080:8080"]


def test_nginx_reaches_nothing_but_the_gateways():
    """It hears the world: Redis asks nobody who he is."""
    inside = {name for name, one in MACHINES_SPEC["services"].items() if "inside" in one["networks"]}
    assert inside == {"gateway-1", "gateway-2", "postgres", "redis"}
    assert MACHINES_SPEC["services"]["nginx"]["networks"] == ["outside"]


async def test_nginx_passes_on_what_the_server_before_it_says_of_who_comes(tmp_path):
    """The last address, which that server saw itself, and TLS; without such a server it is what nginx sees."""

    async def echo(request):
        return web.json_response([request.headers.getall(f"X-Forwarded-{name}") for name in ("For", "Proto")])

    app = web.Application()
    app.router.add_get("/", echo)
    async with TestServer(app) as server, ClientSession() as client:
        with an_nginx(tmp_path / "nginx", [server.port]) as nginx:

            async def seen(**told):
                headers = {f"X-Forwarded-{name}": value for name, value in told.items()}
                async with client.get(f"http://127.0.0.1:{nginx.port}/", headers=headers) as answer:
                    return await answer.json()

            assert await seen(For="6.6.6.6, 203.0.113.7", Proto="https") == [["203.0.113.7"], ["https"]]
            assert await seen(For="203.0.113.8", Proto="x") == [["203.0.113.8"], ["http"]]
            assert await seen() == [["127.0.0.1"], ["http"]]


def test_nginx_takes_its_configuration(tmp_path):
    """`nginx -t`, with addresses in the place of Docker's names."""
    done = subprocess.run(nginx_of(tmp_path, [8081, 8082], "-t"), capture_output=True, text=True)
    assert done.returncode == 0 and "test is successful" in done.stderr and "[warn]" not in done.stderr, done


@GATEWAYS
async def test_the_gateway_lives_with_its_set_up(start, tmp_path, folder, spec):
    """As in the container: on all addresses, with the example's lines. The first account, a key, a health check; all else is closed."""
    stands, _ = example(folder)
    image = dict(pair.split("=", 1) for pair in re.findall(r"LLM_PROXY_HOST=\S+", DOCKERFILE.read_text()))
    assert image == {"LLM_PROXY_HOST": "0.0.0.0"}
    database = await POSTGRES.create()
    try:
        with a_redis(tmp_path) as redis:
            given = {**stands, **TEAM_GIVEN, **image, "DATABASE_URL": POSTGRES.url(database), "REDIS_URL": redis.url}
            await asyncio.to_thread(_life, start, given | {"LLM_PROXY_DRAIN_TIMEOUT": "25"}, gateways_of(spec)[0])
    finally:
        await POSTGRES.drop(database)


def _life(start, given, service):
    gateway = Gateway(start("gateway", "--port", "0", env=given)).wait()
    words = [
        "-I",
        "-S",
        str(ROOT / "packaging/healthcheck.py"),
        *service["healthcheck"]["test"][5:],
    ]
    told = subprocess.run(
        [sys.executable, *words], env={"LLM_PROXY_PORT": str(gateway.port)}, capture_output=True, text=True
    )
    assert (told.returncode, told.stdout) == (0, f"{words[-1]} answers 200\n")
    assert words[-1] in ("/health/gateway", "/health/ready")
    key = gateway.key()  # the first to sign up is the administrator, whatever the setting
    assert gateway.want(200, "GET", "/v1/models", token=key)["data"] == []
    second = {"email": "b@example.com", "password": PASSWORD}
    assert gateway.ask("POST", "/auth/signup", second).status == 403  # by invitation
    invitation = gateway.want(201, "POST", "/manage/invitations", token=gateway.admin)["token"]
    gateway.want(201, "POST", "/auth/signup", {**second, "invitation": invitation})
    assert gateway.ask("GET", "/v1/models").status == 401
    for method, path in (
        ("POST", "/anthropic/api.anthropic.com/v1/messages"),
        ("POST", "/v1/images/generations"),
        ("GET", "/metrics"),
        ("GET", "/http/127.0.0.1:1/"),
    ):
        assert gateway.ask(method, path, b"{}" if method == "POST" else None).status in (403, 404), path
    assert gateway.daemon.stop() == 0


# -- Loki ----------------------------------------------------------------------------------------------------------


def test_loki_keeps_what_we_send():
    """A schema with structured metadata, room for our labels and lines, history taken, everything on the volume."""
    config = yaml.safe_load((FOLDER / "loki/config.yaml").read_text())
    limits = config["limits_config"]
    (schema,) = config["schema_config"]["configs"]
    assert schema["store"] == "tsdb" and schema["schema"] == "v13" and schema["index"]["period"] == "24h"
    assert limits["allow_structured_metadata"] and limits["max_label_names_per_series"] >= len(LABELS) == 15
    assert not limits["reject_old_samples"] and config["auth_enabled"] is False
    assert config["compactor"]["retention_enabled"] and config["compactor"]["delete_request_store"] == "filesystem"
    (volume,) = [target for source, target, _ in mounts(SERVICES["loki"]) if source == "loki"]
    places = [config["common"]["path_prefix"], config["compactor"]["working_directory"]]
    places += config["common"]["storage"]["filesystem"].values()
    assert all(place == volume or place.startswith(f"{volume}/") for place in places)


def queries():
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


def labels_of(expression):
    """Names in the braces and behind `by`."""
    names = {
        name for inside in re.findall(r"\{([^}]*)\}", expression) for name in re.findall(r"(\w+)(?:=~|!=|=)", inside)
    }
    return names | {name.strip() for inside in re.findall(r"by \(([^)]*)\)", expression) for name in inside.split(",")}


def fields_of(expression):
    """(name it gets, name in the line) of `json` stages."""
    return re.findall(r'\| json (\w+)="(\w+)"', expression)


def test_the_dashboard_asks_for_what_is_sent(start, provider):
    """Calls of three SDKs and a tool that failed, with the settings of the set-up: each label and field is one of those."""
    with FakeLoki() as loki:
        environment = SERVICES["llm-proxy"]["environment"] | {"LLM_PROXY_LOKI_URL": loki.url}
        del environment["LLM_PROXY_LISTEN_TOKEN"]
        daemon = start("--port", "0", env=environment)
        converse(daemon, provider.port)
        base = f"{daemon.url}/anthropic/127.0.0.1:{provider.port}"
        with anthropic.Anthropic(base_url=base, api_key="k", max_retries=0) as client:
            use = {"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {}}
            result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "no", "is_error": True}
            said = [("user", "do it"), ("assistant", [use]), ("user", [result])]
            client.messages.create(
                model="claude-x", max_tokens=9, messages=[{"role": role, "content": content} for role, content in said]
            )
        deadline = time.monotonic() + 60
        while len([one for one in loki.entries() if one.json["type"] == "turn_end"]) < 10:
            assert time.monotonic() < deadline, [one.json["type"] for one in loki.entries()]
            time.sleep(0.1)
        entries = loki.entries()
    sent = {name for one in entries for name, _ in one.labels}
    assert sent <= LABELS and {"status_bucket", "stop_reason", "tool_name", "error_type", "model"} <= sent
    assert {dict(one.labels)["environment"] for one in entries} == {"development"}
    kinds = {one.json["type"]: set(one.json) for one in entries}
    for title, expression in queries():
        assert labels_of(expression) <= LABELS, title
        asked = re.findall(r'log_type="(\w+)"', expression)
        assert set(asked) <= {*kinds, "tool_call"}, title
        for _, field in fields_of(expression):
            assert all(field in kinds[kind] for kind in asked), (title, field)


def test_the_dashboard_is_one_that_grafana_takes():
    """As the other one: places that do not overlap, ids once each, the data source left to choose, variables that are used."""
    assert DASHBOARD["id"] is None and DASHBOARD["uid"] == "llm-proxy-loki"
    panels = DASHBOARD["panels"]
    laid_out(panels)
    for panel in panels:
        for target in panel.get("targets", ()):
            assert target["datasource"] == panel["datasource"] == {"type": "loki", "uid": "${datasource}"}
    source, *variables = DASHBOARD["templating"]["list"]
    assert (source["type"], source["query"]) == ("datasource", "loki")
    used = {name for _, expression in queries() for name in re.findall(r"\$([a-z]\w*)", expression)}
    assert used == {variable["name"] for variable in variables}
    for variable in variables:
        assert variable["query"]["label"] in LABELS and variable["query"]["stream"] == '{app="llm-proxy"}'


def test_every_query_is_whole():
    """Braces and brackets close, a range stands where a range is asked for, and stages come in an order that LogQL has."""
    for title, expression in queries():
        depth = []
        for sign in re.sub(r'"[^"]*"', "", expression):
            if sign in "({[":
                depth.append(sign)
            elif sign in ")}]":
                assert depth and depth.pop() + sign in ("()", "{}", "[]"), title
        assert not depth, title
        counted = len(re.findall(r"_over_time\(", expression))
        assert len(re.findall(r"\[\$__(?:range|auto)\]\)", expression)) == counted, title
        assert ("unwrap" in expression) == ("sum_over_time" in expression), title
        selector = re.search(r"\{([^}]*)\}", expression)[1]
        assert 'app="llm-proxy"' in selector and len(re.split(r'",\s*', selector)) >= 4, title


# -- Grafana and Prometheus ----------------------------------------------------------------------------------------


def test_grafana_finds_sources_and_dashboards():
    """Each dashboard's kind of source is there, in the folder that the provider names, and the home page is one of them."""
    provisioning = FOLDER / "grafana/provisioning"
    sources = yaml.safe_load((provisioning / "datasources/llm-proxy.yaml").read_text())
    assert sources["apiVersion"] == 1 and {one["type"]: one["uid"] for one in sources["datasources"]} == {
        "prometheus": "prometheus",
        "loki": "loki",
    }
    assert [one["isDefault"] for one in sources["datasources"] if "isDefault" in one] == [True]
    (provider,) = yaml.safe_load((provisioning / "dashboards/llm-proxy.yaml").read_text())["providers"]
    targets = [target for source, target, _ in mounts(SERVICES["grafana"]) if source.endswith(".json")]
    assert len(targets) == len(list((ROOT / "packaging/grafana").glob("*.json"))) == 3
    assert all(target.startswith(provider["options"]["path"] + "/") for target in targets)
    assert SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] in targets


@contextlib.contextmanager
def prometheus(folder, port):
    """The one of the set-up: its file, rules and secret at places of this test, and names as compose would resolve them."""
    config = yaml.safe_load((FOLDER / "prometheus/prometheus.yml").read_text())
    config["global"] = dict.fromkeys(config["global"], "500ms")
    (ours,) = [job for job in config["scrape_configs"] if job["job_name"] == "llm-proxy"]
    assert config["rule_files"] == ["alerts.yml"]
    config["rule_files"] = [str(ROOT / "packaging/grafana/alerts.yml")]
    assert ours["authorization"]["credentials_file"] == f"/run/secrets/{SERVICES['prometheus']['secrets'][0]}"
    secret = folder / "token"
    secret.write_text(GIVEN[SPEC["secrets"]["llm_proxy_token"]["environment"]])
    ours["authorization"]["credentials_file"] = str(secret)
    ours["static_configs"] = [{"targets": [f"llm-proxy:{port}"]}]
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    checked = subprocess.run(["promtool", "check", "config", str(file)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    hosts = folder / "hosts"
    hosts.write_text("127.0.0.1 localhost llm-proxy loki\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        own = free.getsockname()[1]
    command = ["prometheus", f"--config.file={file}", f"--storage.tsdb.path={folder}/data"]
    process = subprocess.Popen(
        [
            *("unshare", "--mount", "sh", "-c", f'mount --bind {hosts} /etc/hosts && exec "$@"', "sh"),
            *(*command, f"--web.listen-address=127.0.0.1:{own}"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
    )
    try:
        yield own
    finally:
        process.terminate()
        process.wait(20)


def targets_of(port):
    """{job: (health, last error)}; empty while Prometheus is starting."""
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(link), contextlib.suppress(OSError):
        link.request("GET", "/api/v1/targets")
        answer = link.getresponse()
        if answer.status == 200:
            active = json.loads(answer.read())["data"]["activeTargets"]
            return {one["labels"]["job"]: (one["health"], one["lastError"]) for one in active}
    return {}


@pytest.mark.parametrize(
    ("token", "health"), [(GIVEN["LLM_PROXY_LISTEN_TOKEN"], "up"), ("another-one-of-them", "down")]
)
def test_a_real_prometheus_is_let_in_with_the_secret(start, tmp_path, token, health):
    """Under the name that other containers use, with the token that both were given, and not with another."""
    daemon = start("--port", "0", "--host", "0.0.0.0", env={"LLM_PROXY_LISTEN_TOKEN": token})
    assert daemon.port
    with prometheus(tmp_path, daemon.port) as port:
        deadline = time.monotonic() + 60
        while (found := targets_of(port).get("llm-proxy", ("unknown", "")))[0] == "unknown":
            assert time.monotonic() < deadline, found
            time.sleep(0.05)
    assert found[0] == health and ("403" in found[1]) == (health == "down"), found
