"""The users' shells: which files of theirs point new shells at the daemon, and editing them without breaking anything.

bash and zsh get a managed block in their rc files, fish a file of its own. A link is followed and stays a link; a
hard-linked or foreign file is edited in place, any other replaced in one step. Leaves out what the block does: that is
what `--env --shell` prints.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from llm_proxy import paths
from llm_proxy.errors import LlmProxyError
from llm_proxy.service import block
from llm_proxy.service.steps import Steps

_ZSH_LIMIT = 5.0  # seconds for a zsh that reads the user's .zshenv
_LARGEST_FILE = 16 * 2**20  # bytes; no rc file is

_PATH = 'case ":${PATH-}:" in *":${HOME-}/.local/bin:"*) ;; *) PATH="${HOME-}/.local/bin${PATH:+:$PATH}" ;; esac\n'
_POSIX = 'if \\command -v llm-proxy >/dev/null 2>&1; then \\eval "$(llm-proxy --env --shell {} 2>/dev/null)"; fi\n'
# Other shells read .profile too, and what a desktop session reads it would hand to programs that outlive the daemon.
_LOGIN = "case ${{BASH_VERSION:+$-}} in *i*)\n{};;\nesac\n"
_FISH_PATH = "contains -- $HOME/.local/bin $PATH; or set -gx PATH $HOME/.local/bin $PATH\n"
# fish itself complains, wherever its stderr goes, of a program that cannot be executed; sh does so on its own stderr
_FISH = (
    "status is-interactive; and command -q llm-proxy"
    "; and sh -c 'exec llm-proxy --env --shell fish' 2>/dev/null | source\n"
)


@dataclass(frozen=True, slots=True)
class Target:
    """A file that a shell reads at its start; `create` where it is to be made if there is none."""

    shell: str  # bash, zsh, fish, or "login" for what bash reads at login
    path: Path
    create: bool = False


class CannotEdit(LlmProxyError):
    """That file cannot be edited. It is as it was."""


def setup(steps: Steps, environ: Mapping[str, str]) -> bool:
    """Put our block into every file that needs it; False where one could not be edited, which is a warning, or where
    there is none. Nothing is raised."""
    found = [target for target in targets(environ) if target.create or os.path.lexists(target.path)]
    if not found:
        steps.say(
            "shell",
            "warning",
            f"there is no file of bash, zsh or fish; add these lines to your shell's:\n{lines('sh')}",
        )
    edited = [_setup_one(steps, target) for target in found]
    return bool(found) and all(edited)


def unsetup(steps: Steps, environ: Mapping[str, str]) -> bool:
    """Take our block out of every file that has it; False where one could not be edited, which is a warning."""
    edited = [_unsetup_one(steps, path) for path in _everywhere(environ)]
    return all(edited)


def patched(environ: Mapping[str, str]) -> list[str]:
    """The files that have our block."""
    return [str(path) for path in _everywhere(environ) if _has_block(path)]


def lines(shell: str) -> str:
    """What the block does, for a person to paste."""
    ours = os.path.lexists(f"{paths.home()}/.local/bin/llm-proxy")
    if shell == "fish":
        return (_FISH_PATH if ours else "") + _FISH
    if shell == "login":
        return _LOGIN.format(lines("bash"))
    return (_PATH if ours else "") + _POSIX.format(shell)


def targets(environ: Mapping[str, str]) -> Iterator[Target]:
    """The files new shells of this user read."""
    home = Path(paths.home())
    login = _login_shell(environ)
    yield Target("bash", home / ".bashrc", create=login == "bash")
    # At login bash reads the first that exists, and no .bashrc unless that says so. One that is made must hide none.
    profiles = [home / name for name in (".bash_profile", ".bash_login", ".profile")]
    profile = next((path for path in profiles if path.exists()), profiles[-1])
    if not _sources_bashrc(profile):
        yield Target("login", profile, create=login == "bash")
    yield Target("zsh", _zdotdir(environ) / ".zshrc", create=login == "zsh")
    fish = _fish_folder(environ)
    yield Target("fish", fish / "conf.d/llm-proxy.fish", create=login == "fish" or fish.is_dir())


def _everywhere(environ: Mapping[str, str]) -> Iterator[Path]:
    home = Path(paths.home())
    bash = [home / name for name in (".bashrc", ".bash_profile", ".bash_login", ".profile")]
    zsh = [folder / ".zshrc" for folder in (home, _zdotdir(environ))]
    fish = [folder / "conf.d/llm-proxy.fish" for folder in (home / ".config/fish", _fish_folder(environ))]
    seen = set()
    for path in (*bash, *zsh, *fish):
        if (real := os.path.realpath(path)) not in seen:
            seen.add(real)
            yield path


def _login_shell(environ: Mapping[str, str]) -> str:
    program = environ.get("SHELL") or ""
    if not program:
        try:
            program = pwd.getpwuid(os.getuid()).pw_shell
        except KeyError:
            pass
    return Path(program).name


def _sources_bashrc(profile: Path) -> bool:
    try:
        return re.search(rb"^[^#\n]*\bbashrc\b", profile.read_bytes(), re.MULTILINE) is not None
    except OSError:
        return False


def _zdotdir(environ: Mapping[str, str]) -> Path:
    """Where zsh looks for .zshrc. Its own .zshenv may say so; the variable we see may be a terminal's temporary one."""
    home = paths.home()
    said = ""
    if zsh := shutil.which("zsh", path=environ.get("PATH")):
        without = {name: value for name, value in environ.items() if name != "ZDOTDIR"}
        try:
            done = subprocess.run(
                [zsh, "-c", r'print -r -- "${ZDOTDIR-}"'],
                env=without,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=_ZSH_LIMIT,
            )
            said = os.fsdecode(done.stdout.rstrip(b"\n").rpartition(b"\n")[2])
        except (OSError, subprocess.TimeoutExpired):
            pass
    for folder in (said, environ.get("ZDOTDIR", "")):
        if folder.startswith("/") and (folder == said or folder.startswith(home + "/")) and Path(folder).is_dir():
            return Path(folder)
    return Path(home)


