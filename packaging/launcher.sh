#!/bin/sh
# llm-proxy's launcher. scripts/install.sh fills in the interpreter and puts this on the PATH in one rename.
# Every new shell waits for --env, and `-m` takes a quarter of that time only to find the module.
for word; do
    case $word in
        --env) exec @PYTHON@ -I -c 'from llm_proxy.cli.main import main; main()' "$@" ;;
    esac
done
exec @PYTHON@ -I -m llm_proxy "$@"
