# Holdfast: `make demo` and `make test` each do everything on a fresh Debian 12 or 13.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CARGO ?= cargo
HOLDFAST := target/release/holdfast
GUEST_INIT := target/guest/x86_64-unknown-linux-gnu/release/holdfast-guest-init
GUEST_AGENT := target/guest/x86_64-unknown-linux-gnu/release/holdfast-guest
PREFIX ?= /usr
DESTDIR ?=
RUNS ?= 20
SEED ?=
MODE ?=
WIRE ?=
TRANSPORT ?=
BYPASS_WIRE ?=
SECONDS ?= 600
SEEDS ?= 10000
FIRST ?= 1
FUZZ_SEED ?= 1

.PHONY: help packages guest guest-agent build install check test unit loom sim guests demo soak bench-quick bench-bulk bench-paper bench-pages bench-pps fuzz clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

packages: ## install what building and running need (apt; skips what is there)
	@scripts/packages

guest: guest-agent ## fetch the guest's kernel and build its init and agent, under target/
	@scripts/guest-kernel
	@RUSTFLAGS='-C target-feature=+crt-static' $(CARGO) build --quiet --release --locked \
		--target x86_64-unknown-linux-gnu --target-dir target/guest -p holdfast-guest-init

guest-agent: packages ## build the guest's agent, one static program: target/guest/.../holdfast-guest
	@RUSTFLAGS='-C target-feature=+crt-static' CARGO_PROFILE_RELEASE_STRIP=symbols LIBBPF_SYS_LIBRARY_PATH="$$(dirname "$$(gcc -print-file-name=libelf.a)")" \
		$(CARGO) build --quiet --release --locked --target x86_64-unknown-linux-gnu --target-dir target/guest \
		-p holdfast-guest-agent --features static
	@echo $(GUEST_AGENT)

build: packages ## build target/release/holdfast
	$(CARGO) build --release --locked -p holdfast

install: ## install the program, its units and documents, once built; PREFIX=/usr, DESTDIR=
	@test -x $(HOLDFAST) || { echo "there is no $(HOLDFAST) yet: make build" >&2; exit 1; }
	install -D -m 755 $(HOLDFAST) $(DESTDIR)$(PREFIX)/bin/holdfast
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system $(DESTDIR)$(PREFIX)/share/doc/holdfast/examples
	for unit in packaging/systemd/*.service; do \
		sed 's#/usr/#$(PREFIX)/#g' $$unit > $(DESTDIR)$(PREFIX)/lib/systemd/system/$${unit##*/}; done
	install -m 644 README.md CHANGELOG.md $(DESTDIR)$(PREFIX)/share/doc/holdfast/
	install -m 644 docs/examples/*.toml $(DESTDIR)$(PREFIX)/share/doc/holdfast/examples/

check: ## format, lints, unit tests: the quick one, before each commit
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) test --workspace --lib --bins --quiet --locked
	scripts/invariants
	scripts/planning

unit: guest
	scripts/qemu-backports
	scripts/guest-apps
	HOLDFAST_FUZZ_SEED=$(FUZZ_SEED) $(CARGO) test --workspace --locked --exclude holdfast-tests

loom: packages ## what threads share without locks, in every order of their steps
	RUSTFLAGS='--cfg loom' $(CARGO) test --locked --target-dir target/loom -p holdfast-vhost-user -p holdfast-dataplane -p holdfast-checkpoint --lib models::

sim: packages ## SEEDS=10000 seeded lives of guests, clients and hosts, on virtual time; FIRST=n begins with another seed
	$(CARGO) run --release --quiet --locked -p holdfast-sim -- --seeds $(SEEDS) --first $(FIRST)

guests: build guest
	scripts/qemu-backports
	scripts/guest-kernel --newer
	scripts/guest-apps
	$(CARGO) test --release --locked -p holdfast-tests -- --test-threads=1

test: packages ## everything: lints, unit and integration tests, whole guests with failovers
	$(MAKE) --no-print-directory check
	$(MAKE) --no-print-directory unit
	$(MAKE) --no-print-directory loom
	$(MAKE) --no-print-directory sim
	$(MAKE) --no-print-directory guests

demo: build guest ## the whole story on one machine; DEMO="--mode commit --kill host" passes options
	$(HOLDFAST) demo $(DEMO)

soak: build guest ## RUNS=20 kills at seeded random moments on a wire with losses, a line a run; SEED=n replays; MODE=commit, WIRE=loss=1%, TRANSPORT=bypass, BYPASS_WIRE=loss=1%
	$(HOLDFAST) soak --runs $(RUNS) $(if $(SEED),--seed $(SEED)) $(if $(MODE),--mode $(MODE)) $(if $(WIRE),--wire $(WIRE)) $(if $(TRANSPORT),--transport $(TRANSPORT)) $(if $(BYPASS_WIRE),--bypass-wire $(BYPASS_WIRE))

bench-quick: build guest ## pause, commit latency and throughput, as ratios taken in one run
	$(HOLDFAST) bench quick

bench-bulk: build guest ## the guest's sending, mode by mode and epoch by epoch (half an hour); BULK="--epochs 50" passes options
	$(HOLDFAST) bench bulk $(BULK)

bench-paper: build guest ## the paper's evaluation again, as a page with plots (40 minutes); PAPER="--quick" for ten minutes
	scripts/guest-apps >/dev/null
	$(HOLDFAST) bench paper $(PAPER)

bench-pages: build guest ## memory from host to host, stage by stage, beside QEMU's migration and memcpy; PAGES="--rounds 1" passes options
	scripts/guest-apps >/dev/null
	$(HOLDFAST) bench pages $(PAGES)

bench-pps: build ## frames a second through the rings beside DPDK's own vhost; PPS="--rings packed" passes options
	$(HOLDFAST) bench pps $(PPS)

fuzz: ## SECONDS=600 for each fuzzing target, guided by coverage (fetches libfuzzer-sys)
	@for target in parser engine ledger pages; do tests/fuzz/libfuzzer/fuzz $$target $(SECONDS); done

clean: ## remove what was built
	$(CARGO) clean