def _fish_folder(environ: Mapping[str, str]) -> Path:
    configured = environ.get("XDG_CONFIG_HOME", "")
    return Path(configured if configured.startswith("/") else f"{paths.home()}/.config") / "fish"


def _setup_one(steps: Steps, target: Target) -> bool:
    body = lines(target.shell)
    try:
        raw = _read(target.path)
        if raw is None and not target.create:
            steps.say("shell", "unchanged", f"{target.path} leads to no file")
            return True
        wanted = block.patch(raw, body.encode(), len(_missing_folders(Path(os.path.realpath(target.path)))))
        if wanted != raw and not steps.dry_run:
            _write(target.path, wanted)
    except (OSError, LlmProxyError) as exc:
        text = f"{target.path} cannot be edited: {_reason(exc)}. Add these lines to it yourself:\n{body}"
        steps.say("shell", "warning", text.rstrip())
        return False
    text = f"{'make' if raw is None else 'change'} {target.path}"
    if wanted == raw:
        steps.say("shell", "unchanged", f"{target.path} has our lines already")
    else:
        steps.say("shell", "would" if steps.dry_run else "done", text)
    return True


def _unsetup_one(steps: Steps, path: Path) -> bool:
    if not path.is_file():
        return True
    try:
        raw = path.read_bytes()
        if not (found := block.blocks(raw)):
            return True
        wanted = block.unpatch(raw)
        ours = not wanted and any(one.made for one in found)
        if not steps.dry_run and ours:
            _remove(path, found[0].folders)
        elif not steps.dry_run:
            _write(path, wanted)
    except (OSError, LlmProxyError) as exc:
        steps.say("shell", "warning", f"{path} cannot be edited: {_reason(exc)}. Remove our lines from it yourself")
        return False
    steps.say("shell", "would" if steps.dry_run else "done", f"{'remove' if ours else 'restore'} {path}")
    return True


def _has_block(path: Path) -> bool:
    try:
        return bool(block.blocks(_read(path) or b""))
    except (OSError, LlmProxyError):
        return False


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _read(path: Path) -> bytes | None:
    """The file behind `path`; None where there is none. Raises OSError, CannotEdit."""
    try:
        facts = path.stat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(facts.st_mode):
        raise CannotEdit("it is not a plain file")
    if facts.st_size > _LARGEST_FILE:
        raise CannotEdit("it is too large")
    return path.read_bytes()


def _missing_folders(path: Path) -> list[Path]:
    """Innermost first."""
    return [folder for folder in path.parents if not folder.exists()]


def _write(path: Path, content: bytes) -> None:
    """Raises OSError, CannotEdit; then the file is as it was."""
    real = Path(os.path.realpath(path))
    try:
        facts = real.stat()
    except FileNotFoundError:
        for folder in reversed(_missing_folders(real)):
            folder.mkdir(0o700)
        _replace(real, content, None)
        return
    # root may write anything; a file that says it is not to be written is another program's product
    if not facts.st_mode & stat.S_IWUSR or not os.access(real, os.W_OK):
        raise CannotEdit("it is read-only")
    if facts.st_nlink > 1 or facts.st_uid != os.geteuid():
        _overwrite(real, content)
        return
    try:
        _replace(real, content, facts)
    except PermissionError:  # its folder is not to be written, or its group is not ours
        _overwrite(real, content)


def _replace(real: Path, content: bytes, facts: os.stat_result | None) -> None:
    """In one step, with the old file's mode, group and extended attributes; a new one is 0600."""
    draft = real.with_name(f".{real.name}.llm-proxy.{os.getpid()}")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            if facts is not None:
                os.fchown(fd, -1, facts.st_gid)
                shutil.copystat(real, draft)
                os.utime(draft)
            file.flush()
            os.fsync(fd)
        draft.rename(real)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _overwrite(real: Path, content: bytes) -> None:
    """The same file with other bytes; the old ones again where that fails."""
    with real.open("r+b", buffering=0) as file:
        before = file.read()

        def put(data: bytes) -> None:
            file.seek(0)
            view = memoryview(data)
            while view:
                view = view[file.write(view) or 0 :]
            file.truncate(len(data))
            os.fsync(file.fileno())

        try:
            put(content)
        except OSError:
            put(before)
            raise


def _remove(path: Path, folders: int) -> None:
    """A file we made, and the folders made for it as far as they are empty."""
    real = Path(os.path.realpath(path))
    real.unlink()
    for folder in list(real.parents)[:folders]:
        try:
            folder.rmdir()
        except OSError:
            return
