"""What scripts/release builds: whole, the same each time, installable, and refused where something is missing.

The tarball is built around this machine's Python, since the portable one cannot be fetched everywhere: that it runs
where it is unpacked is shown, that it runs on other systems is not.
"""

import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from release_suite import archives, bill, facts, lock

from tests.releasebed import (
    BASE,
    EPOCH,
    NAME,
    OTHERS,
    ROOT,
    TARBALL,
    VERSION,
    build,
    release,
    run,
    source,
    unpack,
)
from tests.shellbed import Home

__all__ = ["release", "source"]

WHEEL, SDIST = f"llm_proxy-{VERSION}-py3-none-any.whl", f"llm_proxy-{VERSION}.tar.gz"


def test_everything_is_there_and_summed(release, source):
    """The folder is what is published: every file, each with its sum, and nothing else."""
    named = {"install.sh", "llm-proxy.rb", f"{NAME}.cdx.json", f"CHANGES-{VERSION}.md", f"{NAME}.tar.gz"}
    named |= {WHEEL, SDIST, TARBALL, *OTHERS}
    assert {path.name for path in release.iterdir()} == named | {"SHA256SUMS"}
    lines = (release / "SHA256SUMS").read_text().splitlines()
    assert lines == [f"{hashlib.sha256((release / name).read_bytes()).hexdigest()}  {name}" for name in sorted(named)]
    assert subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=release).returncode == 0
    assert f"\npublished={BASE}\n" in (release / "install.sh").read_text()
    changes = (release / f"CHANGES-{VERSION}.md").read_text()
    assert changes.startswith(f"## [{VERSION}] - 2023-11-14\n") and changes.count("\n## ") == 0
    assert "runs on systems like this one only" in (source.parent / "said").read_text()


def test_two_builds_are_equal(source, release, tmp_path):
    """From one commit, in another folder, with another clock and file mode: the same bytes."""
    old = os.umask(0o077)
    try:
        subprocess.run(["git", "clone", "-q", source, tmp_path / "else where"], check=True)
        again, _ = build(tmp_path / "else where")
    finally:
        os.umask(old)
    different = [path.name for path in release.iterdir() if path.read_bytes() != (again / path.name).read_bytes()]
    assert different == []


def test_archives_are_roots_and_tell_nothing_of_the_builder(release, source):
    """Owners, dates, modes and paths are those of a release; no file leads out of the folder."""
    for name in (TARBALL, f"{NAME}.tar.gz"):
        with tarfile.open(release / name) as archive:
            for entry in archive:
                assert entry.name.split("/")[0] == NAME and ".." not in entry.name.split("/")
                assert (entry.uid, entry.gid, entry.uname, entry.gname, entry.mtime) == (0, 0, "", "", EPOCH)
                assert entry.mode in (0o644, 0o755, 0o777) and (entry.isreg() or entry.isdir() or entry.issym())
                assert not entry.issym() or "/" not in entry.linkname
                if entry.isreg():
                    content = archive.extractfile(entry).read()
                    assert str(source).encode() not in content and b"llm-proxy-release-" not in content, entry.name


def test_the_plain_archive_holds_what_install_sh_takes(release):
    """The wheel and the launcher."""
    with tarfile.open(release / f"{NAME}.tar.gz") as archive:
        names = {entry.name for entry in archive if entry.isreg()}
        assert names == {f"{NAME}/{WHEEL}", f"{NAME}/launcher.sh"}
        assert archive.extractfile(f"{NAME}/{WHEEL}").read() == (release / WHEEL).read_bytes()


@pytest.fixture(scope="module")
def moved(release, tmp_path_factory):
    """The tarball, unpacked in a folder with a name that shells and loaders dislike."""
    return unpack(release, tmp_path_factory.mktemp("moved") / "in a folder's $HOME")


