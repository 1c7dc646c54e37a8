"""The command line, written once: every command, option and argument, what each takes and what it says.

The parsers, `--help`, the completions, the man page and the list in docs/commands.md are made of these tables. Leaves
out all of that, and what the commands do; it imports nothing of theirs, so that asking for help stays quick.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

# What a shell completes, where that is no list of words. "command": the words from there on are a command line;
# "topic": what `llm-proxy help` knows.
Kind = Literal["", "file", "folder", "command", "topic"]

CLIENTS = ("codex", "claude", "gemini", "opencode", "aider")
FORMATS = ("jsonl", "taco", "csv", "har", "markdown", "parquet", "dataset")
STYLES = ("messages", "reasoning", "sharegpt", "openai-finetune")
SUMS = ("total", "day", "model", "project", "session", "provider")
LOGINS = ("api-key", "chatgpt")
SHELLS = ("sh", "bash", "zsh", "fish")
COMPLETED = ("bash", "zsh", "fish")

_PROVIDERS = ("anthropic", "openai", "gemini", "bedrock", "ollama")
_TIMES = ("today", "yesterday", "24h", "7d", "30d")
_STATUSES = ("404", "429", "4xx", "5xx", "none")


class Option(NamedTuple):
    """A flag. Without `value`, the name of what it takes, it is a switch."""

    names: tuple[str, ...]  # "-p", "--port"; the last is the one that messages use
    says: str
    value: str = ""
    choices: tuple[str, ...] = ()  # all it takes
    hints: tuple[str, ...] = ()  # some of what it takes
    kind: Kind = ""
    default: str | int | None = None
    number: bool = False
    many: bool = False
    dest: str = ""  # its name in what was parsed, where it is not its own

    @property
    def name(self) -> str:
        return self.names[-1]


class Argument(NamedTuple):
    """A word that is no flag. `times` is as in argparse: "" one, "?" one or none, "*" any number."""

    name: str
    says: str
    times: Literal["", "?", "*"] = ""
    hints: tuple[str, ...] = ()
    kind: Kind = ""
    default: str | None = None
    dest: str = ""  # its name in what was parsed, where it is not its own in small letters


class Command(NamedTuple):
    """What can be asked for. `name` is its words; or a flag, which `flag` is; or empty: what a bare `llm-proxy` does.

    Commands that begin with the same word are forms of one, as `prices show` and `prices update` are of `prices`.
    """

    name: str
    group: str  # of GROUPS
    says: str
    options: tuple[Option, ...] = ()
    arguments: tuple[Argument, ...] = ()
    more: str = ""
    examples: tuple[str, ...] = ()
    flag: Option | None = None

    @property
    def word(self) -> str:
        return self.name.partition(" ")[0]


GROUPS = {
    "run": "Run it",
    "clients": "Point clients at it",
    "look": "Look at the record",
    "care": "Look after it",
    "help": "Help",
}

HELP = Option(("-h", "--help"), "say what this command does and takes")
_JSON = Option(("--json",), "the answer as JSON")
_DRY_RUN = Option(("--dry-run",), "only say what would be done")
_UTC = Option(("--utc",), "times and days in UTC, not in local time")
_CONFIG = Option(
    ("--config",), "configuration, .toml, .json or .yaml (~/.config/llm-proxy/config.toml)", "FILE", kind="file"
)
_LOG_DIR = Option(("--log-dir",), "folder of the session logs (~/.llm-provider-logs)", "DIR", kind="folder")
_PORT = Option(("-p", "--port"), "port to listen on; 0 takes a free one (8080)", "N")
_HOST = Option(("--host",), "address to listen on (127.0.0.1)", "ADDRESS")
_FROM = Option(("--from",), "calls that began then or later", "TIME", hints=_TIMES, default="", dest="from_")
_TO = Option(("--to",), "calls that began before, a day included", "TIME", hints=_TIMES, default="", dest="to_")
_PROVIDER = Option(("--provider",), "calls to this provider", "NAME", hints=_PROVIDERS, default="", dest="provider_")
_RECORDINGS = Option(
    ("--recordings",), "a folder of Taco's recordings, read as it is", "DIR", kind="folder", default="./recordings"
)

_RUNNING = (_PORT, _HOST, _LOG_DIR, _CONFIG)
_CHANGING = (_DRY_RUN, Option(("--json",), "each step as JSON, at the end"))
_ASKING = (_JSON, _LOG_DIR._replace(default=""), _CONFIG)
FILTERS = (
    _FROM,
    _TO,
    _PROVIDER,
    Option(("--model",), "calls whose model has this in its name", "TEXT", default="", dest="model_"),
    Option(("--project",), "calls whose project has this in its name", "TEXT", default="", dest="project_"),
    Option(
        ("--user",), "calls of this user of the gateway, by the whole e-mail address", "EMAIL", default="", dest="user_"
    ),
    Option(("--session",), "calls of the session whose id begins so", "ID", default="", dest="session_"),
    Option(("--status",), "404, a class as 5xx, or none", "STATUS", hints=_STATUSES, default="", dest="status_"),
    Option(("--errors",), "calls that went wrong"),
    _UTC,
)
_LIMIT = Option(("--limit",), "so many at most", "N", number=True)
_TIMES_ARE = "A TIME is a day (2026-01-31), a time (2026-01-31T08:00), today, yesterday, or a span back: 90m, 24h, 7d."


def _flag(
    names: str,
    group: str,
    says: str,
    options: tuple[Option, ...] = (),
    *,
    value: str = "",
    more: str = "",
    examples: tuple[str, ...] = (),
    number: bool = False,
    many: bool = False,
) -> Command:
    """A command that is a flag; `names` of it, the long one last."""
    flag = Option(tuple(names.split()), says, value, number=number, many=many)
    return Command(flag.name, group, says, options, (), more, examples, flag)


COMMANDS = (
    # --- run
    Command(
        "",
        "run",
        "run in this terminal, on 127.0.0.1:8080, until Ctrl-C",
        _RUNNING,
        more="Every setting can also stand in the configuration file, or in the environment as LLM_PROXY_...",
        examples=("llm-proxy", "llm-proxy --port 0 --log-dir ./logs", "BEDROCK_REGION=us-west-2 llm-proxy --port 9999"),
    ),
    _flag(
        "--service",
        "run",
        "run as this user's one daemon, on a port that stays the same",
        (*_RUNNING, Option(("--passthrough",), "safe mode: carry calls and record nothing")),
        more="What --setup has started; nobody needs to type it.",
    ),
    _flag(
        "--setup",
        "run",
        "start it at every login, and point new shells at it",
        (
            Option(("--no-shell",), "leave the shells' files alone"),
            Option(("--socket-activation",), "let systemd hold the port, so that no connection is ever refused"),
            *_CHANGING,
        ),
        more="It may be repeated, and then mends what it did.",
        examples=("llm-proxy --setup --dry-run", "llm-proxy --setup"),
    ),
    _flag(
        "--status",
        "run",
        "what runs, whether it records, and where the logs are",
        (_JSON, _CONFIG, _LOG_DIR),
        more="Exit status 1 where no daemon runs.",
        examples=("llm-proxy --status", "llm-proxy --status --json"),
    ),
    Command(
        "doctor",
        "run",
        "what is wrong on this machine, and what mends it",
        (Option(("--online",), "ask the providers too"), _JSON),
        more="Exit status 1 where something is wrong.",
        examples=("llm-proxy doctor --online",),
    ),
    Command(
        "upgrade",
        "run",
        "take the newest release, or go back to the one before",
        (
            Option(("--version",), "that release, newer or older", "V"),
            Option(("--check",), "only tell whether there is a newer one"),
            Option(("--rollback",), "back to the version before, which is kept"),
            _DRY_RUN,
        ),
        more="What install.sh has installed; calls that run end as they would. Exit status: that of install.sh; with"
        " --check 100 where there is a newer release, 0 where there is none.",
        examples=("llm-proxy upgrade --check", "llm-proxy upgrade", "llm-proxy upgrade --rollback"),
    ),
    _flag(
        "--uninstall",
        "run",
        "undo what --setup did, remove the program; logs stay",
        (Option(("--purge",), "also delete logs, configuration and the gateway's data"), *_CHANGING),
        examples=("llm-proxy --uninstall --dry-run", "llm-proxy --uninstall"),
    ),
    _flag("--setup-shell", "run", "only point new shells at it", _CHANGING),
    _flag("--unsetup-shell", "run", "take its lines out of the shells' files again", _CHANGING),
    _flag(
        "--announce-socket",
        "run",
        "a port that systemd holds for it; 0: no longer",
        value="PORT",
        number=True,
        more="In the units that --setup writes; nobody needs to type it.",
    ),
    _flag(
        "-t --target-url",
        "run",
        "one upstream for all paths, and a CSV file of the calls",
        (
            Option(("-a", "--add-header"), '"Name: Value", goes with every call; may be repeated', "TEXT", many=True),
            Option(("-l", "--log-file"), "the CSV file (log.csv)", "FILE", kind="file"),
            Option(("-T", "--timeout"), "of silence, after which a call is given up (30); 0: never", "MINUTES"),
            Option(("--csv-header",), "begin the file with the names of the columns"),
            Option(("--csv-columns",), "other columns; docs/settings.md lists them", "A,B"),
            Option(("--csv-defuse",), "keep spreadsheets from taking cells for formulas"),
            *_RUNNING,
        ),
        value="URL",
        more="As HTTP LLM Proxy Stream does. Calls go behind the path of the URL.",
        examples=("llm-proxy --target-url https://api.openai.com/v1 -l calls.csv",),
    ),
    Command(
        "start",
        "run",
        "run as Taco does: on port 4567, with daily recordings",
        (
            Option(("--port",), "port to listen on (4567)", "N"),
            Option(("--config",), "Taco's configuration (.json); its TACO_... hold as well", "FILE", kind="file"),
            _HOST,
            _LOG_DIR,
        ),
        examples=("llm-proxy start --port 4567 --config config.json",),
    ),
    Command(
        "gateway",
        "run",
        "serve a team: one API, with keys, aliases, fallbacks, limits",
        _RUNNING,
        more="The first account that signs up is the administrator. DATABASE_URL and REDIS_URL name a PostgreSQL and a"
        " Redis that several machines share; JWT_SECRET and ENCRYPTION_KEY are made on this machine where they are not"
        " set. docs/gateway.md tells how to begin.",
        examples=("llm-proxy gateway --port 8080", "DATABASE_URL=postgresql://... llm-proxy gateway --host 0.0.0.0"),
    ),
    Command(
        "gateway check",
        "care",
        "whether the gateway's store, keys and Redis are as they must be",
        (_JSON, _CONFIG),
        more="Exit status 1 where something is wrong.",
        examples=("llm-proxy gateway check",),
    ),
    Command("gateway migrate", "care", "bring the gateway's store to this version", (_CONFIG,)),
    Command(
        "gateway rotate-key",
        "care",
        "encrypt the providers' keys anew, with a new key",
        (_JSON, _CONFIG),
        more="Where ENCRYPTION_KEY is set, it is the new one and OLD_ENCRYPTION_KEYS those before. Otherwise one is"
        " made. It may be repeated, and goes on where it was broken off.",
        examples=("llm-proxy gateway rotate-key",),
    ),
    Command(
        "gateway import",
        "care",
        "take over what a TokenTracer has in its database",
        (
            Option(("--encryption-key",), "a file with TokenTracer's ENCRYPTION_KEY", "FILE", kind="file"),
            Option(
                ("--jwt-secret",), "a file with its JWT_SECRET, so that its keys go on working", "FILE", kind="file"
            ),
            _DRY_RUN,
            _JSON,
            _CONFIG,
        ),
        (Argument("URL", "its database: postgresql://..."),),
        more="Without the files, this gateway's own secrets are taken to be TokenTracer's. Nothing is changed there,"
        " and a second run adds nothing.",
        examples=("llm-proxy gateway import postgresql://localhost/tokentracer --dry-run",),
    ),
    # --- clients
    _flag(
        "--env",
        "clients",
        "lines that point a shell's LLM clients at the daemon",
        (
            Option(("--shell",), "follow the daemon at each prompt too, but for sh", "NAME", choices=SHELLS),
            Option(("--unset",), "lines that undo it"),
            Option(("--bedrock",), "instead, what points Claude Code at AWS Bedrock through it"),
        ),
        more="With --shell, variables that point at a daemon that is gone are unset. LLM_PROXY_NO_HOOK=1 leaves the"
        " prompt alone, NO_LLM_PROXY=1 the whole shell. Without a daemon it prints nothing, and always exits with 0.",
        examples=('eval "$(llm-proxy --env)"', "llm-proxy --env --shell fish | source"),
    ),
    Command(
        "run",
        "clients",
        "run one command through it",
        arguments=(Argument("-- COMMAND", "and its arguments", "*", kind="command"),),
        more="Where no daemon runs, the command asks the providers directly.",
        examples=("llm-proxy run -- claude", "NO_LLM_PROXY=1 llm-proxy run -- claude"),
    ),
    Command(
        "attach",
        "clients",
        "write it into clients' own configuration, or list them",
        (
            Option(("--login",), "how Codex is logged in; seen from its files by default", "KIND", LOGINS, default=""),
            _DRY_RUN,
            _JSON,
        ),
        (Argument("CLIENT", f"{', '.join(CLIENTS)}; without one: list them", "*", CLIENTS, dest="names"),),
        examples=("llm-proxy attach", "llm-proxy attach codex --dry-run"),
    ),
    Command(
        "detach",
        "clients",
        "give clients their own configuration back",
        (Option(("--all",), "every client that is attached"), _DRY_RUN, _JSON),
        (Argument("CLIENT", ", ".join(CLIENTS), "*", CLIENTS, dest="names"),),
        examples=("llm-proxy detach codex", "llm-proxy detach --all"),
    ),
    # --- look
    Command(
        "explore",
        "look",
        "open the record in a browser, live",
        (
            Option(("--port",), "serve an explorer of its own on this port", "N"),
            Option(("--print",), "only tell the address", dest="print_only"),
            _LOG_DIR,
            _CONFIG,
        ),
        more="Where no daemon runs, it serves one of its own until Ctrl-C.",
        examples=("llm-proxy explore", "llm-proxy explore --print"),
    ),
    _flag(
        "--explore",
        "look",
        "the same as explore",
        (Option(("--explore-port",), "the same as explore --port", "N"), _LOG_DIR, _CONFIG),
    ),
    Command(
        "sessions",
        "look",
        "conversations, the one used last first",
        (*FILTERS, _LIMIT._replace(default=50), *_ASKING),
        more=f"Forks and sub-agents stand under the one they came from. {_TIMES_ARE}",
        examples=("llm-proxy sessions --from 7d --project ledger",),
    ),
    Command(
        "view",
        "look",
        "a conversation, or a call",
        (Option(("--raw",), "the bodies as they were"), _UTC, *_ASKING),
        (Argument("ID", "the beginning of its id, or last", "?", ("last",), default="last"),),
        examples=("llm-proxy view", "llm-proxy view 20260131T0800 --raw"),
    ),
    Command(
        "view --recordings",
        "look",
        "one of Taco's recordings",
        (_RECORDINGS, _JSON),
        (Argument("ID", "the beginning of its id; without one: the newest", "?", default=""),),
    ),
    Command(
        "search",
        "look",
        "messages that hold all the words",
        (*FILTERS, _LIMIT._replace(default=20), *_ASKING),
        (Argument("WORDS", '"a phrase", begin*, -without, and filters such as role:tool', "*"),),
        more=f"Exit status 1 where nothing is found. {_TIMES_ARE}",
        examples=("llm-proxy search timeout", "llm-proxy search '\"hash seed\" project:ledger -role:tool'"),
    ),
    Command(
        "tail",
        "look",
        "calls as they begin and end",
        (
            Option(("-n", "--lines"), "begin with the last N (10)", "N", number=True, default=10),
            *FILTERS,
            *_ASKING,
        ),
        examples=("llm-proxy tail --errors",),
    ),
    Command(
        "stats",
        "look",
        "requests, errors, latency, tokens, cost",
        (Option(("--by",), "a row for each", "WHAT", SUMS, default="total"), *FILTERS, *_ASKING),
        more=_TIMES_ARE,
        examples=("llm-proxy stats --by model --from 7d",),
    ),
    Command(
        "stats --recordings",
        "look",
        "the same of Taco's recordings",
        (_RECORDINGS, _FROM, _TO, _PROVIDER, _JSON),
    ),
    Command(
        "export",
        "look",
        "calls as JSON lines, CSV, HAR, Markdown, or a dataset",
        (
            Option(("--format",), "of what is written (jsonl)", "F", FORMATS, default="jsonl"),
            Option(("--output",), "a file, a FOLDER/ for a dataset, or - (-)", "FILE", kind="file", default="-"),
            Option(("--style",), "of a dataset (messages)", "STYLE", STYLES),
            Option(("--split",), "of a dataset: a file for each part, train=0.9,val=0.1", "PARTS", default=""),
            Option(("--include-private",), "of a dataset: texts as they were recorded, who and when"),
            *FILTERS,
            *_ASKING,
        ),
        more=f"Oldest first. {_TIMES_ARE}",
        examples=(
            "llm-proxy export --format har --output calls.har",
            "llm-proxy export --format dataset --split train=0.9,val=0.1 --output my-set/",
        ),
    ),
    Command(
        "export --recordings",
        "look",
        "lines of Taco's recordings, byte for byte",
        (
            _RECORDINGS,
            _FROM,
            _TO,
            _PROVIDER,
            Option(("--output",), "a file, or - (export.jsonl)", "FILE", kind="file", default="export.jsonl"),
            _JSON,
        ),
    ),
    Command(
        "compare",
        "look",
        "hold the record against what Claude Code and Codex noted",
        (_FROM, _TO, _UTC, *_ASKING),
        examples=("llm-proxy compare --from yesterday",),
    ),
    # --- care
    Command(
        "import",
        "care",
        "take in logs of other programs",
        (_DRY_RUN, *_ASKING),
        (Argument("PATH", "of the Go llm-proxy, Taco, MIRRA, proxy-llm or claude-trace", kind="file"),),
        examples=("llm-proxy import ~/old-logs --dry-run",),
    ),
    Command(
        "scan",
        "care",
        "secrets in logs that were written earlier",
        _ASKING,
        (Argument("PATH", "a log file or a folder of them (the log folder)", "?", kind="file", default=""),),
        more="Exit status 1 where some are found; what they are is never shown.",
        examples=("llm-proxy scan",),
    ),
    Command(
        "prices show",
        "care",
        "which list of prices is used, or what a model costs",
        _ASKING,
        (Argument("MODEL", "its name, or a part of it", "?", default=""),),
        examples=("llm-proxy prices show claude-sonnet-4-5",),
    ),
    Command(
        "prices update",
        "care",
        "fetch today's list of prices from its project",
        (Option(("--url",), "from a mirror", "URL", default=""), *_ASKING),
    ),
    Command(
        "prices import",
        "care",
        "take a list of prices from a file",
        _ASKING,
        (Argument("FILE", "of genai-prices or LiteLLM", kind="file"),),
    ),
    Command(
        "reprice",
        "care",
        "price recorded calls again, as of their day",
        (_DRY_RUN, *FILTERS, *_ASKING),
        examples=("llm-proxy reprice --from 30d --dry-run",),
    ),
    Command(
        "reindex",
        "care",
        "make the index anew from the logs",
        (
            Option(("--forget-machine",), "take a machine that is gone for good out of the shared index", "NAME"),
            Option(("--forget-versions",), "drop what older versions have left in the shared index"),
            *_ASKING,
        ),
    ),
    Command(
        "retention",
        "care",
        "compress or delete old logs now, as the settings say",
        (_DRY_RUN, *_ASKING),
        examples=("llm-proxy retention --dry-run",),
    ),
    Command(
        "loki backfill",
        "care",
        "send recorded calls to Loki",
        (_FROM, _TO, _DRY_RUN, Option(("--again",), "also what an earlier run has sent"), *_ASKING),
        more=_TIMES_ARE,
        examples=("llm-proxy loki backfill --from 7d --dry-run",),
    ),
    # --- help
    Command(
        "help",
        "help",
        "tell a command's options",
        arguments=(Argument("COMMAND", "such as setup or export; all: of each", "*", kind="topic", dest="words"),),
        examples=("llm-proxy help env", "llm-proxy help all | less"),
    ),
    Command(
        "completions",
        "help",
        "print completions for a shell",
        arguments=(Argument("SHELL", "bash, zsh or fish", hints=COMPLETED),),
        examples=(
            "llm-proxy completions bash > ~/.local/share/bash-completion/completions/llm-proxy",
            "llm-proxy completions fish > ~/.config/fish/completions/llm-proxy.fish",
            "source <(llm-proxy completions zsh)",
        ),
    ),
    _flag("-V --version", "help", "print the version"),
    _flag("-h --help", "help", "what there is"),
)

BY_NAME = {command.name: command for command in COMMANDS}

# The page that `--help` prints: not everything there is, but what one wants first. Each row is a command.
PAGE = {
    "run": ("", "--setup", "--status", "doctor", "upgrade", "--uninstall"),
    "clients": ("--env", "run", "attach", "--target-url", "start"),
    "look": ("explore", "sessions", "view", "search", "tail", "stats", "export"),
    "care": ("import", "scan", "prices show"),
}
EXAMPLES = (
    "llm-proxy run -- claude",
    "llm-proxy stats --by model --from 7d",
    "llm-proxy export --format har --output calls.har",
)


def forms(word: str) -> tuple[Command, ...]:
    """The commands that begin with a word, or are this flag; none where there is no such thing."""
    return tuple(command for command in COMMANDS if command.name and word in (command.word, *_spelled(command)))


def _spelled(command: Command) -> tuple[str, ...]:
    return command.flag.names if command.flag else ()


def topics() -> list[str]:
    """What `llm-proxy help` knows, flags without their dashes."""
    return ["all", *dict.fromkeys(command.word.removeprefix("--") for command in COMMANDS if command.name)]


def placeholder(argument: Argument) -> str:
    """An argument as a usage line shows it."""
    return {"": argument.name, "?": f"[{argument.name}]", "*": f"[{argument.name}...]"}[argument.times]
