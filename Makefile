# The usual targets; what they do is in scripts/ and packaging/. `make` alone lists them.

.POSIX:
.PHONY: help test lint run up down image clean

help: ## this list
	@sed -n 's/^\([a-z][a-z]*\):.*## /\1\t/p' Makefile | expand -t 10

test: ## everything that is checked: lint, format, types, tests
	@sh scripts/test.sh

lint: .venv/bin/python ## lint, format and types alone
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m mypy

run: .venv/bin/python ## llm-proxy of this checkout in the terminal; Ctrl-C stops it
	@.venv/bin/python -m llm_proxy

up: ## the set-up with Loki, Prometheus and Grafana (packaging/compose)
	@sh scripts/image up

down: ## stop it; volumes stay
	@sh scripts/image down

image: ## build the image llm-proxy:local with docker or podman
	@sh scripts/image build

clean: ## what builds and checks leave in the checkout; .venv stays
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find llm_proxy tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	python3 -m venv .venv
	.venv/bin/python -m pip --quiet install --editable ".[test]"
