"""Every error of ours that a person may read, each named by what happened.

Errors of one package's own machinery (a busy journal, a damaged coding) live beside that machinery and are translated
at its edge. Leaves out exit codes: `cli` maps them.
"""

from __future__ import annotations


class LlmProxyError(Exception):
    """Something a person can act on. The message names the thing, the value and the rule."""


class UsageError(LlmProxyError):
    """The command line does not say anything we do. Nothing was started or changed."""


class ConfigError(LlmProxyError):
    """A setting is unknown or its value breaks its rule. Nothing was started or changed."""


class CannotListen(LlmProxyError):
    """The address cannot be bound. Whoever holds it is untouched."""


class AlreadyRunning(LlmProxyError):
    """Another daemon of this user serves already; it keeps serving."""


class CrashLoop(LlmProxyError):
    """The daemon crashed several times in a row. Safe mode can carry calls on the same port."""


class SetupFailed(LlmProxyError):
    """A step of setup or uninstall could not be done. The steps before it hold, and both can be run again."""


class CannotUpgrade(LlmProxyError):
    """No other version can be had, or not by this program. The one that runs is as it was."""


class StateUnusable(LlmProxyError):
    """The state folder cannot be made, or is not ours alone. Traffic can still be carried without it."""


class CannotAttach(LlmProxyError):
    """A client's configuration cannot be edited, or not safely. It is as it was."""


class IndexTrouble(LlmProxyError):
    """The index cannot be read or brought up to date. The log files it is made from are untouched."""


class NotFound(LlmProxyError):
    """Nothing recorded has this id, or more than one thing does."""


class PricesUnusable(LlmProxyError):
    """A list of prices cannot be had, or is none. The one that was used before is still used."""


class StoreTrouble(LlmProxyError):
    """The gateway's store cannot be reached or used, or not with this encryption key. What it holds is untouched."""


class ExtraMissing(LlmProxyError):
    """A package is needed that only an extra installs."""


class BrokenOff(LlmProxyError):
    """The other side takes no more just now. What was sent is noted; the same command goes on there."""
