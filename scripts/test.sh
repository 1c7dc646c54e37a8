#!/bin/sh
# Everything that is checked: lint, format, types, tests. Makes what it needs: .venv in the checkout, and as root on
# Debian the shells and tools that tests drive. The exit status is 0 only if all of it passed.

set -eu
cd "$(dirname "$0")/.."

# Commands the tests run, and the Debian packages they come from.
TOOLS="zsh fish ksh mksh yash busybox strace ip cc curl loginctl dbus-daemon ruby chromium prometheus mandoc groff lintian dpkg-shlibdeps /usr/bin/python3 redis-server nginx /usr/lib/postgresql/*/bin/initdb"
PACKAGES="zsh fish ksh mksh yash busybox strace iproute2 gcc libc6-dev curl systemd dbus dbus-user-session libpam-systemd ruby chromium fonts-inter fonts-dejavu-core prometheus mandoc groff-base bash-completion lintian dpkg-dev binutils python3 python3-venv python3-pip postgresql redis-server nginx-light"

install_tools() {
    missing=""
    for tool in $TOOLS; do command -v "$tool" >/dev/null 2>&1 || missing="$missing $tool"; done
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null 2>&1; then
        echo "test.sh: installing $PACKAGES"
        apt-get update -qq
        # shellcheck disable=SC2086  # a list of words
        without_services env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $PACKAGES >/dev/null
    else
        echo "test.sh: missing:$missing (packages: $PACKAGES); their tests will fail" >&2
    fi
}

# Packages such as prometheus start what they bring; tests start their own.
without_services() {
    policy=/usr/sbin/policy-rc.d
    if [ -e "$policy" ]; then "$@"; return; fi
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    done=0
    "$@" || done=$?
    rm -f "$policy"
    return "$done"
}

find_python() {
    for name in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
        python=$("$name" -c 'import sys; print(sys.executable if sys.version_info >= (3, 11) else "")' 2>/dev/null) || continue
        [ -n "$python" ] && return 0
    done
    echo "test.sh: Python 3.11 or newer is needed; set PYTHON" >&2
    exit 1
}

make_environment() {
    wanted=$(cksum pyproject.toml)
    [ -x .venv/bin/python ] && [ "$(cat .venv/.installed-from 2>/dev/null)" = "$wanted" ] && return 0
    if command -v uv >/dev/null 2>&1; then
        [ -x .venv/bin/python ] || { find_python; uv venv --quiet --python "$python" .venv; }
        uv pip install --quiet --compile-bytecode --python .venv/bin/python --editable ".[test]"
    else
        [ -x .venv/bin/python ] || { find_python; "$python" -m venv .venv; }
        .venv/bin/python -m pip --quiet --disable-pip-version-check install --editable ".[test]"
    fi
    printf '%s\n' "$wanted" >.venv/.installed-from
}

check() {
    echo "test.sh: $*"
    "$@" || failed="$failed
  $*"
}

main() {
    install_tools
    make_environment
    # Tests with limits on start-up must not be run on cold bytecode.
    unset PYTHONDONTWRITEBYTECODE
    .venv/bin/python -m compileall -q llm_proxy
    PATH=$PWD/.venv/bin:$PATH
    failed=""
    check ruff check .
    check ruff format --check .
    check mypy
    [ -z "$failed" ] || echo "test.sh: FAILED before the tests:$failed" >&2
    limit=""
    ! command -v timeout >/dev/null 2>&1 || limit="timeout -k 10 2280"
    # Many tests wait for other processes: more workers than cores, and the longest files first (tests/conftest.py).
    # shellcheck disable=SC2086  # a command with its options, or nothing
    if $limit python -m pytest -n "${WORKERS:-3}" --dist loadfile --no-loadscope-reorder; then [ -z "$failed" ]; else exit 1; fi
}

main
