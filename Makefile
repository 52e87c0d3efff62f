# What a person or a machine does with this repository. `make` alone lists the targets; ARGS= is passed through.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help run test faults demo bench fmt lint proto docs readme tools clean

CACHE := $(or $(CARILLON_CACHE),$(HOME)/.cache/carillon)
export CARILLON_CACHE := $(CACHE)
TARGET := $(or $(CARGO_TARGET_DIR),target)
NODE_DIR := tests/foreign/node
PYTHON_DIR := tests/foreign/python
OCTOKIT_DIR := tests/foreign/octokit
# Where the system's Node is too old, need.sh fetches one.
export PATH := $(CACHE)/node/bin:$(PATH)

help: ## List the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 16
	@printf '\nARGS= is passed through: make run ARGS=--help, make demo ARGS=--json, make bench ARGS="publish --json".\n'

run: ## Start Carillon with everything it needs: a private Postgres, certificates, a tenant, an API key
	@tests/tools/need.sh rust postgres
	cargo run --locked -- dev $(ARGS)

test: tools ## Check everything: format, lints, layers, unit and integration tests, proto files, documentation
	@tests/tools/need.sh postgres chromium openssl
	cargo fmt --all -- --check
	tests/tools/proto.sh
	cargo clippy --locked --all-targets -- -D warnings
	cargo test --locked $(ARGS)
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items
	@echo "make test: every step passed"

faults: ## Kill, freeze, starve and cut off replicas and Postgres under live traffic, and check every guarantee (20 minutes)
	@tests/tools/need.sh rust postgres
	cargo build --locked --features planted-defects --bin carillon
	cp $(TARGET)/debug/carillon $(TARGET)/debug/carillon-planted
	cargo test --locked --test faults -- long --planted $(TARGET)/debug/carillon-planted $(ARGS)

demo: $(OCTOKIT_DIR)/node_modules/.ready ## Publish 329 real GitHub webhook payloads and verify every delivery
	@tests/tools/need.sh rust postgres
	cargo run --locked --release -- demo --packages $(OCTOKIT_DIR)/node_modules $(ARGS)

bench: ## Measure, each figure beside its limit (builds for release, starts a throw-away service)
	@tests/tools/need.sh rust postgres
	cargo run --locked --release -- bench $(ARGS)

fmt: ## Format Rust and proto files
	cargo fmt --all
	@test ! -x $(NODE_DIR)/node_modules/.bin/buf || $(NODE_DIR)/node_modules/.bin/buf format -w proto

lint: ## Clippy and the layering test only
	cargo clippy --locked --all-targets -- -D warnings
	cargo test --locked --test tidy

proto: $(NODE_DIR)/node_modules/.ready ## Lint the proto files and look for breaking changes
	tests/tools/proto.sh

docs: ## Build the API documentation of the crate
	cargo doc --locked --no-deps --document-private-items

readme: ## Write the table of settings into the README
	CARILLON_UPDATE_DOCS=1 cargo test --locked --test it documents::the_readme

tools: $(NODE_DIR)/node_modules/.ready $(PYTHON_DIR)/.venv/ready ## Install what the tests need: buf, and the foreign clients' packages
	@tests/tools/need.sh rust

clean: ## Remove what was built and installed inside the checkout
	cargo clean
	rm -rf $(NODE_DIR)/node_modules $(OCTOKIT_DIR)/node_modules $(PYTHON_DIR)/.venv

%/node_modules/.ready: %/package-lock.json
	@tests/tools/need.sh node
	npm --prefix $* ci --no-audit --no-fund --loglevel=error
	@touch $@

$(PYTHON_DIR)/.venv/ready: $(PYTHON_DIR)/requirements.txt
	@tests/tools/need.sh python
	python3 -m venv $(PYTHON_DIR)/.venv
	$(PYTHON_DIR)/.venv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@
