# llm-proxy's prompt hook for bash and zsh. At each prompt it looks whether the daemon still serves where the variables
# point, without starting a process. What it gave is dropped here; only to follow a daemon that has come or moved is the
# command asked. LLM_PROXY_NO_HOOK=1 stops it.
_llm_proxy_run=$HOME/.local/state/llm-proxy/run
_llm_proxy_boot=
[[ ! -r /proc/sys/kernel/random/boot_id ]] || IFS= \read -r _llm_proxy_boot </proc/sys/kernel/random/boot_id

# Sets `line` to what the file begins with: one read, however large it has become.
if [[ -n ${ZSH_VERSION-} ]]; then
    _llm_proxy_read() { IFS= \read -r -k 1024 -u 0 line <"$1" || [[ -n $line ]]; }
else
    _llm_proxy_read() { IFS= \read -r -d '' -n 1024 line <"$1" || [[ -n $line ]]; }
fi

# Sets `found` to the daemon's port, where one serves.
_llm_proxy_look() {
    [[ -z ${ZSH_VERSION-} ]] || \emulate -L sh
    \local IFS=$' \n' line= port pid ticks
    [[ -z ${NO_LLM_PROXY-} && -f $_llm_proxy_run && ! -h $_llm_proxy_run && -O $_llm_proxy_run ]] || \return 1
    _llm_proxy_read "$_llm_proxy_run" || \return 1
    \set -- $line
    [[ $# -eq 6 && $1 = 1 && "$2$3$4" != *[!0123456789]* && -n $2 && ${#2} -le 5 && -n $3 ]] || \return 1
    port=$2 pid=$3 ticks=$4
    if [[ -z $_llm_proxy_boot ]]; then
        \kill -0 "$pid" || \return 1
    else
        [[ $5 = "$_llm_proxy_boot" ]] && _llm_proxy_read "/proc/$pid/stat" || \return 1
        \set -- ${line##*\) }
        [[ ${20-} = "$ticks" && $1 != [ZXxT] ]] || \return 1
    fi
    found=$port
}

# NAME VALUE PATH
_llm_proxy_drop() {
    [[ $2 != "http://127.0.0.1:$_llm_proxy_port$3" ]] || \unset "$1"
}

_llm_proxy_follow() {
    _llm_proxy_drop ANTHROPIC_BASE_URL "${ANTHROPIC_BASE_URL-}" /anthropic/api.anthropic.com
    _llm_proxy_drop OPENAI_BASE_URL "${OPENAI_BASE_URL-}" /openai/api.openai.com/v1
    _llm_proxy_drop OPENAI_API_BASE "${OPENAI_API_BASE-}" /openai/api.openai.com/v1
    _llm_proxy_drop GOOGLE_GEMINI_BASE_URL "${GOOGLE_GEMINI_BASE_URL-}" /gemini/generativelanguage.googleapis.com
    _llm_proxy_port=$found
    [[ -z $found ]] || \eval "$(LLM_PROXY_NO_HOOK=1 \command llm-proxy --env --shell bash)"
}

_llm_proxy_prompt() {
    \local code="$?" found=
    if [[ -z ${LLM_PROXY_NO_HOOK-} && $_llm_proxy_port != off ]]; then
        _llm_proxy_look 2>/dev/null || :
        [[ $found = "$_llm_proxy_port" ]] || _llm_proxy_follow 2>/dev/null || :
    fi
    case $- in *e*) \return 0 ;; esac # `set -e` would take it for a failure
    \return "$code"
}

# Called with "$_", so that what comes after it at the prompt still finds that, and $?, as the command left them.
if [[ $- != *i* ]]; then
    :
elif [[ -n ${ZSH_VERSION-} ]]; then
    [[ " ${precmd_functions[*]-} " = *" _llm_proxy_prompt "* ]] || precmd_functions+=(_llm_proxy_prompt)
elif [[ -n ${BASH_VERSION-} && " ${PROMPT_COMMAND[*]-} " != *_llm_proxy_prompt* ]] && ! \shopt -q restricted_shell; then
    \builtin printf -v PROMPT_COMMAND '_llm_proxy_prompt "$_"%s' "${PROMPT_COMMAND:+;$PROMPT_COMMAND}" 2>/dev/null || :
fi
