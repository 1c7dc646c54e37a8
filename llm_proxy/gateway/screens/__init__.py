"""Pages for people, under `/llm-proxy/team`, over the same routes that programs use. Loaded with the first visit."""
