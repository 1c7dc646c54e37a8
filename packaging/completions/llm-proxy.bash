# Completions of llm-proxy for bash; `llm-proxy completions bash` prints them, scripts/completions makes this file.
# shellcheck shell=bash disable=SC2207
_llm_proxy_paths() { # -f files, -d folders
    local name found
    if declare -F _filedir >/dev/null; then
        case $1 in -d) _filedir -d ;; *) _filedir ;; esac
        return
    fi
    found=$(compgen "$1" -- "$cur")
    [[ -z $found ]] || while IFS= read -r name; do COMPREPLY+=("$name"); done <<<"$found"
    compopt -o filenames 2>/dev/null
}

_llm_proxy_command() { # the words from $1 on are a command line
    if declare -F _command_offset >/dev/null; then
        _command_offset "$1"
    elif [[ $COMP_CWORD -eq $1 ]]; then
        COMPREPLY=($(compgen -c -- "$cur"))
    else
        _llm_proxy_paths -f
    fi
}

_llm_proxy() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} first=${COMP_WORDS[1]}
    local flags='' words='' paths=''
    COMPREPLY=()
    # --format=csv comes as three words
    if [[ $cur == = ]]; then
        cur=''
    elif [[ $prev == = ]]; then
        prev=${COMP_WORDS[COMP_CWORD - 2]}
    fi
    [[ $COMP_CWORD -gt 1 ]] || first=''
    case $first in
        '') flags='--service --setup --status --uninstall --setup-shell --unsetup-shell --announce-socket -t --target-url --env --explore -V --version -h --help -p --port --host --log-dir --config' words='doctor upgrade start gateway run attach detach explore sessions view search tail stats export compare import scan prices reprice reindex retention loki help completions' ;;
        --service)
            case $prev in
                -p | --port)  ;;
                --host)  ;;
                --log-dir) paths=-d ;;
                --config) paths=-f ;;
                *) flags='-p --port --host --log-dir --config --passthrough -h --help' ;;
            esac
            ;;
        --setup)
            case $prev in
                *) flags='--no-shell --socket-activation --dry-run --json -h --help' ;;
            esac
            ;;
        --status)
            case $prev in
                --config) paths=-f ;;
                --log-dir) paths=-d ;;
                *) flags='--json --config --log-dir -h --help' ;;
            esac
            ;;
        doctor)
            case $prev in
                *) flags='--online --json -h --help' ;;
            esac
            ;;
        upgrade)
            case $prev in
                --version)  ;;
                *) flags='--version --check --rollback --dry-run -h --help' ;;
            esac
            ;;
        --uninstall)
            case $prev in
                *) flags='--purge --dry-run --json -h --help' ;;
            esac
            ;;
        --setup-shell)
            case $prev in
                *) flags='--dry-run --json -h --help' ;;
            esac
            ;;
        --unsetup-shell)
            case $prev in
                *) flags='--dry-run --json -h --help' ;;
            esac
            ;;
        --announce-socket)
            case $prev in
                *) flags='-h --help' ;;
            esac
            ;;
        -t | --target-url)
            case $prev in
                -a | --add-header)  ;;
                -l | --log-file) paths=-f ;;
                -T | --timeout)  ;;
                --csv-columns)  ;;
                -p | --port)  ;;
                --host)  ;;
                --log-dir) paths=-d ;;
                --config) paths=-f ;;
                *) flags='-a --add-header -l --log-file -T --timeout --csv-header --csv-columns --csv-defuse -p --port --host --log-dir --config -h --help' ;;
            esac
            ;;
        start)
            case $prev in
                --port)  ;;
                --config) paths=-f ;;
                --host)  ;;
                --log-dir) paths=-d ;;
                *) flags='--port --config --host --log-dir -h --help' ;;
            esac
            ;;
        gateway)
            if [[ $COMP_CWORD -eq 2 && $cur != -* ]]; then prev='' words='check migrate rotate-key import'; fi
            case $prev in
                '') ;;
                -p | --port)  ;;
                --host)  ;;
                --log-dir) paths=-d ;;
                --config) paths=-f ;;
                --encryption-key) paths=-f ;;
                --jwt-secret) paths=-f ;;
                *) flags='-p --port --host --log-dir --config --json --encryption-key --jwt-secret --dry-run -h --help' ;;
            esac
            ;;
        --env)
            case $prev in
                --shell) words='sh bash zsh fish' ;;
                *) flags='--shell --unset --bedrock -h --help' ;;
            esac
            ;;
        run)
            if [[ ${COMP_WORDS[2]} == -- && $COMP_CWORD -gt 2 ]]; then _llm_proxy_command 3; return; fi
            if [[ $cur != -* ]]; then _llm_proxy_command 2; return; fi
            flags='-- -h --help'
            ;;
        attach)
            case $prev in
                --login) words='api-key chatgpt' ;;
                *) words='codex claude gemini opencode aider' flags='--login --dry-run --json -h --help' ;;
            esac
            ;;
        detach)
            case $prev in
                *) words='codex claude gemini opencode aider' flags='--all --dry-run --json -h --help' ;;
            esac
            ;;
        explore)
            case $prev in
                --port)  ;;
                --log-dir) paths=-d ;;
                --config) paths=-f ;;
                *) flags='--port --print --log-dir --config -h --help' ;;
            esac
            ;;
        --explore)
            case $prev in
                --explore-port)  ;;
                --log-dir) paths=-d ;;
                --config) paths=-f ;;
                *) flags='--explore-port --log-dir --config -h --help' ;;
            esac
            ;;
        sessions)
            case $prev in
                --from) words='today yesterday 24h 7d 30d' ;;
                --to) words='today yesterday 24h 7d 30d' ;;
                --provider) words='anthropic openai gemini bedrock ollama' ;;
                --model)  ;;
                --project)  ;;
                --user)  ;;
                --session)  ;;
                --status) words='404 429 4xx 5xx none' ;;
                --limit)  ;;
                --log-dir) paths=-d ;;
                --config) paths=-f ;;
                *) flags='--from --to --provider --model --project --user --session --status --errors --utc --limit --json --log-dir --config -h --help' ;;
            esac
            ;;
        view)
            case $prev in
                --log-dir) paths=-d ;;
                --config) paths=-f ;;
                --recordings) paths=-d ;;
                *) flags='--raw --utc --json --log-dir --config --recordings -h --help' ;;
            esac
            ;;
        search)
            case $prev in
                --from) words='today yesterday 24h 7d 30d' ;;
                --to) words='today yesterday 24h 7d 30d' ;;
                --provider) words='anthropic openai gemini bedrock ollama' ;;
                --model)  ;;
                --project)  ;;
                --user)  ;;
                --session)  ;;
                --status) words='404 429 4xx 5xx none' ;;
                --limit)  ;;
                --log-dir) paths=-d ;;
                --config) paths=-f ;;
                *) flags='--from --to --provider --model --project --user --session --status --errors --utc --limit --json --log-dir --config -h --help' ;;
            esac
            ;;
        tail)
            case $prev in
                -n | --lines)  ;;
                --from) words='today yesterday 24h 7d 30d' ;;
                --to) words='today yesterday 24h 7d 30d' ;;
                --provider) words='anthropic openai gemini bedrock ollama' ;;
                --model)  ;;
                --project)  ;;
                --user)  ;;
                --session)  ;;
                --status) words='404 429 4xx 5xx none' ;;
                --log-dir) paths=-d ;;
                --config) paths=-f ;;
                *) flags='-n --lines --from --to --provider --model --project --user --session --status --errors --utc --json --log-dir --config -h --help' ;;
            esac
            ;;
        stats)
            case $prev in
                --by) words='total day model project session provider' ;;
                --from) words='today yesterday 24h 7d 30d' ;;
                --to) words='today yesterday 24h 7d 30d' ;;
                --provider) words='anthropic openai gemini bedrock ollama' ;;
                --model)  ;;
                --project)  ;;
                --user)  ;;
                --session)  ;;
                --status) words='404 429 4xx 5xx none' ;;
                --log-dir) paths=-d ;;
                --config) paths=-f ;;
                --recordings) paths=-d ;;
                *) flags='--by --from --to --provider --model --project --user --session --status --errors --utc --json --log-dir --config --recordings -h --help' ;;
            esac
            ;;
        export)
            case $prev in
                --format) words='jsonl taco csv har markdown parquet dataset' ;;
                --output) paths=-f ;;
                --style) words='messages reasoning sharegpt openai-finetune' ;;
                --split)  ;;
                --from) words='today yesterday 24h 7d 30d' ;;
                --to) words='today yesterday 24h 7d 30d' ;;
                --provider) words='anthropic openai gemini bedrock ollama' ;;
                --model)  ;;
                --project)  ;;
                --user)  ;;
                --session)  ;;
                --status) words='404 429 4xx 5xx none' ;;
                --log-dir) paths=-d ;;
                --config) paths=-f ;;
                --recordings) paths=-d ;;
                *) flags='--format --output --style --split --include-private --from --to --provider --model --project --user --session --status --errors --utc --json --log-dir --config --recordings -h --help' ;;
            esac
            ;;
        compare)
            case $prev in
                --from) words='today yesterday 24h 7d 30d' ;;
                --to) words='today yesterday 24h 7d 30d' ;;
                --log-dir) paths=-d ;;
                --config) paths=-f ;;
                *) flags='--from --to --utc --json --log-dir --config -h --help' ;;
            esac
            ;;
        import)
            case $prev in
                --log-dir) paths=-d ;;
                --config) paths=-f ;;
                *) paths=-f flags='--dry-run --json --log-dir --config -h --help' ;;
            esac
            ;;
        scan)
            case $prev in
                --log-dir) paths=-d ;;
                --config) paths=-f ;;
                *) paths=-f flags='--json --log-dir --config -h --help' ;;
            esac
            ;;
        prices)
            if [[ $COMP_CWORD -eq 2 && $cur != -* ]]; then prev='' words='show update import'; fi
            case $prev in
                '') ;;
                --log-dir) paths=-d ;;
                --config) paths=-f ;;
                --url)  ;;
                *) paths=-f flags='--json --log-dir --config --url -h --help' ;;
            esac
            ;;
        reprice)
            case $prev in
                --from) words='today yesterday 24h 7d 30d' ;;
                --to) words='today yesterday 24h 7d 30d' ;;
                --provider) words='anthropic openai gemini bedrock ollama' ;;
                --model)  ;;
                --project)  ;;
                --user)  ;;
                --session)  ;;
                --status) words='404 429 4xx 5xx none' ;;
                --log-dir) paths=-d ;;
                --config) paths=-f ;;
                *) flags='--dry-run --from --to --provider --model --project --user --session --status --errors --utc --json --log-dir --config -h --help' ;;
            esac
            ;;
        reindex)
            case $prev in
                --forget-machine)  ;;
                --log-dir) paths=-d ;;
                --config) paths=-f ;;
                *) flags='--forget-machine --forget-versions --json --log-dir --config -h --help' ;;
            esac
            ;;
        retention)
            case $prev in
                --log-dir) paths=-d ;;
                --config) paths=-f ;;
                *) flags='--dry-run --json --log-dir --config -h --help' ;;
            esac
            ;;
        loki)
            if [[ $COMP_CWORD -eq 2 && $cur != -* ]]; then prev='' words='backfill'; fi
            case $prev in
                '') ;;
                --from) words='today yesterday 24h 7d 30d' ;;
                --to) words='today yesterday 24h 7d 30d' ;;
                --log-dir) paths=-d ;;
                --config) paths=-f ;;
                *) flags='--from --to --dry-run --again --json --log-dir --config -h --help' ;;
            esac
            ;;
        help)
            case $prev in
                *) words='all service setup status doctor upgrade uninstall setup-shell unsetup-shell announce-socket target-url start gateway env run attach detach explore sessions view search tail stats export compare import scan prices reprice reindex retention loki help completions version' flags='-h --help' ;;
            esac
            ;;
        completions)
            case $prev in
                *) words='bash zsh fish' flags='-h --help' ;;
            esac
            ;;
        -V | --version)
            case $prev in
                *) flags='-h --help' ;;
            esac
            ;;
        -h | --help)
            case $prev in
                *) flags='-h --help' ;;
            esac
            ;;
        -p | --port | --host | --log-dir | --config)
            case $prev in
                -p | --port)  ;;
                --host)  ;;
                --log-dir) paths=-d ;;
                --config) paths=-f ;;
                *) flags='-p --port --host --log-dir --config' ;;
            esac
            ;;
    esac
    [[ $cur != -* ]] || words=$flags
    if [[ -n $words ]]; then COMPREPLY=($(compgen -W "$words" -- "$cur")); fi
    if [[ -n $paths && $cur != -* ]]; then _llm_proxy_paths "$paths"; fi
}

complete -F _llm_proxy llm-proxy
