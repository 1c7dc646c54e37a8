"""A Mac with Homebrew, simulated: `brew` and `launchctl` as programs that behave and exit as the real ones are documented to.

`launchctl` really starts and ends what a property list names; `brew` really installs a formula's archive into a prefix,
through tests/formula.rb. Both note what they were told in FOLDER/said. What no document says is not shown by this:
signatures, sandboxes, quarantine, the order in which a real system does things at once.
"""

import json
import os
import plistlib
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LABEL = "homebrew.mxcl.llm-proxy"
STUB = Path(__file__).parent / "formula.rb"

# As launchctl(1) and its sources have it: 113 for what is not loaded, 3 (ESRCH) for booting it out, 5 (EIO) for loading
# what is still there. bootout asks the job to end and returns; the job goes when its process has.
_LAUNCHCTL = """\
#!{python} -I
import os, pathlib, plistlib, signal, subprocess, sys
folder = pathlib.Path({folder!r})
with (folder / "said").open("a") as said:
    print("launchctl", *sys.argv[1:], file=said)

def alive(job):
    try:
        state = pathlib.Path(f"/proc/{{job.read_text()}}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"

def loaded(label):
    job = folder / f"{{label}}.job"
    if (folder / f"{{label}}.leaving").exists() and not alive(job):
        job.unlink()
        (folder / f"{{label}}.leaving").unlink()
    return job if job.exists() else None

verb, target = sys.argv[1], sys.argv[2]
domain, _, label = target.rpartition("/")
if verb == "print":
    sys.exit(0 if loaded(label) else 113)
if verb == "bootout":
    job = loaded(label)
    if job is None:
        print("Boot-out failed: 3: No such process", file=sys.stderr)
        sys.exit(3)
    (folder / f"{{label}}.leaving").touch()
    if alive(job):
        os.kill(int(job.read_text()), signal.SIGTERM)
    sys.exit(0)
if verb == "bootstrap":
    plist = plistlib.loads(pathlib.Path(sys.argv[3]).read_bytes())
    label = plist["Label"]
    if loaded(label):
        print("Bootstrap failed: 5: Input/output error", file=sys.stderr)
        sys.exit(5)
    pathlib.Path(plist["StandardOutPath"]).parent.mkdir(parents=True, exist_ok=True)
    with open(plist["StandardOutPath"], "a") as out:
        process = subprocess.Popen(
            plist["ProgramArguments"], stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd="/", start_new_session=True,
            env={{"HOME": os.environ["HOME"], "SHELL": "/bin/bash", "PATH": "/usr/bin:/bin"}} | plist["EnvironmentVariables"],
        )
    (folder / f"{{label}}.job").write_text(str(process.pid))
    sys.exit(0)
sys.exit(64)
"""

_BREW = """\
#!{python} -I
import os, pathlib, sys
sys.path[:0] = {path!r}
from tests import brewbed
sys.exit(brewbed.brew(pathlib.Path({folder!r}), sys.argv[1:]))
"""


