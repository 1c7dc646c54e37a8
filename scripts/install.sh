#!/bin/sh
# Install llm-proxy for the current user: an environment of its own, a launcher on the PATH, then `llm-proxy --setup`.
# From a checkout it installs that checkout; piped from the web, or with a version, a release:
#   curl -fsSL URL/install.sh | sh -s -- [--version V] [--no-shell] [--python-env] [--dry-run]
# A release that brings its own Python for this machine needs nothing else; any other is built with the Python here.
# Run it again, or `llm-proxy upgrade`, to upgrade or downgrade; --rollback goes back to the version before. Nothing is
# switched before that build has run, and what fails or is broken off after that switches back. The last line calls
# main, so that half a file does nothing.
#
# Exit status: 0 it runs; 1 not installed; 3 installed, but the shells' files could not be edited; 4 installed, but
# nothing starts it by itself.

[ -z "${ZSH_VERSION-}" ] || emulate sh
set -eu
umask 077

# Where releases lie: PUBLISHED/latest/download/FILE and PUBLISHED/download/vVERSION/FILE. A release fills it in.
published=
# AWS credentials for the Bedrock door, OpenTelemetry's exporter, configuration files in YAML: with them everything
# documented works at once.
EXTRAS=bedrock,gateway,otlp,yaml

say() { printf '%s\n' "$*"; }
warn() { printf 'install.sh: %s\n' "$*" >&2; }
die() {
    warn "$*"
    exit 1
}
has() { command -v "$1" >/dev/null 2>&1; }

# A word in single quotes, for a shell to read back as it is.
quoted() { printf "'%s'" "$(printf '%s' "$1" | sed "s/'/'\\\\''/g")"; }

usage() {
    say "usage: install.sh [--version V | --rollback] [--no-shell] [--python-env] [--dry-run]"
    say "  --version V   that release (or LLM_PROXY_VERSION=V); the newest by default, from a checkout the checkout"
    say "  --rollback    back to the version that the last installation replaced"
    say "  --no-shell    leave the shells' files alone"
    say "  --python-env  build it with the Python of this machine, whatever the release brings"
    say "  --dry-run     only say what would be done"
    say "LLM_PROXY_BASE_URL says where releases lie, PYTHON which Python to use."
}

read_options() {
    wanted=${LLM_PROXY_VERSION-} dry_run=no setup_options='' python_env=no rollback=no
    while [ $# -gt 0 ]; do
        case $1 in
            --version)
                [ $# -gt 1 ] || die "--version takes a version"
                wanted=$2
                shift
                ;;
            --version=*) wanted=${1#*=} ;;
            --rollback) rollback=yes ;;
            --no-shell) setup_options=--no-shell ;;
            --python-env) python_env=yes ;;
            --dry-run) dry_run=yes ;;
            --help | -h)
                usage
                exit 0
                ;;
            *)
                usage >&2
                die "there is no option $1"
                ;;
        esac
        shift
    done
    [ $rollback = no ] || [ -z "$wanted" ] || die "--rollback goes back to the version before, --version to any"
    wanted=${wanted#v}
    case $wanted in '' | [0-9]*) ;; *) die "'$wanted' is not a version" ;; esac
    case $wanted in *[!0-9A-Za-z.+]*) die "'$wanted' is not a version" ;; esac
}

check_system() {
    case $(uname -s) in
        Linux | Darwin) ;;
        *) die "llm-proxy runs on Linux, macOS and WSL; this is $(uname -s). Nothing was written" ;;
    esac
}

