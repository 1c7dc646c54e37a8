# llm-proxy's prompt hook for fish. At each prompt it looks whether the daemon still serves where the variables point,
# without starting a process, and drops or renews only values that it gave itself. LLM_PROXY_NO_HOOK=1 stops it.
set -g _llm_proxy_run $HOME/.local/state/llm-proxy/run
set -g _llm_proxy_boot ''
test -r /proc/sys/kernel/random/boot_id; and read -g _llm_proxy_boot </proc/sys/kernel/random/boot_id

# Prints nothing; sets `_llm_proxy_found` to the daemon's port, where one serves.
function _llm_proxy_look
    set -g _llm_proxy_found ''
    test -z "$NO_LLM_PROXY"; and test -f "$_llm_proxy_run"; and not test -L "$_llm_proxy_run"; and test -O "$_llm_proxy_run"
    or return 1
    read -l -n 256 line <$_llm_proxy_run; or return 1
    set -l run (string split ' ' -- $line)
    test (count $run) -eq 6; and test "$run[1]" = 1; and string match -qr '^[0-9]{1,5} [0-9]+ [0-9]+$' -- "$run[2..4]"
    or return 1
    if test -z "$_llm_proxy_boot"
        command kill -0 $run[3] 2>/dev/null; or return 1
    else
        test "$run[5]" = "$_llm_proxy_boot"; and test -r /proc/$run[3]/stat; or return 1
        read -l stat </proc/$run[3]/stat; or return 1
        set -l fields (string split ' ' -- (string replace -r '^.*\) ' '' -- $stat))
        test "$fields[20]" = "$run[4]"; and not string match -qr '^[ZXxT]' -- $fields[1]; or return 1
    end
    set -g _llm_proxy_found $run[2]
end

function _llm_proxy_point --argument-names name path
    set -l ours "http://127.0.0.1:$_llm_proxy_port$path"
    if test -n "$_llm_proxy_found"
        if test -z "$$name"; or test "$$name" = "$ours"
            set -gx $name "http://127.0.0.1:$_llm_proxy_found$path"
        end
    else if test "$$name" = "$ours"
        set -e $name
    end
end

function _llm_proxy_prompt --on-event fish_prompt
    if test -z "$LLM_PROXY_NO_HOOK"; and test "$_llm_proxy_port" != off
        _llm_proxy_look
        if test "$_llm_proxy_found" != "$_llm_proxy_port"
            _llm_proxy_point ANTHROPIC_BASE_URL /anthropic/api.anthropic.com
            _llm_proxy_point OPENAI_BASE_URL /openai/api.openai.com/v1
            _llm_proxy_point OPENAI_API_BASE /openai/api.openai.com/v1
            _llm_proxy_point GOOGLE_GEMINI_BASE_URL /gemini/generativelanguage.googleapis.com
            set -g _llm_proxy_port $_llm_proxy_found
        end
    end
end