class Mac:
    """`archives` is where unpacked releases and their formulas lie: `archives/VERSION/{llm-proxy-VERSION,llm-proxy.rb}`."""

    def __init__(self, folder, home):
        self.folder, self.home, self.prefix = folder, home, folder / "homebrew"
        self.archives = folder / "archives"
        for name in ("archives", "homebrew/bin", "bin"):
            (folder / name).mkdir(parents=True)
        words = {"python": sys.executable, "folder": str(folder), "path": sys.path}
        for place, text in ((folder / "bin/launchctl", _LAUNCHCTL), (self.prefix / "bin/brew", _BREW)):
            place.write_text(text.format(**words))
            place.chmod(0o755)

    @property
    def environ(self):
        path = f"{self.folder}/bin:{self.prefix}/bin:/usr/bin:/bin"
        return {"HOME": str(self.home), "PATH": path, "SHELL": "/bin/bash", "LANG": "C.UTF-8", "TERM": "dumb"}

    @property
    def agent(self):
        return self.home / f"Library/LaunchAgents/{LABEL}.plist"

    def run(self, command):
        """A line in a new shell, which has read its rc file."""
        return subprocess.run(
            ["bash", "-c", f'. "$HOME/.bashrc"; {command}'],
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def said(self, *verbs):
        """What the two were told, without what only asks."""
        lines = (self.folder / "said").read_text().splitlines()
        return [line for line in lines if line.split()[1] in verbs] if verbs else lines


def plist(service):
    """The property list that Homebrew makes of a service block."""
    return plistlib.dumps(
        {
            "Label": LABEL,
            "ProgramArguments": service["run"],
            "RunAtLoad": service["run_at_load"],
            "KeepAlive": service["keep_alive"]["always"],
            "ProcessType": service["process_type"].capitalize(),
            "ThrottleInterval": service["throttle_interval"],
            "ExitTimeOut": service["stop_timeout"],
            "EnvironmentVariables": service["environment_variables"],
            "StandardOutPath": service["log_path"],
            "StandardErrorPath": service["error_log_path"],
            "LimitLoadToSessionType": ["Aqua", "Background", "LoginWindow", "StandardIO", "System"],
        }
    )


def formula(path, system, machine, *rest):
    """What tests/formula.rb tells. Raises CalledProcessError."""
    done = subprocess.run(["ruby", STUB, path, system, machine, *rest], capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, "formula.rb", done.stdout, done.stderr)
    return json.loads(done.stdout)


def brew(folder, words):
    """The commands of Homebrew that are documented to users of llm-proxy; its exit status."""
    with (folder / "said").open("a") as said:
        print("brew", *words, file=said)
    home, prefix = Path(os.environ["HOME"]), folder / "homebrew"
    kegs, opt = prefix / "Cellar/llm-proxy", prefix / "opt/llm-proxy"
    agent, job = home / f"Library/LaunchAgents/{LABEL}.plist", f"gui/{os.getuid()}/{LABEL}"
    newest = max(path.name for path in (folder / "archives").iterdir())

    def told(*arguments):
        return subprocess.run([folder / "bin/launchctl", *arguments], capture_output=True).returncode

    def install():
        with tempfile.TemporaryDirectory() as stage:
            tree = shutil.copytree(folder / f"archives/{newest}/llm-proxy-{newest}", f"{stage}/tree", symlinks=True)
            described = formula(*_of(folder, newest), prefix, tree)
        for keg in kegs.iterdir():  # what an upgrade cleans up
            if keg.name != newest:
                shutil.rmtree(keg)
        print(described["caveats"])

    def start():
        described = formula(*_of(folder, opt.readlink().name), prefix)
        agent.parent.mkdir(parents=True, exist_ok=True)
        agent.write_bytes(plist(described["service"]))
        return told("bootstrap", f"gui/{os.getuid()}", agent)

    def stop():
        if told("print", job):
            print("Warning: Service `llm-proxy` is not started.", file=sys.stderr)
            return 0
        told("bootout", job)
        while told("print", job) == 0:  # as brew does
            time.sleep(0.05)
        agent.unlink()
        return 0

    def uninstall():
        for link in [path for part in ("bin", "share", "etc") for path in (prefix / part).rglob("*")]:
            if link.is_symlink() and not link.is_dir() and "Cellar/llm-proxy" in str(link.readlink()):
                link.unlink()
        opt.unlink()
        shutil.rmtree(kegs)

    commands = {
        ("install", "llm-proxy"): install,
        ("upgrade", "llm-proxy"): install,
        ("uninstall", "llm-proxy"): uninstall,
        ("services", "start", "llm-proxy"): start,
        ("services", "stop", "llm-proxy"): stop,
        ("services", "restart", "llm-proxy"): lambda: stop() or start(),
    }
    return commands[tuple(words)]() or 0


def _of(folder, version):
    return folder / f"archives/{version}/llm-proxy.rb", "linux", "intel"