def test_the_runtime_runs_where_it_is_put(moved, source):
    """Neither the builder's Python nor anything of the environment is used, and what is documented works at once."""
    python = moved / "runtime/bin/python"
    environ = {
        "HOME": "/nonexistent",
        "PATH": "/nonexistent",
        "PYTHONHOME": "/nonexistent",
        "PYTHONPATH": "/nonexistent",
    }
    done = subprocess.run([python, "-I", "-m", "llm_proxy", "--version"], env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()[0], done.stderr) == (0, f"llm-proxy {VERSION}", "")
    text = "import json, sys, llm_proxy, botocore, yaml, uvloop; print(json.dumps([sys.prefix, *sys.path, llm_proxy.__file__]))"
    where = json.loads(subprocess.check_output([python, "-I", "-c", text], env=environ))
    assert all(Path(path).is_relative_to(moved / "runtime") for path in where)
    for name in ("completions/llm-proxy.bash", "completions/_llm-proxy", "completions/llm-proxy.fish", "llm-proxy.1"):
        assert (moved / name).read_bytes() == (source / "packaging" / name).read_bytes()


def test_the_runtime_holds_bytecode_and_nothing_idle(moved):
    """The first start is no slower than later ones, in a folder that nobody can write; tests and pip stay behind."""
    packages = next((moved / "runtime/lib").glob("python3.*/site-packages"))
    for module in (
        packages / "llm_proxy/cli/main.py",
        packages / "aiohttp/web.py",
        packages.parent / "asyncio/events.py",
    ):
        (compiled,) = (module.parent / "__pycache__").glob(f"{module.stem}.*.pyc")
        assert compiled.read_bytes()[4:8] == b"\1\0\0\0", "unchecked against its source (PEP 552)"
    names = {path.name for path in (moved / "runtime").rglob("*")}
    assert not names & {"pip", "ensurepip", "idlelib", "tkinter", "test", "tests", "direct_url.json"}
    assert {path.name for path in (moved / "runtime/bin").iterdir()} > {"llm-proxy", "python"}
    assert all("python" in path.name or path.name == "llm-proxy" for path in (moved / "runtime/bin").iterdir())


def test_the_runtimes_own_command_follows_it(moved, tmp_path):
    """`runtime/bin/llm-proxy` finds its Python beside it, also through links."""
    (tmp_path / "a").symlink_to(moved / "runtime/bin/llm-proxy")
    (tmp_path / "b").symlink_to("a")
    for command in (moved / "runtime/bin/llm-proxy", tmp_path / "b"):
        done = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=60)
        assert done.stdout.splitlines()[:1] == [f"llm-proxy {VERSION}"], done.stderr


def test_the_bill_of_materials_names_what_is_installed(release, moved):
    """Every package with its version, the sum it was checked against and its licence, where it names one."""
    text = (release / f"{NAME}.cdx.json").read_text()
    made = json.loads(text)
    listed = {canonicalize_name(one["name"]): one for one in made["components"]}
    packages = next((moved / "runtime/lib").glob("python3.*/site-packages"))
    installed = {}
    for metadata in packages.glob("*.dist-info/METADATA"):
        said = dict(re.findall(r"(?m)^(Name|Version): (.+)$", metadata.read_text()))
        installed[canonicalize_name(said["Name"])] = said["Version"]
    assert installed.pop("llm-proxy") == made["metadata"]["component"]["version"] == VERSION
    assert listed.pop("cpython")["version"].startswith(f"{sys.version_info[0]}.{sys.version_info[1]}.")
    assert {name: one["version"] for name, one in listed.items()} == installed
    sums = lock_file(lock.CARRIED)
    for name, one in listed.items():
        (found,) = one["hashes"]
        assert found["alg"] == "SHA-256" and found["content"] in sums[name][1]
    assert {name for name, one in listed.items() if not one.get("licenses")} <= {"protobuf"}


def test_a_bill_of_materials_is_checked():
    """By CycloneDX's own schema, before anything is released."""
    good = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "components": [{"type": "library", "name": "x"}],
    }
    bill.check(json.dumps(good))
    good["components"][0]["type"] = "nonsense"
    with pytest.raises(facts.NotReleasable, match="is not CycloneDX"):
        bill.check(json.dumps(good))


# -- installers of wheels ------------------------------------------------------------------------------------------


def by_pip(wheel, folder):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        folder / "venv/bin/python",
        "--quiet",
        "install",
        "--no-deps",
        wheel,
    ]
    subprocess.run(pip, check=True, timeout=120)
    return folder / "venv/bin/llm-proxy"


def by_uv(wheel, folder):
    places = {"UV_TOOL_DIR": f"{folder}/tools", "UV_TOOL_BIN_DIR": f"{folder}/bin"}
    command = [sys.executable, "-m", "uv", "--quiet", "tool", "install", "--python", sys.executable, wheel]
    subprocess.run(command, check=True, env=os.environ | places, timeout=120)
    return folder / "bin/llm-proxy"


