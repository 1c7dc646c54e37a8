"""The 48 failure cases of installing, starting and stopping, by number: each is the name of a test."""

import re
from pathlib import Path

import pytest

CASES = """\
 1 kill -9, then a new and an old shell
 2 a reboot, with the state kept
 3 the pid is another process's by now
 4 the daemon is a zombie
 5 another server answers on the port
 6 the last port is taken at the start
 7 state files empty, cut off, hostile, not ours
 8 thirty daemons at once
 9 a daemon that is stopped by a signal
10 the state folder is read-only, or its disk full
11 a home that several machines or containers share
12 a crash loop
13 an upgrade while a call is open
14 an old shell after a stop
15 a base URL that the user has set
16 shells within shells
17 an rc file that cannot be written
18 an rc file that is a link
19 an rc file with a second name
20 no newline at its end
21 CR, NUL, broken UTF-8, nothing
22 blocks that are old, double, half, edited
23 text after the block
24 rc files in other places
25 shells with unusual options
26 silence for scp and rsync
27 a prompt hook beside others
28 a login shell whose PATH comes later
29 the program is gone, the block is left
30 no rc file at all
31 odd homes
32 sudo and root
33 no runtime folder, or a wrong one
34 systemctl missing, hanging, degraded
35 lingering is refused
36 no session at all
37 systemd of other versions
38 odd disks and umasks
39 no Python, an old one, a broken shim
40 other machines
41 odd networks
42 Ctrl-C at every step
43 a downgrade
44 a unit that the user has edited
45 drop-ins
46 Homebrew's and ours together
47 uninstalling twice, by halves, while it runs
48 the home is what it was
"""


@pytest.fixture(scope="module")
def named():
    """The numbers in the names of tests and of rows."""
    texts = [path.read_text() for path in Path(__file__).parent.glob("test_service_cases_*.py")]
    return {int(number) for text in texts for number in re.findall(r"""["_]D(\d\d)[-_]""", text)}


@pytest.mark.parametrize("line", CASES.splitlines())
def test_every_case_has_its_test(line, named):
    """None is forgotten when tests are rewritten."""
    assert int(line[:2]) in named
