# llm-proxy's prompt hook for fish. At each prompt it looks whether the daemon still serves where the variables point,
# without starting a process. What it gave is dropped here; only to follow a daemon that has come or moved is the command
# asked. LLM_PROXY_NO_HOOK=1 stops it.
set -g _llm_proxy_run $HOME/.local/state/llm-proxy/run
set -g _llm_proxy_command (command -s llm-proxy) # config.fish is still to come, and may set another PATH
set -g _llm_proxy_boot ''
test -r /proc/sys/kernel/random/boot_id; and read -g _llm_proxy_boot </proc/sys/kernel/random/boot_id

# Sets `_llm_proxy_found` to the daemon's port, where one serves.
function _llm_proxy_look
    set -g _llm_proxy_found ''
    test -z "$NO_LLM_PROXY" -a -f "$_llm_proxy_run" -a ! -L "$_llm_proxy_run" -a -O "$_llm_proxy_run"; or return
    read -l -z -n 1024 line <$_llm_proxy_run
    string match -rq '^1 (?<port>[0-9]{1,5}) (?<pid>[0-9]+) (?<ticks>[0-9]+) (?<boot>[^ ]+) [0-9a-f]+\n$' -- $line; or return
    if test -z "$_llm_proxy_boot"
        command kill -0 $pid; or return
    else
        test "$boot" = "$_llm_proxy_boot" -a -r /proc/$pid/stat; or return
        read -l line </proc/$pid/stat
        string match -rq '\\) [^ZXxT]( [^ ]+){18} '$ticks' [^)]*$' -- $line; or return
    end
    set -g _llm_proxy_found $port
end

function _llm_proxy_drop --argument-names name path
    test "$$name" != "http://127.0.0.1:$_llm_proxy_port$path"; or set -e $name
end

function _llm_proxy_prompt --on-event fish_prompt
    test -z "$LLM_PROXY_NO_HOOK" -a "$_llm_proxy_port" != off; or return
    _llm_proxy_look 2>/dev/null
    test "$_llm_proxy_found" != "$_llm_proxy_port"; or return
    _llm_proxy_drop ANTHROPIC_BASE_URL /anthropic/api.anthropic.com
    _llm_proxy_drop OPENAI_BASE_URL /openai/api.openai.com/v1
    _llm_proxy_drop OPENAI_API_BASE /openai/api.openai.com/v1
    _llm_proxy_drop GOOGLE_GEMINI_BASE_URL /gemini/generativelanguage.googleapis.com
    set -g _llm_proxy_port $_llm_proxy_found
    test -z "$_llm_proxy_found"; or env LLM_PROXY_NO_HOOK=1 $_llm_proxy_command --env --shell fish 2>/dev/null | source
end