def by_pipx(wheel, folder):
    places = {"PIPX_HOME": f"{folder}/pipx", "PIPX_BIN_DIR": f"{folder}/bin", "PIPX_MAN_DIR": f"{folder}/man"}
    command = [
        sys.executable,
        "-m",
        "pipx",
        "install",
        "--quiet",
        "--python",
        sys.executable,
        wheel,
    ]
    subprocess.run(command, check=True, env=os.environ | places, timeout=120, stdout=subprocess.DEVNULL)
    return folder / "bin/llm-proxy"


@pytest.mark.parametrize("install", [by_pip, by_uv, by_pipx])
def test_a_wheel_brings_a_command_that_answers_without_python(release, tmp_path, install):
    """However it is installed, `--env` starts no Python, the prompt hook is there, and everything else works."""
    command = install(release / WHEEL, tmp_path)
    assert subprocess.check_output([command, "--version"], text=True).splitlines()[0] == f"llm-proxy {VERSION}"
    home = Home(tmp_path / "home")
    try:
        daemon = home.daemon()
        python = command.resolve().parent / "python"
        python.unlink()
        python.write_text(f"#!/bin/sh\necho started >>'{tmp_path}/started'\n")
        python.chmod(0o755)
        done = subprocess.run([command, "--env", "--shell", "bash"], env=home.environ, capture_output=True, text=True)
        assert f"export ANTHROPIC_BASE_URL='http://127.0.0.1:{daemon.port}/" in done.stdout
        assert "PROMPT_COMMAND" in done.stdout and done.stderr == ""
        assert not (tmp_path / "started").exists()
        subprocess.run([command, "--status"], env=home.environ, check=True)
        assert (tmp_path / "started").read_text() == "started\n"
    finally:
        home.close()


def test_the_wheel_has_one_command(release):
    """The launcher as a script of its own; no entry point, which would start Python."""
    with zipfile.ZipFile(release / WHEEL) as wheel:
        scripts = [name for name in wheel.namelist() if ".data/" in name or name.endswith("entry_points.txt")]
        assert scripts == [f"llm_proxy-{VERSION}.data/scripts/llm-proxy"]
        text = wheel.read(scripts[0]).decode()
        assert text.startswith("#!/bin/sh\n") and "@PYTHON@" not in text
        assert wheel.getinfo(scripts[0]).external_attr >> 16 & stat.S_IXUSR


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ready(source, tmp_path_factory):
    """A checkout that is ready, to be spoiled and mended."""
    return shutil.copytree(source, tmp_path_factory.mktemp("ready") / "source", ignore=shutil.ignore_patterns("dist"))


def spoil_nothing(folder):
    pass


def spoil_tree(folder):
    (folder / "llm_proxy/new.py").touch()


def spoil_changelog(folder):
    path = folder / "CHANGELOG.md"
    path.write_text(path.read_text().replace("- 2023-11-14", "- Unreleased"))


def spoil_git(folder):
    shutil.rmtree(folder / ".git")


def spoil_out(folder):
    (folder / "dist").mkdir()
    for name in (*OTHERS, "notes.txt"):
        (folder / "dist" / name).touch()


