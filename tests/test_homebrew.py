"""The Homebrew formula: what it says on each platform, and a life with it on a simulated Mac.

There is no macOS and no Homebrew here. The formula is read by a stand-in for Homebrew's DSL (tests/formula.rb), `brew` and
`launchctl` are simulated (tests/brewbed.py); the archive, what is installed from it and the daemon are real.
"""

import json
import os
import plistlib
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
from release_suite import archives, facts
from release_suite import formula as template

from tests import brewbed
from tests.brewbed import Mac
from tests.releasebed import BASE, NAME, ROOT, VERSION, release, source, unpack
from tests.shellbed import snapshot

__all__ = ["release", "source"]

FORMULA = ROOT / "homebrew/llm-proxy.rb"
NEXT = "0.1.99"
PLATFORMS = {("macos", "arm"): "macos-aarch64", ("macos", "intel"): "macos-x86_64"}
PLATFORMS |= {("linux", "arm"): "linux-aarch64", ("linux", "intel"): "linux-x86_64"}
RC = "# mine\nalias ll='ls -l'\n"


def test_the_formula_in_the_checkout_is_the_templates():
    """With the version of today and no sums. `scripts/release --formula` writes it."""
    path, text = template.committed(facts.read(ROOT, base="", draft=True, environ={}))
    assert path == FORMULA and FORMULA.read_text() == text
    assert not re.search("@[A-Z0-9_]+@", text.replace("@PYTHON@", ""))


@pytest.mark.parametrize("platform", PLATFORMS, ids="-".join)
def test_each_platform_gets_its_own_archive(release, platform):
    """By the address where releases lie and the sum of that very file; nothing comes from a package registry."""
    said = brewbed.formula(release / "llm-proxy.rb", *platform)
    name = f"{NAME}-{PLATFORMS[platform]}.tar.gz"
    assert said["url"] == f"{BASE}/download/v{VERSION}/{name}"
    assert said["sha256"] == archives.sha256(release / name)
    assert (
        said["version"] == VERSION and said["license"] == "MIT" and said["homepage"] == BASE.removesuffix("/releases")
    )
    text = (release / "llm-proxy.rb").read_text()
    assert len(re.findall(r'sha256 "[0-9a-f]{64}"', text)) == text.count("sha256 ") == 4
    assert (
        "resource" not in text and "depends_on" not in text and set(re.findall(r"https?://[^/]+", text)) == {BASE[:23]}
    )


def test_ruby_takes_it(release):
    for path in (FORMULA, release / "llm-proxy.rb"):
        done = subprocess.run(["ruby", "-wc", path], capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "Syntax OK\n", "")


