"""llm-proxy: carries LLM API traffic through unchanged and keeps a faithful record of it."""

__version__ = "0.1.0"
