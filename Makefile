# Holdfast: `make demo` and `make test` each do everything on a fresh Debian 12 or 13.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CARGO ?= cargo
HOLDFAST := target/release/holdfast
GUEST_INIT := target/guest/x86_64-unknown-linux-gnu/release/holdfast-guest-init
RUNS ?= 20
SEED ?=
SEEDS ?= 10000
FIRST ?= 1

.PHONY: help packages guest build check test unit sim guests demo soak bench-quick clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

packages: ## install what building and running need (apt; skips what is there)
	@scripts/packages

guest: packages ## fetch the guest's kernel and build its init, under target/
	@scripts/guest-kernel
	@RUSTFLAGS='-C target-feature=+crt-static' $(CARGO) build --quiet --release --locked \
		--target x86_64-unknown-linux-gnu --target-dir target/guest -p holdfast-guest-init

build: packages ## build target/release/holdfast
	$(CARGO) build --release --locked -p holdfast

check: ## format, lints, unit tests: the quick one, before each commit
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) test --workspace --lib --bins --quiet --locked
	scripts/invariants

unit: guest
	scripts/qemu-backports
	$(CARGO) test --workspace --locked --exclude holdfast-tests

sim: packages ## SEEDS=10000 seeded scenarios of speculative communication; FIRST=n begins with another seed
	$(CARGO) run --release --quiet --locked -p holdfast-sim -- --seeds $(SEEDS) --first $(FIRST)

guests: build guest
	scripts/qemu-backports
	$(CARGO) test --release --locked -p holdfast-tests -- --test-threads=1

test: packages ## everything: lints, unit and integration tests, whole guests with failovers
	$(MAKE) --no-print-directory check
	$(MAKE) --no-print-directory unit
	$(MAKE) --no-print-directory sim
	$(MAKE) --no-print-directory guests

demo: build guest ## the whole story on one machine; DEMO="--mode commit --kill host" passes options
	$(HOLDFAST) demo $(DEMO)

soak: build guest ## RUNS=20 kills at seeded random moments, a line a run; SEED=n replays from there
	$(HOLDFAST) soak --runs $(RUNS) $(if $(SEED),--seed $(SEED))

bench-quick: build guest ## pause, commit latency and throughput, as ratios taken in one run
	$(HOLDFAST) bench quick

clean: ## remove what was built
	$(CARGO) clean