SPOILED = {
    "unknown-key": ("throttle_interval 5", "throttle 5", "undefined method"),
    "unknown-value": ("process_type :interactive", "process_type :realtime", "process_type allows"),
    "no-number": ("stop_timeout 30", 'stop_timeout "30"', "takes an integer"),
    "keep-alive": ("keep_alive true", "keep_alive often: true", "keep_alive allows"),
    "unknown-part": ("preserve_rpath", "keep_rpath", "undefined"),
    "order": ("  preserve_rpath\n", '  desc "again"\n', "must stand before|said twice"),
    "post-install": ("def caveats", "def post_install; end\n\n  def caveats", "post_install runs in a sandbox"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_the_stand_in_is_strict(tmp_path, name):
    """What Homebrew would refuse it refuses too, or the tests above would show nothing."""
    before, after, words = SPOILED[name]
    text = FORMULA.read_text()
    assert before in text
    (tmp_path / "f.rb").write_text(text.replace(before, after))
    with pytest.raises(subprocess.CalledProcessError) as caught:
        brewbed.formula(tmp_path / "f.rb", "macos", "arm")
    assert re.search(words, caught.value.stderr)


# launchd.plist(5)
KEYS = {"Label": str, "ProgramArguments": list, "RunAtLoad": bool, "KeepAlive": bool, "ProcessType": str}
KEYS |= {"ThrottleInterval": int, "ExitTimeOut": int, "EnvironmentVariables": dict, "LimitLoadToSessionType": list}
KEYS |= {"StandardOutPath": str, "StandardErrorPath": str}


def test_the_service_is_one_that_launchd_and_systemd_take(tmp_path):
    """Absolute and stable paths, nothing that only a shell expands, restarted for ever, not throttled, time to drain."""
    said = brewbed.formula(FORMULA, "macos", "arm")["service"]
    agent = plistlib.loads(brewbed.plist(said))
    assert {key: type(value) for key, value in agent.items()} == KEYS
    assert agent["ProgramArguments"] == ["/opt/homebrew/opt/llm-proxy/bin/llm-proxy", "--service"]
    assert (agent["KeepAlive"], agent["RunAtLoad"], agent["ProcessType"]) == (True, True, "Interactive")
    assert agent["ExitTimeOut"] > 25 and agent["ThrottleInterval"] <= 5
    assert agent["EnvironmentVariables"] == {"LLM_PROXY_FIRST_RUN": "shell"}
    words = [*agent["ProgramArguments"], agent["StandardOutPath"], agent["StandardErrorPath"]]
    assert all(word.startswith("/") or word == "--service" for word in words)
    assert not any(char in word for word in words for char in "~$")
    # what Homebrew writes for systemd of the same block
    unit = tmp_path / "homebrew.llm-proxy.service"
    unit.write_text(
        "[Unit]\nDescription=Homebrew generated unit for llm-proxy\n\n[Install]\nWantedBy=default.target\n\n[Service]\n"
        f'Type=simple\nExecStart="/bin/true" "--service"\nRestart=on-failure\nTimeoutStopSec={said["stop_timeout"]}\n'
        f"StandardOutput=append:{said['log_path']}\nStandardError=append:{said['error_log_path']}\n"
        'Environment="LLM_PROXY_FIRST_RUN=shell"\n'
    )
    if shutil.which("systemd-analyze"):
        environ = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}
        done = subprocess.run(
            ["systemd-analyze", "--user", "verify", unit], env=environ, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


# -- a life on a simulated Mac -------------------------------------------------------------------------------------


@pytest.fixture
def mac(release, tmp_path):
    """Somebody with rc files of their own, and two versions to be had."""
    home = tmp_path / "home"
    (home / ".local/state").mkdir(parents=True)
    (home / ".bashrc").write_text(RC)
    (home / ".profile").write_text('. "$HOME/.bashrc"\n')
    machine = Mac(tmp_path / "mac", home)
    offer(machine, release, VERSION)
    yield machine
    for job in machine.folder.glob("*.job"):
        try:
            os.kill(int(job.read_text()), signal.SIGKILL)
        except ProcessLookupError:
            pass


def offer(machine, release, version):
    """What a release of that version would hold: this one's tree, and its formula."""
    folder = machine.archives / version
    tree = unpack(release, folder)
    if version != VERSION:
        tree = tree.rename(folder / f"llm-proxy-{version}")
        (module,) = tree.glob("runtime/lib/python3.*/site-packages/llm_proxy/__init__.py")
        module.write_text(module.read_text().replace(f'"{VERSION}"', f'"{version}"'))
        for compiled in module.parent.glob("__pycache__/__init__.*.pyc"):
            compiled.unlink()
    (folder / "llm-proxy.rb").write_text((release / "llm-proxy.rb").read_text().replace(VERSION, version))


def health(machine):
    run = (machine.home / ".local/state/llm-proxy/run").read_text().split()
    with urllib.request.urlopen(f"http://127.0.0.1:{run[1]}/health", timeout=5) as answer:
        return json.load(answer)


def eventually(condition, limit=40):
    deadline = time.monotonic() + limit
    while not (found := condition()):
        assert time.monotonic() < deadline, f"never: {condition}"
        time.sleep(0.05)  # another process's state
    return found


def started(machine):
    """`brew services start`, as far as the daemon's first run has set up the shells."""
    done = machine.run("brew install llm-proxy && brew services start llm-proxy")
    assert done.returncode == 0, done.stderr
    state = machine.home / ".local/state/llm-proxy"
    eventually(lambda: (state / "setup.json").exists() and '"autostart": "brew"' in (state / "setup.json").read_text())
    eventually(lambda: "# <<< llm-proxy" in (machine.home / ".bashrc").read_text())
    eventually((state / "run").exists)


def uninstalled(machine):
    """`llm-proxy --uninstall` as on a Mac: the installed program, told that it is on one, which Linux cannot tell it."""
    text = (
        "import os, sys; from llm_proxy.service import uninstall; from llm_proxy.service.steps import Steps; "
        "steps = Steps(lambda step: print(step.outcome, step.text)); "
        "sys.exit(uninstall.run(steps, os.environ, purge=False, platform='darwin'))"
    )
    python = machine.prefix / "opt/llm-proxy/libexec/runtime/bin/python"
    return subprocess.run([python, "-I", "-c", text], env=machine.environ, capture_output=True, text=True, timeout=120)


def test_installed_from_the_archive_it_passes_its_own_test(mac):
    """The files are where Homebrew and shells look; the test block runs; `--env` names a path that upgrades keep."""
    done = mac.run("brew install llm-proxy")
    assert done.returncode == 0, done.stderr
    assert "brew services start llm-proxy" in done.stdout and "llm-proxy --uninstall" in done.stdout
    brewbed.formula(mac.archives / VERSION / "llm-proxy.rb", "linux", "intel", mac.prefix)
    keg = mac.prefix / "Cellar/llm-proxy" / VERSION
    for name in (
        "bin/llm-proxy",
        "share/man/man1/llm-proxy.1",
        "etc/bash_completion.d/llm-proxy",
        "share/zsh/site-functions/_llm-proxy",
        "share/fish/vendor_completions.d/llm-proxy.fish",
    ):
        assert (keg / name).is_file() and (mac.prefix / name).resolve() == keg / name
    launcher = (keg / "bin/llm-proxy").read_text()
    assert "@PYTHON@" not in launcher and f"python={mac.prefix}/opt/llm-proxy/libexec/runtime/bin/python" in launcher
    assert mac.run("llm-proxy --version").stdout.splitlines()[0] == f"llm-proxy {VERSION}"
    refused = mac.run("llm-proxy upgrade")
    assert refused.returncode != 0 and "brew upgrade llm-proxy" in refused.stdout + refused.stderr
    assert (mac.home / ".bashrc").read_text() == RC, "installing touches no home"


def test_upgraded_and_removed_in_the_documented_order(mac, release):
    """Simulated: calls are carried up to the restart and after it, at the same address; then it all goes."""
    before = snapshot(mac.home)
    started(mac)
    first, rc = health(mac), (mac.home / ".bashrc").read_text()
    shell = mac.run('printf %s "$ANTHROPIC_BASE_URL"; llm-proxy --status')
    url = shell.stdout.partition("Status:")[0]
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/anthropic/api\.anthropic\.com", url), shell
    assert "Homebrew's service" in shell.stdout and shell.stderr == ""

    offer(mac, release, NEXT)
    done = mac.run("brew upgrade llm-proxy")
    assert done.returncode == 0, done.stderr
    assert not (mac.prefix / "Cellar/llm-proxy" / VERSION).exists()
    assert health(mac)["version"] == VERSION and health(mac)["pid"] == first["pid"], "Homebrew does not restart it"
    assert "brew services restart llm-proxy" in done.stdout
    assert mac.run("brew services restart llm-proxy").returncode == 0
    eventually(lambda: (mac.home / ".local/state/llm-proxy/run").exists() and health(mac)["version"] == NEXT)
    assert mac.run('printf %s "$ANTHROPIC_BASE_URL"').stdout == url
    assert (mac.home / ".bashrc").read_text() == rc, "the shells are set up once"

    # with a stop that brew fails at, nothing is removed under the daemon
    (mac.folder / "bin/brew").write_text("#!/bin/sh\necho 'Error: broken' >&2\nexit 1\n")
    (mac.folder / "bin/brew").chmod(0o755)
    done = uninstalled(mac)
    assert done.returncode == 1 and "Error: broken" in done.stdout and health(mac)["version"] == NEXT
    (mac.folder / "bin/brew").unlink()

    done = uninstalled(mac)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the program itself was installed otherwise and stays" in done.stdout and not mac.agent.exists()
    assert [line.split()[1] for line in mac.said("bootstrap", "bootout")] == [
        "bootstrap",
        "bootout",
        "bootstrap",
        "bootout",
    ]
    assert mac.run("brew uninstall llm-proxy").returncode == 0
    after = {name: facts for name, facts in snapshot(mac.home).items() if not name.startswith("Library")}
    after.pop(".llm-provider-logs", None)
    assert after == before
    left = {str(path.relative_to(mac.prefix)) for path in mac.prefix.rglob("*") if not path.is_dir()}
    assert left == {"bin/brew", "var/log/llm-proxy.log"}


def test_removed_in_the_wrong_order(mac):
    """Simulated: `brew uninstall` first. New shells stay silent, and nothing points at nothing once the daemon is gone."""
    started(mac)
    pid = health(mac)["pid"]
    assert mac.run("brew uninstall llm-proxy").returncode == 0
    shell = mac.run('printf %s "${ANTHROPIC_BASE_URL-}"')
    assert (shell.stdout, shell.stderr) == ("", "")
    assert mac.run("brew services stop llm-proxy").returncode == 0
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    # what puts it right, as homebrew/README.md says
    assert mac.run("brew install llm-proxy").returncode == 0
    assert uninstalled(mac).returncode == 0
    assert (mac.home / ".bashrc").read_text() == RC


def test_the_commands_are_documented():
    """What is run above is what README.md and docs/install.md say, in that order."""
    lines = ["brew services start llm-proxy", "brew upgrade llm-proxy && brew services restart llm-proxy"]
    lines += ["llm-proxy --uninstall && brew uninstall llm-proxy"]
    for path in (ROOT / "homebrew/README.md", ROOT / "docs/install.md"):
        places = [path.read_text().find(line) for line in lines]
        assert -1 not in places and places == sorted(places), path
    assert Path(ROOT, "homebrew/README.md").read_text().count("simulated") > 0
