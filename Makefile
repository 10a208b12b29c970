# Two commands on a bare Debian or Ubuntu machine with Rust and make: `make demo` and `make test`. Both use the broker
# in AMQP_URL if set, else one in Docker, else a private rabbitmq-server node (installed if need be); BROKER=docker or
# BROKER=node decides otherwise.
# Tests mostly wait, for brokers and for time to pass, so more of them run at once than there are cores.
TEST_THREADS ?= 6
# What is measured is built as it is released; the rest of the workspace is not, which takes minutes.
BUILD_BENCH = cargo build --release --locked --bin requestor --bin provider --bin bench

.PHONY: help demo up test model chaos bench bench-growth bench-page mutants docs check fmt clean

help: ## Show this list.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

demo: ## Show the whole stack at work, then end.
	@cargo build --locked --workspace --bins
	@cargo run --quiet --locked --package tests --bin stack -- demo

up: ## Run the whole stack until Ctrl-C.
	@cargo build --locked --workspace --bins
	@cargo run --quiet --locked --package tests --bin stack -- up

test: ## Run all tests.
	cargo build --locked --workspace --bins
	cargo test --locked --workspace --no-fail-fast -- --test-threads $(TEST_THREADS)

model: ## Explore the model of the protocol and its mutants.
	cargo test --locked --package model -- --nocapture

chaos: ## Do harm under load, and check every promise: REQUESTS=10000 SEED=1 CRASH_POINTS=100 BROKER=docker
	@cargo build --locked --workspace --bins
	@cargo run --quiet --locked --package tests --bin chaos -- run $(CHAOS_FLAGS)

bench: ## Measure against loops written by hand: SECONDS_EACH=2 ROUNDS=3 ONLY=http PAYLOAD=4096
	$(BUILD_BENCH)
	@target/release/bench run

bench-growth: ## Measure how cost grows: with operations, instances, bytes. ONLY=store
	$(BUILD_BENCH)
	@target/release/bench growth

bench-page: ## Write docs/performance.md and its plots from the last measurement.
	$(BUILD_BENCH)
	@target/release/bench page

mutants: ## Take each mechanism away in turn: the tests must notice. About 20 minutes.
	@tests/mutants/run

docs: ## Write what docs/ has from the code: contracts, schemas, problem types.
	UPDATE_DOCS=1 cargo test --locked --package requestor --lib contract::

check: ## Check format, lints and documentation.
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps

fmt: ## Format the code.
	cargo fmt --all

clean: ## Remove what was built.
	cargo clean
