"""`scripts/release`: build everything a release holds into one folder, and try it.

Each platform's tarball is built on such a machine; whoever builds the rest puts the others' tarballs into the folder
first. Two runs from one commit give equal files. Nothing is uploaded or signed here: the release workflow does that.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from release_suite import archives, bill, facts, formula, lock, runtime
from release_suite.facts import PLATFORMS, Facts, NotReleasable

ROOT = Path(__file__).parent.parent.parent
# What an archive holds beside the program: where it lies in the checkout.
_WITH_TARBALL = ("LICENSE", "packaging/completions", "packaging/llm-proxy.1")
_DEB = re.compile(r"llm-proxy_.*\.deb")


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/release", description="Build a release of llm-proxy.")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for the files; may hold other platforms' tarballs")
    parser.add_argument(
        "--runtime",
        choices=("standalone", "local"),
        default="standalone",
        help="the Python in the tarball: a portable one that uv fetches, or a copy of the one that runs this, which "
        "runs only on systems like this one",
    )
    parser.add_argument("--base", default="", metavar="URL", help="where releases lie: URL/download/vVERSION/FILE")
    parser.add_argument("--draft", action="store_true", help="also from a checkout that is not ready to be released")
    parser.add_argument("--no-deb", action="store_true", help="leave out the package for Debian, which takes minutes")
    parser.add_argument("--formula", action="store_true", help="only write homebrew/llm-proxy.rb, with placeholders")
    parser.add_argument("--lock", action="store_true", help="only write the lock files, with what is newest")
    given = parser.parse_args()
    if given.out is None and not (given.formula or given.lock):
        parser.error("--out DIR is needed")
    try:
        if given.lock:
            lock.write(ROOT)
            return 0
        if given.formula:
            path, text = formula.committed(facts.read(ROOT, base="", draft=True, environ=os.environ))
            path.write_text(text)
            return 0
        found = facts.read(ROOT, base=given.base, draft=given.draft, environ=os.environ)
        names = build(found, given.runtime, given.out.resolve(), deb=not given.no_deb)
    except NotReleasable as exc:
        print(f"release: {exc}", file=sys.stderr)
        return 1
    if given.runtime == "local":
        print("release: the tarball is built around this machine's Python: it runs on systems like this one only")
    print("\n".join(names))
    return 0


def build(found: Facts, kind: str, out: Path, *, deb: bool) -> list[str]:
    """Every file into `out`; their names. Raises NotReleasable."""
    here = facts.this_platform()
    others = [found.tarball(*platform) for platform in PLATFORMS if platform != here]
    _make_room(found, out, others)
    with tempfile.TemporaryDirectory(prefix="llm-proxy-release-") as folder:
        work = Path(folder)
        wheel = _python_packages(found, work, out)
        _archive(found, wheel, out / f"{found.name}.tar.gz", work / "plain", {})
        tree = work / "runtime"
        sums = runtime.build(found, kind, wheel, tree, work)
        bill.write(found, tree, sums, out / f"{found.name}.cdx.json")
        if deb:
            _debian_package(found, out, wheel, tree / "bin/python" if kind == "standalone" else None)
        extras = {path: found.root / path for path in _WITH_TARBALL} | {"runtime": tree}
        archive = out / found.tarball(*here)
        _archive(found, None, archive, work / "bundle", extras)
        _try(found, archive, work / "moved")
    (out / f"CHANGES-{found.version}.md").write_text(found.changes)
    _installer(found, out / "install.sh")
    tarballs = {name: archives.sha256(out / name) for name in (*others, archive.name) if (out / name).exists()}
    (out / "llm-proxy.rb").write_text(formula.text(found, tarballs))
    files = [path for path in out.iterdir() if path.name != "SHA256SUMS"]
    (out / "SHA256SUMS").write_text(archives.sums(files))
    return sorted([*(path.name for path in files), "SHA256SUMS"])


def _make_room(found: Facts, out: Path, others: list[str]) -> None:
    """An empty folder, but for tarballs of other platforms and packages for Debian. An earlier run's files go."""
    if (missing := [name for name in others if not (out / name).exists()]) and not found.draft:
        raise NotReleasable(f"{', '.join(missing)} must be in {out}: each is built on such a machine, with --draft")
    out.mkdir(parents=True, exist_ok=True)
    ours = {*found.sources, f"{found.name}.tar.gz", found.tarball(*facts.this_platform()), f"{found.name}.cdx.json"}
    ours |= {f"CHANGES-{found.version}.md", "install.sh", "llm-proxy.rb", "SHA256SUMS"}
    for path in out.iterdir():
        if path.name not in {*ours, *others} and not _DEB.fullmatch(path.name):
            raise NotReleasable(f"{path} is no file of release {found.version}: take an empty folder")
    for name in ours:
        (out / name).unlink(missing_ok=True)


def _python_packages(found: Facts, work: Path, out: Path) -> Path:
    """The sdist, and the wheel from what is in the sdist, which so is shown to be whole."""
    hatchling = [sys.executable, "-m", "hatchling", "build", "-d"]
    sdist, wheel = found.sources
    subprocess.run([*hatchling, out, "-t", "sdist"], check=True, cwd=found.root, env=found.environ, stdout=2)
    subprocess.run(["tar", "-xzf", out / sdist, "-C", work], check=True)
    source = work / sdist.removesuffix(".tar.gz")
    subprocess.run([*hatchling, out, "-t", "wheel"], check=True, cwd=source, env=found.environ, stdout=2)
    return out / wheel


def _archive(found: Facts, wheel: Path | None, archive: Path, work: Path, extras: dict[str, Path]) -> None:
    """`llm-proxy-V/` with the launcher, the wheel where it is to be installed, and the extras by their last name."""
    folder = work / found.name
    folder.mkdir(parents=True)
    shutil.copy(found.root / "packaging/launcher.sh", folder / "launcher.sh").chmod(0o755)
    if wheel is not None:
        shutil.copy(wheel, folder)
    for name, source in extras.items():
        if source.is_dir():
            source.rename(folder / name) if name == "runtime" else shutil.copytree(source, folder / source.name)
        elif source.exists():
            shutil.copy(source, folder)
        elif not found.draft:
            raise NotReleasable(f"{source} is missing")
    archives.pack(folder, archive, found.epoch)


def _try(found: Facts, archive: Path, elsewhere: Path) -> None:
    """Unpack it where nothing was built, and run it."""
    elsewhere.mkdir()
    subprocess.run(["tar", "-xzf", archive, "-C", elsewhere], check=True)
    runtime.try_it(elsewhere / found.name / "runtime", found.version)


def _installer(found: Facts, path: Path) -> None:
    script = (found.root / "scripts/install.sh").read_text()
    text, count = re.subn(r"(?m)^published=$", f"published={found.base}", script)
    if count != 1:
        raise NotReleasable("scripts/install.sh has no line 'published=' to fill in")
    path.write_text(text)
    path.chmod(0o755)


def _debian_package(found: Facts, out: Path, wheel: Path, python: Path | None) -> None:
    """With that Python, or the system's; nothing where there is no dpkg."""
    if shutil.which("dpkg-deb"):
        with_python = ["--python", python] if python else []
        script = found.root / "packaging/deb/build"
        subprocess.run([script, "--wheel", wheel, "--out", out, *with_python], check=True, env=found.environ, stdout=2)


if __name__ == "__main__":
    sys.exit(main())
