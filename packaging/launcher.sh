#!/bin/sh
# llm-proxy's launcher. scripts/install.sh fills in the interpreter and puts this on the PATH in one rename.
exec @PYTHON@ -I -m llm_proxy "$@"