check_user() {
    if [ "$(id -u)" -eq 0 ] && [ -n "${SUDO_USER:-}" ]; then
        die "run it as yourself, without sudo: it installs into your own home and would leave root's files there"
    fi
    case ${HOME:-} in
        /*) ;;
        *) die "HOME must be an absolute path, it is '${HOME:-}'" ;;
    esac
    [ "$(printf '%s' "$HOME" | wc -l)" -eq 0 ] || die "your home has a line break in its name"
    [ -d "$HOME" ] || die "your home $HOME does not exist"
    [ -O "$HOME" ] || die "your home $HOME belongs to somebody else; use your own account, without sudo or su"
    case ${XDG_DATA_HOME:-} in /*) data=$XDG_DATA_HOME ;; *) data=$HOME/.local/share ;; esac
    versions=$data/llm-proxy/versions
    untouched="Nothing was written"
    state=$HOME/.local/state/llm-proxy
    bin=$HOME/.local/bin
    launcher=$bin/llm-proxy
    if [ -h "$launcher" ] || { [ -e "$launcher" ] && ! grep -q /llm-proxy/versions/ "$launcher"; }; then
        die "$launcher is there and was not put there by this script; remove it (uv tool uninstall? pipx uninstall?) first"
    fi
}

# -- what to install -----------------------------------------------------------------------------------------------

find_source() {
    checkout='' runtime='' script_sum='' base=''
    case $0 in *install.sh) checkout=$(cd "$(dirname "$0")/.." && pwd) ;; esac
    if [ -z "$wanted" ] && [ -n "$checkout" ] && [ -f "$checkout/llm_proxy/__init__.py" ]; then
        version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$checkout/llm_proxy/__init__.py")
        label=$version-checkout source=$checkout template=$checkout/packaging/launcher.sh url=
    else
        find_release
        label=$version
    fi
    [ -n "$runtime" ] || find_tools
}

# The version, where its files lie and their sums, from its list of sums.
find_release() {
    base=${LLM_PROXY_BASE_URL:-$published}
    base=${base%/}
    [ -n "$base" ] || die "this is no release's install.sh; say where releases lie: LLM_PROXY_BASE_URL=https://..."
    # A secure address may not lead to an insecure one.
    case $base in https:*) only_https="--proto =https" ;; *) only_https= ;; esac
    for sha in sha256sum shasum openssl ''; do ! has "$sha" || break; done
    [ -n "$sha" ] || die "sha256sum, shasum or openssl is needed to check what is downloaded"
    has tar || die "tar is needed to unpack what is downloaded"
    list=$base/latest/download/SHA256SUMS
    [ -z "$wanted" ] || list=$base/download/v$wanted/SHA256SUMS
    sums=$(download "$list") || die "$list could not be downloaded. Nothing was written"
    version='' sum='' lines=0
    while read -r digest name _; do
        name=${name#\*}
        case $name in llm-proxy-[0-9]*.tar.gz) name=${name#llm-proxy-} ;; *) continue ;; esac
        case ${name%.tar.gz} in *[!0-9A-Za-z.+]*) continue ;; esac
        [ -z "$wanted" ] || [ "${name%.tar.gz}" = "$wanted" ] || continue
        version=${name%.tar.gz} sum=$digest lines=$((lines + 1))
    done <<SUMS
$sums
SUMS
    case $lines in
        1) ;;
        0) die "$list names no llm-proxy-${wanted:-VERSION}.tar.gz (does a network's login page answer for it?). Nothing was written" ;;
        *) die "$list has $lines lines for llm-proxy-${wanted:-VERSION}.tar.gz where it must have one. Nothing was written" ;;
    esac
    place=$base/download/v$version wheels=llm-proxy-$version.tar.gz wheels_sum=$sum
    is_sum "$wheels_sum" || die "$list has no SHA-256 sum for $wheels. Nothing was written"
    url=$place/$wheels
    name_machine
    if [ $python_env = no ] && [ -n "$machine" ]; then
        find_sum "llm-proxy-$version-$machine.tar.gz"
        [ -z "$sum" ] || runtime=llm-proxy-$version-$machine.tar.gz runtime_sum=$sum url=$place/$runtime
    fi
    find_sum install.sh
    script_sum=$sum
}

is_sum() {
    case $1 in *[!0-9a-f]*) return 1 ;; esac
    [ ${#1} -eq 64 ]
}

# The sum of that file of the release, or nothing where it has no such file.
find_sum() {
    sum='' lines=0
    while read -r digest name _; do
        [ "${name#\*}" = "$1" ] || continue
        sum=$digest lines=$((lines + 1))
    done <<SUMS
$sums
SUMS
    [ $lines -eq 0 ] || { [ $lines -eq 1 ] && is_sum "$sum"; } || die "$list has no single SHA-256 sum for $1. Nothing was written"
}

# What releases call this machine; nothing where they have no Python for it.
name_machine() {
    machine=
    case $(uname -s) in
        Linux) machine=linux ;;
        Darwin) machine=macos ;;
    esac
    processor=$(uname -m)
    case $(ldd --version 2>&1) in *musl*) processor=musl ;; esac
    # A shell that Rosetta translates is told of another processor.
    [ "$(sysctl -n sysctl.proc_translated 2>/dev/null)" != 1 ] || processor=arm64
    case $processor in
        x86_64 | amd64) machine=$machine-x86_64 ;;
        aarch64 | arm64) machine=$machine-aarch64 ;;
        *) machine= ;;
    esac
}

# A URL, to the output.
download() {
    case $1 in file://*)
        cat "${1#file://}"
        return
        ;;
    esac
    if has curl; then
        # shellcheck disable=SC2086  # an option with its value, or nothing
        curl -fsSL $only_https --connect-timeout 20 --speed-limit 1 --speed-time 60 "$1"
    elif has wget; then
        wget -q -T 60 -O - "$1"
    else
        die "curl or wget is needed to download a release"
    fi
}

sha256() {
    case $sha in
        sha256sum) sha256sum ;;
        shasum) shasum -a 256 ;;
        openssl) openssl dgst -sha256 -r ;;
    esac | cut -c 1-64
}

# NAME SUM: a file of the release, into the work folder.
get() {
    say "Downloading $place/$1 ..."
    download "$place/$1" >"$work/$1" || die "$place/$1 could not be downloaded. Nothing was changed"
    [ "$(sha256 <"$work/$1")" = "$2" ] || die "$place/$1 is not what its SHA-256 sum says. Nothing was changed"
}

# NAME SUM: an archive of the release, unpacked into `top`; root must not get the packer's files either.
unpack() {
    get "$1" "$2"
    top=$work/llm-proxy-$version template=$work/llm-proxy-$version/launcher.sh
    rm -rf "$top"
    (cd "$work" && tar -xzof "$1") || die "$place/$1 could not be unpacked. Nothing was changed"
    rm -f "$work/$1"
    [ -f "$template" ] || die "$place/$1 does not hold what a release holds. Nothing was changed"
}

fetch() {
    [ -n "$url" ] || return 0
    unpack "$wheels" "$wheels_sum"
    source=
    for wheel in "$top/llm_proxy-"*.whl; do source=$wheel; done
    [ -f "$source" ] || die "$url does not hold what a release holds. Nothing was changed"
}

# The release's own Python becomes the version's folder. False where there is none, or it does not run on this machine.
with_runtime() {
    [ -n "$runtime" ] || return 1
    unpack "$runtime" "$runtime_sum"
    [ -x "$top/runtime/bin/python" ] || die "$url does not hold what a release holds. Nothing was changed"
    say "Installing llm-proxy $version into $target ..."
    { rmdir "$target" && mv "$top/runtime" "$target" && chmod 700 "$target"; } || die "$target cannot be written. Nothing was changed"
    said=$(loads 2>&1) && return 0
    warn "the release's Python for $machine does not run here ($(say "$said" | tail -n 1)); building it with the one here"
    rm -rf "$target"
    mkdir "$target"
    find_tools
    url=$place/$wheels
    return 1
}

# What a later --rollback is done with. Releases of old have none.
keep_script() {
    if [ -n "$script_sum" ]; then
        get install.sh "$script_sum"
        cp "$work/install.sh" "$target/install.sh"
    elif [ -z "$url" ]; then
        cp "$checkout/scripts/install.sh" "$target/install.sh"
    fi
}

# -- what to install it with ---------------------------------------------------------------------------------------

# The interpreter behind the first command that is Python 3.11 or newer and has the modules; a shim may not work.
find_python() {
    for name in ${PYTHON:-python3.13 python3.12 python3.11 python3 python3.14}; do
        python=$("$name" -c "import sys$1; print(sys.executable if sys.version_info >= (3, 11) else '')" 2>/dev/null) || continue
        [ -z "$python" ] || return 0
    done
    python=
    return 1
}

find_tools() {
    unset PYTHONHOME PYTHONPATH
    find_python ", venv, ensurepip" || has uv || no_tools
}

no_tools() {
    if find_python ""; then
        die "$python cannot make environments (Debian, Ubuntu: sudo apt install python3-venv). $untouched"
    fi
    if [ -n "${PYTHON-}" ]; then
        found=" (PYTHON is $PYTHON)"
    else
        found=$(python3 -c 'import sys; print(" (python3 is %d.%d)" % sys.version_info[:2])' 2>/dev/null) || found=
    fi
    die "Python 3.11 or newer is needed$found, or uv, which brings its own; PYTHON=/path/to/python3 names one that is not on the PATH. $untouched"
}

build() {
    say "Installing llm-proxy $version into $target ..."
    # /tmp may be full, or not be made for programs.
    TMPDIR=$work
    export TMPDIR
    no_new_caches
    with_uv || with_pip || die "llm-proxy $version could not be installed, see above. Nothing was changed"
    # Start-up is never to be measured with cold bytecode, whatever the environment says about writing it.
    (unset PYTHONDONTWRITEBYTECODE; "$target/bin/python" -m compileall -q "$target/lib" >/dev/null 2>&1) || true
}

# Where pip or uv has no cache yet, none is left behind.
no_new_caches() {
    caches=${XDG_CACHE_HOME:-$HOME/.cache}
    [ -d "$caches/uv" ] || export "UV_CACHE_DIR=${UV_CACHE_DIR:-$work/uv}"
    [ -d "$caches/pip" ] || [ -d "$HOME/Library/Caches/pip" ] || export "PIP_CACHE_DIR=${PIP_CACHE_DIR:-$work/pip}"
}

with_uv() {
    has uv || return 1
    find_python "" || true
    uv venv --quiet --allow-existing --python "${python:->=3.11}" "$target" &&
        uv pip install --quiet --compile-bytecode --python "$target/bin/python" "${source}[$EXTRAS]" &&
        rm -f "$target/.lock" && return 0 # of uv's, which anybody could write
    warn "uv could not do it"
    return 1
}

with_pip() {
    find_python ", venv, ensurepip" || return 1
    "$python" -m venv --clear "$target" &&
        "$target/bin/python" -m pip --quiet --disable-pip-version-check install --compile --prefer-binary --use-pep517 "${source}[$EXTRAS]"
}

loads() { "$target/bin/python" -I -c 'import llm_proxy.service.daemon, llm_proxy.keeper.__main__'; }

try() {
    said=$("$target/bin/python" -I -m llm_proxy --version) && [ "$said" = "llm-proxy $version" ] ||
        die "$build does not run; nothing was changed"
    loads || die "$build does not load; nothing was changed"
    code=0
    "$target/bin/python" -I -m llm_proxy --status >/dev/null || code=$?
    [ "$code" -le 1 ] || die "the configuration is not good, see above; nothing was changed"
}

# -- changes, and undoing them -------------------------------------------------------------------------------------

begin() {
    made='' half='' work='' locked='' draft=$bin/.llm-proxy.$$ before='' untouched="Nothing was changed"
    trap undo EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    make "$versions"
    make "$bin"
    make "$state"
    chmod 700 "$state"
    lock
    work=$(mktemp -d "$versions/.work.XXXXXX")
}

# A folder with all that is missing above it, remembered with the innermost first.
make() {
    [ ! -d "$1" ] || return 0
    make "$(dirname "$1")"
    mkdir "$1"
    made="$1
$made"
}

# One installation at a time, or each would clear the other's half away.
lock() {
    if ! ln -s $$ "$versions/.lock" 2>/dev/null; then
        holder=$(readlink "$versions/.lock") || die "$versions cannot be written"
        ! kill -0 "$holder" 2>/dev/null || die "another installation is at work (pid $holder; if not, remove $versions/.lock)"
        rm -f "$versions/.lock"
        ln -s $$ "$versions/.lock"
    fi
    locked=yes
}

# All that the version's folder is to hold beside the program: its command, and where it came from.
complete() {
    word=$(quoted "$target/bin/python" | sed 's/[\\&|]/\\&/g')
    sed "s|@PYTHON@|$word|g" "$template" >"$target/launcher.sh"
    chmod 755 "$target/launcher.sh"
    {
        say "version $version"
        if [ -n "$url" ]; then say "base $base"; else say "checkout $checkout"; fi
        say "python-env $python_env"
    } >"$target/release"
}

find_current() {
    previous=
    [ ! -f "$launcher" ] || previous=$(sed -n "s|.*/llm-proxy/versions/\([^/']*\)/bin/python.*|\1|p" "$launcher" | head -n 1)
}

switch() {
    # What --uninstall is to remove as well, once it is empty.
    printf '%s' "$made" >>"$state/made"
    # Where --rollback leads to from there.
    say "$previous" >"$target/previous"
    cp -p "$target/launcher.sh" "$draft"
    if [ -f "$launcher" ]; then
        cp -p "$launcher" "$work/before"
        before=$work/before
    fi
    made=
    mv -f "$draft" "$launcher"
}

setup() {
    code=0
    # shellcheck disable=SC2086  # an option, or nothing
    "$launcher" --setup $setup_options || code=$?
    case $code in
        0 | 3 | 4) ;;
        *)
            [ -n "$before" ] || half=
            tail -n 5 "$state/daemon.log" >&2 2>/dev/null || true
            die "setup failed, see above${before:+; the version before it is put back}"
            ;;
    esac
    before=''
    for folder in "$versions"/* "$versions"/.work.*; do
        case ${folder##*/} in "${target##*/}" | "$previous" | "${work##*/}") ;; *) rm -rf "$folder" ;; esac
    done
    # Drafts of installations that were killed.
    rm -f "$bin"/.llm-proxy.[0-9]*
    half=''
}

