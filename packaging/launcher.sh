#!/bin/sh
# The `llm-proxy` command. Whoever installs it fills in the interpreter: scripts/install.sh, which puts this on the PATH in
# one rename, with a path; a wheel with the one that lies beside the command.
# Every new shell waits for `--env`: it is answered here, without Python, wherever the daemon's state is plain to see, and
# so is `run`. Every doubt and everything else goes to llm_proxy.cli. environment.py and state.py hold the same rules.

# The interpreter in the folder of this script, which uv and pipx reach by links.
beside() {
    set -- "$0"
    while [ -h "$1" ]; do
        set -- "$1" "$(readlink "$1")"
        case $2 in /*) set -- "$2" ;; *) set -- "${1%/*}/$2" ;; esac
    done
    printf '%s\n' "${1%/*}/python"
}

number() { case $1 in '' | 0* | *[!0123456789]* | ????????????????????*) return 1 ;; esac; }

# Reads `run` into port, pid, ticks, boot, instance. False unless it is small, ours alone and exactly in its form.
read_run() {
    [ -f "$state/run" ] && [ -O "$state/run" ] || return 1
    # shellcheck disable=SC2046  # fields: mode links uid gid size; the mode tells a link too
    set -- $(cd "$state" && LC_ALL=C PATH=/usr/bin:/bin:$PATH ls -ln run)
    case ${1-} in -r[w-][x-]------*) ;; *) return 1 ;; esac
    [ "$5" -le 256 ] || return 1
    line= more=
    { IFS= read -r line && ! IFS= read -r more && [ -z "$more" ]; } <"$state/run" || return 1
    # shellcheck disable=SC2086  # words
    set -f -- $line
    set +f
    [ "$line" = "1 ${2-} ${3-} ${4-} ${5-} ${6-}" ] || return 1
    port=$2 pid=$3 ticks=$4 boot=$5 instance=$6
    number "$port" && number "$pid" && [ ${#port} -le 5 ] && [ "$port" -le 65535 ] || return 1
    case $instance in *[!0123456789abcdef]*) return 1 ;; ????????????????*) ;; *) return 1 ;; esac
}

# 0: a daemon serves on $port; 1: none does; 2: that cannot be seen from here. A daemon withdraws `run` before it closes
# its port, so the process decides.
serving() {
    read_run || return 1
    if [ ! -r $proc/sys/kernel/random/boot_id ]; then answers; return; fi
    read -r this_boot <$proc/sys/kernel/random/boot_id || return 1
    [ "$boot" = "$this_boot" ] && [ -r "$proc/$pid/stat" ] || return 1
    while IFS= read -r line; do stat=$line; done <"$proc/$pid/stat" || return 1
    # shellcheck disable=SC2086  # words; the command's name may hold anything, so they count from the last ")"
    set -- ${stat##*\)}
    [ "${20-}" = "$ticks" ] || return 1
    case $1 in [ZXxT]) return 1 ;; esac
    # a container may share the processes and not the network
    [ -e "$proc/$pid/ns/net" ] || return 2
    [ "$proc/self/ns/net" -ef "$proc/$pid/ns/net" ]
}

# Where there is no /proc (macOS): the process exists, and what answers on the port knows its public id.
answers() {
    kill -0 "$pid" 2>/dev/null || return 1
    health=$(curl -q -sf -m 0.3 --noproxy '*' "http://127.0.0.1:$port/health" 2>/dev/null) || return 1
    case $health in *"\"$instance\""*) ;; *) return 1 ;; esac
}

# COMMAND NAME PATH VALUE for each variable of ours.
each_variable() {
    "$1" ANTHROPIC_BASE_URL /anthropic/api.anthropic.com "${ANTHROPIC_BASE_URL-}"
    "$1" OPENAI_BASE_URL /openai/api.openai.com/v1 "${OPENAI_BASE_URL-}"
    "$1" OPENAI_API_BASE /openai/api.openai.com/v1 "${OPENAI_API_BASE-}"
    "$1" GOOGLE_GEMINI_BASE_URL /gemini/generativelanguage.googleapis.com "${GOOGLE_GEMINI_BASE_URL-}"
}

# PATH VALUE: whether the value has the form we print, whatever its port.
is_ours() {
    case $2 in
        http://127.0.0.1:*) set -- "$1" "${2#http://127.0.0.1:}" ;;
        http://localhost:*) set -- "$1" "${2#http://localhost:}" ;;
        *) return 1 ;;
    esac
    set -- "$1" "$2" "${2%%[!0123456789]*}"
    [ -n "$3" ] || return 1
    case ${2#"$3"} in "$1" | "${1%/v1}") ;; *) return 1 ;; esac
}

print_export() {
    [ -z "$3" ] || is_ours "$2" "$3" || return 0
    case $shell in
        fish) printf "set -gx %s 'http://127.0.0.1:%s%s'\n" "$1" "$port" "$2" ;;
        *) printf "export %s='http://127.0.0.1:%s%s'\n" "$1" "$port" "$2" ;;
    esac
}

print_unset() {
    is_ours "$2" "$3" || return 0
    case $shell in
        fish) printf 'set -e %s\n' "$1" ;;
        *) printf 'unset %s\n' "$1" ;;
    esac
}

do_export() { if [ -z "$3" ] || is_ours "$2" "$3"; then export "$1=http://127.0.0.1:$port$2"; fi; }
do_unset() { if is_ours "$2" "$3"; then unset "$1"; fi; }

# The line that tells a shell's hook which port its variables name.
print_port() {
    case $shell in
        fish) printf "set -g _llm_proxy_port '%s'\n" "$1" ;;
        *) printf "_llm_proxy_port='%s'\n" "$1" ;;
    esac
}

# The rest of the command's life: the hook's text, from the installed package.
print_hook() {
    [ -z "${LLM_PROXY_NO_HOOK-}" ] || return 0
    case $shell in bash | zsh) name=prompt.sh ;; fish) name=prompt.fish ;; *) return 0 ;; esac
    for hook in "${python%/*/*}"/lib/python3*/site-packages/llm_proxy/service/hooks/"$name"; do
        [ -r "$hook" ] || return 0
        print_port "$port"
        exec cat "$hook"
    done
}

