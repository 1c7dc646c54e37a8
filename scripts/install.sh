#!/bin/sh
# Install this checkout for the current user: an environment of its own, a launcher on the PATH, the daemon started.
# Run it again to upgrade. Nothing is switched before the new build has run. The last line calls main, so that half a
# file does nothing.

set -eu

say() { printf '%s\n' "$*"; }
die() { printf 'install.sh: %s\n' "$*" >&2; exit 1; }
pause() { sleep 0.2 2>/dev/null || sleep 1; }

# A word in single quotes, for a shell to read back as it is.
quoted() { printf "'%s'" "$(printf '%s' "$1" | sed "s/'/'\\\\''/g")"; }

check_user() {
    if [ "$(id -u)" -eq 0 ] && [ -n "${SUDO_USER:-}" ]; then
        die "run it as yourself, without sudo: it installs into your own home and would leave root's files there"
    fi
    case "${HOME:-}" in
        /*) ;;
        *) die "HOME must be an absolute path, it is '${HOME:-}'" ;;
    esac
    [ -d "$HOME" ] || die "your home $HOME does not exist"
}

places() {
    checkout=$(cd "$(dirname "$0")/.." && pwd)
    [ -f "$checkout/llm_proxy/__init__.py" ] || die "$checkout is not a checkout of llm-proxy"
    version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$checkout/llm_proxy/__init__.py")
    versions=${XDG_DATA_HOME:-$HOME/.local/share}/llm-proxy/versions
    state=$HOME/.local/state/llm-proxy
    bin=$HOME/.local/bin
    launcher=$bin/llm-proxy
}

# The interpreter behind the first command that is Python 3.11 or newer; a shim may be there and not work.
find_python() {
    for name in ${PYTHON:-python3.13 python3.12 python3.11 python3 python3.14}; do
        python=$("$name" -c 'import sys; print(sys.executable if sys.version_info >= (3, 11) else "")' 2>/dev/null) || continue
        [ -n "$python" ] && return 0
    done
    return 1
}

build() {
    mkdir -p "$versions" "$bin"
    target=$(mktemp -d "$versions/$version-checkout.XXXXXX")
    trap 'rm -rf "$target"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    say "Installing llm-proxy $version into $target ..."
    if command -v uv >/dev/null 2>&1; then
        if find_python; then wanted=$python; else wanted='>=3.11'; fi
        uv venv --quiet --allow-existing --python "$wanted" "$target" || die "uv could not make an environment"
        uv pip install --quiet --compile-bytecode --python "$target/bin/python" "$checkout" ||
            die "uv could not install the checkout and what it needs"
    else
        find_python || die "Python 3.11 or newer is needed; set PYTHON=/path/to/python3 if it is not on the PATH"
        "$python" -m venv "$target" || die "$python cannot make an environment (on Debian: apt install python3-venv)"
        "$target/bin/python" -m pip --quiet --disable-pip-version-check install --compile "$checkout" ||
            die "pip could not install the checkout and what it needs"
    fi
    # Start-up is never to be measured with cold bytecode, whatever the environment says about writing it.
    (unset PYTHONDONTWRITEBYTECODE; "$target/bin/python" -m compileall -q "$target/lib" >/dev/null 2>&1) || true
}

try() {
    "$target/bin/python" -I -m llm_proxy --version >/dev/null || die "the new build does not run; nothing was changed"
    "$target/bin/python" -I -c 'import llm_proxy.service.daemon, llm_proxy.keeper.__main__' ||
        die "the new build does not load; nothing was changed"
    code=0
    "$target/bin/python" -I -m llm_proxy --status >/dev/null || code=$?
    [ "$code" -le 1 ] || die "the configuration is not good, see above; nothing was changed"
}

switch() {
    draft=$bin/.llm-proxy.$$
    word=$(quoted "$target/bin/python" | sed 's/[\\&|]/\\&/g')
    sed "s|@PYTHON@|$word|g" "$checkout/packaging/launcher.sh" >"$draft"
    chmod 755 "$draft"
    mv -f "$draft" "$launcher"
    trap - EXIT
}

running_pid() { "$launcher" --status --json 2>/dev/null | sed -n 's/^  "pid": \([1-9][0-9]*\),$/\1/p'; }

by_systemd() { command -v systemctl >/dev/null 2>&1 && systemctl --user --quiet is-active llm-proxy 2>/dev/null; }

start() {
    old=$(running_pid)
    if by_systemd; then
        systemctl --user restart llm-proxy || die "systemctl --user restart llm-proxy failed"
    else
        if [ -n "$old" ]; then
            say "Stopping the running daemon (pid $old); its open calls have 25 s to end ..."
            kill -TERM "$old" 2>/dev/null || true
        fi
        mkdir -p "$state"
        chmod 700 "$state"
        # The new daemon itself waits for the old one to end, and takes over its port.
        (
            umask 077
            cd /
            rm -f "$state/daemon.log"
            if command -v setsid >/dev/null 2>&1; then
                exec setsid "$launcher" --service </dev/null >"$state/daemon.log" 2>&1
            else
                exec nohup "$launcher" --service </dev/null >"$state/daemon.log" 2>&1
            fi
        ) &
    fi
    tries=0
    while new=$(running_pid); [ -z "$new" ] || [ "$new" = "$old" ]; do
        tries=$((tries + 1))
        if [ "$tries" -gt 150 ]; then
            tail -n 5 "$state/daemon.log" >&2 2>/dev/null || true
            die "the daemon did not start; its messages are in $state/daemon.log"
        fi
        pause
    done
    # The recorder follows a moment later; what is reported below should not be that moment.
    tries=0
    until "$launcher" --status --json 2>/dev/null | grep -q '"recording": "ok"' || [ "$tries" -gt 25 ]; do
        tries=$((tries + 1))
        pause
    done
}

# This build and the one before it stay: a run of the older one may still be open in some terminal.
forget_old_builds() {
    kept=0
    for folder in $(cd "$versions" && ls -dt -- *-checkout.* 2>/dev/null); do
        kept=$((kept + 1))
        [ "$kept" -le 2 ] || rm -rf "${versions:?}/$folder"
    done
}

report() {
    say ""
    "$launcher" --status
    say ""
    say "llm-proxy $version is installed: $launcher"
    case ":$PATH:" in
        *":$bin:"*) ;;
        *) say "It is not on your PATH yet:      export PATH=\"$bin:\$PATH\"" ;;
    esac
    say "Use it in this shell:            eval \"\$($(quoted "$launcher") --env)\""
    say "In every new shell, add:         if command -v llm-proxy >/dev/null 2>&1; then eval \"\$(llm-proxy --env)\"; fi"
    say "In fish:                         llm-proxy --env --shell fish | source"
    say "After a reboot, start it with:   llm-proxy --service &   (or use systemd/llm-proxy.service)"
}

main() {
    check_user
    places
    build
    try
    switch
    start
    forget_old_builds
    report
}

main