# At every exit: whatever is half done goes, and the version before it comes back.
undo() {
    trap '' INT TERM HUP
    if [ -n "$before" ]; then
        mv -f "$before" "$launcher"
        # its daemon must not inherit signals that are ignored
        # shellcheck disable=SC2086
        (trap - INT TERM HUP; exec "$launcher" --setup $setup_options) >/dev/null 2>&1 || true
    fi
    rm -f "$draft"
    [ -z "$half" ] || rm -rf "$half"
    [ -z "$work" ] || rm -rf "$work"
    [ -z "$locked" ] || rm -f "$versions/.lock"
    printf '%s' "$made" | while IFS= read -r folder; do
        [ "$folder" != "$state" ] || rm -f "$state/made"
        rmdir "$folder" 2>/dev/null || true
    done
}

# -- telling -------------------------------------------------------------------------------------------------------

plan() {
    say "Would install llm-proxy $version from ${url:-$source}"
    [ -z "$url" ] || say "  SHA-256 ${runtime_sum:-$wheels_sum}"
    if [ -n "$runtime" ]; then say "  with the Python in it"; elif has uv; then say "  with uv"; else say "  with $python"; fi
    say "  into $versions/$label.XXXXXX"
    say "  as $launcher"
    say "and then run: llm-proxy --setup${setup_options:+ $setup_options}"
    say "Nothing was written."
}

