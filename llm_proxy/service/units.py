"""The systemd user units and the launchd agent, as text. Pure: leaves out where they are put and who loads them.

No Protect… and no StateDirectory keys: user managers of different age ignore, move or enforce them, and each of the
three breaks something (read-only logs, state in another place).
"""

from __future__ import annotations

import plistlib

from llm_proxy.errors import SetupFailed

SERVICE, SAFE, SOCKET = "llm-proxy.service", "llm-proxy-safe.service", "llm-proxy.socket"
LABEL = "io.github.llm-proxy"
BREW_LABEL, BREW_UNIT = "homebrew.mxcl.llm-proxy", "homebrew.llm-proxy.service"

_COMMON = """\
Type=notify
NotifyAccess=main
# the port, on 127.0.0.1 and [::1]: while one daemon replaces another, connections wait and are not refused
FileDescriptorStoreMax=2
ExecStart={command}
WatchdogSec=30
TimeoutStartSec=60
# the daemon drains for 25 s; the keeper is told by the daemon, not by systemd
TimeoutStopSec=30
KillMode=mixed
UMask=0077
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
"""

_SERVICE = """\
[Unit]
Description=llm-proxy: local logging proxy for LLM APIs
StartLimitIntervalSec=60
StartLimitBurst=10
OnFailure={safe}
{socket}
[Service]
{common}Restart=on-failure
RestartSec=200ms
# 78: a setting is wrong; trying again would not help
RestartPreventExitStatus=78

[Install]
WantedBy=default.target
"""

_SAFE = """\
[Unit]
Description=llm-proxy in safe mode: carries calls, records nothing
StartLimitIntervalSec=0
# a failed socket unit no longer listens, and whoever starts the service again wants this one gone
Conflicts={service} {socket}
After={service} {socket}

[Service]
{common}Restart=on-failure
RestartSec=1
"""

_SOCKET = """\
[Unit]
Description=llm-proxy's port
{condition}
[Socket]
{listen}Backlog=4096
# what new shells look at: the port is good although no daemon runs
ExecStartPost={announce}
ExecStopPost={withdraw}

[Install]
WantedBy=sockets.target
"""


def service(program: str, *, socket_activation: bool = False) -> str:
    """`program` is the absolute path of the launcher. Raises SetupFailed for a path no unit can hold."""
    with_socket = f"Requires={SOCKET}\nAfter={SOCKET}\n" if socket_activation else ""
    common = _COMMON.format(command=command(program, "--service"))
    return _SERVICE.format(safe=SAFE, common=common, socket=with_socket)


def safe(program: str) -> str:
    common = _COMMON.format(command=command(program, "--service", "--passthrough"))
    return _SAFE.format(service=SERVICE, socket=SOCKET, common=common)


def socket(program: str, port: int, *, ipv6: bool) -> str:
    """The port is chosen once: systemd refuses port 0."""
    addresses = ("127.0.0.1", "[::1]") if ipv6 else ("127.0.0.1",)
    return _socket(program, str(port), addresses, condition="")


def packaged(program: str) -> dict[str, str]:
    """By name, the units of a package that serves all users of a machine.

    No port can be chosen for each, so it is made of 1 and the user id. Not on [::1], because a socket unit fails as a
    whole where there is no IPv6.
    """
    return {
        SERVICE: service(program),
        SAFE: safe(program),
        SOCKET: _socket(program, "1%U", ("127.0.0.1",), condition="ConditionUser=!@system\n"),
    }


def _socket(program: str, port: str, addresses: tuple[str, ...], *, condition: str) -> str:
    return _SOCKET.format(
        condition=condition,
        listen="".join(f"ListenStream={address}:{port}\n" for address in addresses),
        announce=command(program, "--announce-socket", port),
        withdraw=command(program, "--announce-socket", "0"),
    )


def command(program: str, *arguments: str) -> str:
    """An Exec… value. systemd refuses quotes, backslashes and control characters in the program's own path."""
    try:
        program.encode()
    except UnicodeEncodeError:
        raise SetupFailed(f"the path {program!r} is not UTF-8, so no unit file can hold it") from None
    if all(char.isprintable() and char not in "'\"\\" for char in program):
        return " ".join([_quoted(program, path=True), *arguments])
    return " ".join(['/bin/sh -c "exec \\"$$0\\" \\"$$@\\""', _quoted(program), *arguments])


def _quoted(word: str, *, path: bool = False) -> str:
    """In double quotes, with C escapes; `%` begins a specifier and, except in the program's path, `$` a variable."""
    escapes = {'"': '\\"', "\\": "\\\\", "%": "%%", "\n": "\\n", "\t": "\\t"} | ({} if path else {"$": "$$"})
    return '"' + "".join(escapes.get(char) or _printable(char) for char in word) + '"'


def _printable(char: str) -> str:
    return char if char.isprintable() else "".join(f"\\x{octet:02x}" for octet in char.encode())


def agent(program: str, logs: str) -> bytes:
    """The launchd property list. launchd starts it again whatever happens; crash loops are counted by the daemon."""
    return plistlib.dumps(
        {
            "Label": LABEL,
            "ProgramArguments": [program, "--service"],
            "RunAtLoad": True,
            "KeepAlive": True,
            "ProcessType": "Interactive",  # Background is throttled
            "ThrottleInterval": 5,
            "ExitTimeOut": 30,
            "Umask": 0o077,
            "StandardOutPath": f"{logs}/llm-proxy.log",
            "StandardErrorPath": f"{logs}/llm-proxy.log",
        }
    )
