"""The `llm-proxy` command. `--env` is answered before anything else is imported: every new shell waits for it.

Exit status: 0 done, 1 failed (or, for `--status`, not running), 2 wrong usage, 78 a setting is wrong (EX_CONFIG, which
the systemd unit takes as "do not try again"). Leaves out what each command does.
"""

import sys


def main() -> None:
    """Answer `sys.argv` and exit."""
    arguments = sys.argv[1:]
    if arguments[:1] != ["run"] and ("--env" in arguments or "-env" in arguments):
        from llm_proxy.service import environment

        environment.main(arguments)
        sys.exit(0)

    from llm_proxy.cli import commands

    commands.main(arguments)
