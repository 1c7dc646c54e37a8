"""What e-mail addresses and names may be. One spelling for each, so that nobody is somebody else by a capital letter.

Leaves out passwords (`passwords`) and rows (`manage`).
"""

from __future__ import annotations

import re
from typing import Final

from llm_proxy.gateway.refusals import Refusal

LONGEST_EMAIL: Final = 254  # RFC 5321 4.5.3.1.3, without the angle brackets
LONGEST_NAME: Final = 100

# The HTML standard's rule for <input type=email>; addresses in other scripts have an ASCII form for their domain
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_EMAIL: Final = re.compile(rf"[a-z0-9.!#$%&'*+/=?^_`{{|}}~-]{{1,64}}@{_LABEL}(?:\.{_LABEL})*", re.ASCII)


def spelt(email: str) -> str:
    """As the store has it. One that is too long for that stays too long."""
    return email[:1024].strip().lower()[: LONGEST_EMAIL + 2]


def email_of(text: str) -> str:
    """The address in it, as the store has it. Raises Refusal 400."""
    email = spelt(text)
    if len(email) > LONGEST_EMAIL:
        raise Refusal(400, "invalid_email", f"an e-mail address has at most {LONGEST_EMAIL} characters", param="email")
    if not text.isascii() or not _EMAIL.fullmatch(email):  # some letters become ASCII ones in lower case
        raise Refusal(400, "invalid_email", f"{email[:80]!r} is no e-mail address", param="email")
    return email


def name_of(text: str, what: str) -> str:
    """A name that people read, without spaces around it. Raises Refusal 400."""
    name = text.strip()
    if not name:
        raise Refusal(400, "invalid_name", f"{what} needs a name", param="name")
    if len(name) > LONGEST_NAME:
        raise Refusal(400, "invalid_name", f"the name of {what} has at most {LONGEST_NAME} characters", param="name")
    if not name.isprintable():
        raise Refusal(400, "invalid_name", f"the name of {what} has a character that cannot be shown", param="name")
    return name