REFUSED = {
    "nowhere": (spoil_nothing, (), {}, "--base does not say where releases lie"),
    "dirty": (spoil_tree, ("--base", BASE), {}, "the checkout has changes that are not committed"),
    "changelog": (spoil_changelog, ("--base", BASE), {}, f"CHANGELOG.md has no section '## [{VERSION}] - YYYY-MM-DD'"),
    "no-checkout": (spoil_git, ("--base", BASE), {}, "it is no git checkout"),
    "platforms": (spoil_nothing, ("--base", BASE), {}, f"{OTHERS[0]}, {OTHERS[1]}, {OTHERS[2]} must be in"),
    "other-files": (spoil_out, ("--base", BASE), {}, "notes.txt is no file of release"),
    "date": (
        spoil_nothing,
        ("--base", BASE),
        {"SOURCE_DATE_EPOCH": "today"},
        "must be seconds since 1970, got 'today'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_says_what_a_release_lacks(ready, tmp_path, name):
    """Before anything is built."""
    spoil, options, environ, words = REFUSED[name]
    folder = shutil.copytree(ready, tmp_path / "source")
    spoil(folder)
    done = run(folder, "--out", folder / "dist", *options, **environ)
    assert done.returncode == 1 and words in done.stderr, done.stderr
    assert not (folder / "dist/SHA256SUMS").exists()


# -- what it reads -------------------------------------------------------------------------------------------------

CHANGES = "# Changes\n\n## [Unreleased]\n\n- later\n\n## [1.0] - 2026-01-02\n\n### Added\n\n- this\n\n## [0.9] - Unreleased\n- old\n\n[1.0]: x\n"


@pytest.mark.parametrize(
    ("version", "text"),
    [
        ("1.0", "## [1.0] - 2026-01-02\n\n### Added\n\n- this\n"),
        ("0.9", "## [0.9] - Unreleased\n- old\n"),
        ("1", ""),
        ("100", ""),
    ],
)
def test_the_changelogs_section(version, text):
    """That version's alone, to the next heading or the links at the end."""
    assert facts.section(CHANGES, version) == text


def test_a_link_is_packed_as_a_link_and_a_second_name_as_a_file(tmp_path):
    """So that the order in a folder decides nothing."""
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "z").write_text("text")
    os.link(folder / "z", folder / "b")
    (folder / "c").symlink_to("z")
    archives.pack(folder, tmp_path / "a.tar.gz", EPOCH)
    with tarfile.open(tmp_path / "a.tar.gz") as archive:
        kinds = {entry.name: (entry.type, entry.linkname, entry.size) for entry in archive}
    assert kinds["a/b"] == kinds["a/z"] == (tarfile.REGTYPE, "", 4)
    assert kinds["a/c"] == (tarfile.SYMTYPE, "z", 0)


# -- lock files ----------------------------------------------------------------------------------------------------


def lock_file(name):
    """{package: (version, sums)}."""
    text = (ROOT / name).read_text().replace("\\\n", "")
    found = {}
    for line in text.splitlines():
        wish, *sums = re.split(r"\s+--hash=sha256:", line)
        requirement = Requirement(wish)
        found[canonicalize_name(requirement.name)] = (str(requirement.specifier).removeprefix("=="), sums)
    return found


@pytest.mark.parametrize("name", [lock.CARRIED, lock.TOOLS])
def test_locked_versions_are_those_that_are_asked_for(name):
    """Every requirement is met by one version with the sums of its files; no index is named. `scripts/release --lock`."""
    locked = lock_file(name)
    for wish in map(Requirement, lock.wanted(ROOT)[name]):
        version, _ = locked[canonicalize_name(wish.name)]
        assert wish.specifier.contains(version), f"{wish} is locked at {version}"
    assert all(re.fullmatch("[0-9a-f]{64}", one) for _, sums in locked.values() for one in sums)
    assert all(sums for _, sums in locked.values())
    assert "://" not in (ROOT / name).read_text()


# -- workflows -----------------------------------------------------------------------------------------------------

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def test_workflows_are_what_the_forge_takes():
    """By its schema, and by a checker of what makes workflows unsafe; neither has run there yet."""
    checker = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", *WORKFLOWS]
    done = subprocess.run(checker, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
    zizmor = [
        f"{sys.prefix}/bin/zizmor",
        "--offline",
        "--no-progress",
        "--no-config",
        "--persona",
        "pedantic",
        *WORKFLOWS,
    ]
    done = subprocess.run(zizmor, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in WORKFLOWS] == ["ci.yml", "release.yml"]


def test_workflows_run_what_is_here():
    """Every script and file they name exists; what is run with the right to write runs nothing of the checkout."""
    text = "".join(path.read_text() for path in WORKFLOWS)
    for name in set(re.findall(r"(?:scripts|packaging)/[\w./-]+", text)):
        assert (ROOT / name).exists(), name
    jobs = dict(re.findall(r"(?ms)^  (\w+):\n    name: (.*?)(?=^  \w+:\n    name|\Z)", WORKFLOWS[1].read_text()))
    writing = {name for name, job in jobs.items() if ": write" in job}
    assert writing == {"publish"} and "checkout@" not in jobs["publish"] and "scripts/" not in jobs["publish"]