report() {
    say ""
    "$launcher" --status || true
    say ""
    say "llm-proxy $version is installed: $launcher"
    case ":$PATH:" in
        *":$bin:"*)
            first=$(command -v llm-proxy) || first=
            [ "$first" = "$launcher" ] || warn "your PATH has another llm-proxy before it: $first (llm-proxy doctor tells more)"
            ;;
        *) say "It is not on your PATH yet:      export PATH=$(quoted "$bin"):\"\$PATH\"" ;;
    esac
    say "Use it in this shell:            eval \"\$($(quoted "$launcher") --env)\""
    if [ -z "$setup_options" ] && [ "$code" -eq 0 ]; then
        say "New shells use it by themselves."
    else
        say "In every new shell, add:         if command -v llm-proxy >/dev/null 2>&1; then eval \"\$(llm-proxy --env)\"; fi"
        say "In fish:                         llm-proxy --env --shell fish | source"
    fi
    if [ -n "$previous" ] && [ -f "$versions/$previous/launcher.sh" ]; then
        if [ $rollback = yes ]; then back="To go forward again:        "; else back="To go back to the one before:"; fi
        say "$back    llm-proxy upgrade --rollback"
    fi
    say "To undo all of this:             llm-proxy --uninstall"
}

# -- the two ways -------------------------------------------------------------------------------------------------