# Where no service manager runs, a new shell starts the daemon and does not wait for it.
autostart() {
    [ -f "$state/setup.json" ] || return 0
    while read -r line; do
        case $line in *'"autostart": "shell"'*)
            umask 077 # before what comes is redirected, because that makes the files
            (
                cd / || exit
                if command -v flock; then flock -n 9 || exit; fi
                if command -v setsid; then exec setsid "$0" --service; else exec nohup "$0" --service; fi
            ) </dev/null >"$state/autostart.log" 2>&1 9>"$state/autostart.lock" &
            return 0
            ;;
        esac
    done <"$state/setup.json"
}

# Prints what `--env` must and exits, or returns where Python has to look.
env_here() {
    python=@PYTHON@ proc=/proc state=${HOME-}/.local/state/llm-proxy
    named=no unset=no shell=sh
    while [ $# -gt 0 ]; do
        case $1 in
            --env | -env) ;;
            --unset) unset=yes ;;
            --shell) [ $# -eq 1 ] || { shell=$2 named=yes && shift; } ;;
            --shell=*) shell=${1#*=} named=yes ;;
            *) return 0 ;;
        esac
        shift
    done
    case $HOME in /*) ;; *) return 0 ;; esac
    case $shell in sh | bash | zsh | fish) ;; *) exit 0 ;; esac
    if [ $unset = yes ]; then
        each_variable print_unset
        [ $named = no ] || [ "$shell" = sh ] || print_port off
    elif [ -n "${NO_LLM_PROXY-}" ]; then
        [ $named = no ] || each_variable print_unset
    else
        serving && status=0 || status=$?
        [ $status -le 1 ] || return 0
        if [ $status -eq 0 ]; then
            each_variable print_export
        elif [ $named = yes ]; then
            port=
            each_variable print_unset
            autostart
        fi
        [ $named = no ] || print_hook
    fi
    exit 0
}

env_or_python() {
    exec 2>/dev/null # no state of the machine may put a message into the start of a shell
    env_here "$@"
    @PYTHON@ -I -c 'from llm_proxy.cli.main import main; main()' "$@"
    exit 0
}

# Nothing is assigned out here: `run` hands its environment on.
case ${1-} in
    run)
        shift
        [ "${1-}" != -- ] || shift
        case ${1-} in '' | -*) exec @PYTHON@ -I -m llm_proxy run "$@" ;; esac
        eval "$(env_or_python --env --shell sh)"
        exec "$@"
        ;;
esac
for word; do
    case $word in --env | -env) env_or_python "$@" ;; esac
done
exec @PYTHON@ -I -m llm_proxy "$@"
