"""`python -m llm_proxy`: the same as the `llm-proxy` command."""

from llm_proxy.cli.main import main

if __name__ == "__main__":
    main()