prepare() {
    find_source
    if [ $dry_run = yes ]; then
        plan
        return 0
    fi
    begin
    target=$(mktemp -d "$versions/$label.XXXXXX")
    half=$target build="the new build"
    if ! with_runtime; then
        fetch
        build
    fi
    keep_script
    complete
}

# The version that the last installation replaced is still there; it can be left again in the same way.
roll_back() {
    find_current
    [ -n "$previous" ] || die "nothing is installed that --rollback could leave. Nothing was written"
    label=
    read -r label 2>/dev/null <"$versions/$previous/previous" || true
    case $label in
        '') die "there is no version before this one to go back to. Nothing was written" ;;
        */* | .*) die "$versions/$previous/previous is damaged. Nothing was written" ;;
    esac
    target=$versions/$label build="the version before"
    version=$(sed -n 's/^version //p' "$target/release" 2>/dev/null) || version=
    { [ -n "$version" ] && [ -f "$target/launcher.sh" ]; } || die "$target is not whole; --version installs it anew. Nothing was written"
    if [ $dry_run = yes ]; then
        say "Would go back to llm-proxy $version in $target"
        say "and then run: llm-proxy --setup${setup_options:+ $setup_options}"
        say "Nothing was written."
        return 0
    fi
    begin
}

main() {
    read_options "$@"
    check_system
    check_user
    if [ $rollback = yes ]; then roll_back; else prepare; fi
    [ $dry_run = no ] || return 0
    try
    find_current
    switch
    setup
    report
    exit "$code"
}

{ main "$@" </dev/null; exit; }
