# The commands of this project; CI calls the same. `make` alone lists them.

CARGO ?= cargo
DEMO = $${CARGO_TARGET_DIR:-target}/debug/demo
export CARGO_TERM_COLOR ?= auto

.PHONY: help
help: ## List the commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

.PHONY: setup
setup: ## Install what building, testing and the demo need (Debian 12, root)
	@scripts/setup

.PHONY: peers
peers: ## Build the real SPIRE that tests run against (ten minutes the first time; needs Go)
	@scripts/peers

.PHONY: build
build: setup ## Build everything
	$(CARGO) build --locked --workspace --all-targets

.PHONY: demo
demo: setup $(if $(SPIRE),peers) ## Show the whole promise on real packets (KEEP=1 leaves it running, SPIRE=real uses real SPIRE)
	$(CARGO) build --locked --quiet --bins
	@$(DEMO) $(if $(KEEP),--keep) $(if $(SPIRE),--spire $(SPIRE))

.PHONY: demo-stop
demo-stop: ## End a demo that was kept
	@$(DEMO) --stop

.PHONY: test
test: setup peers ## Format check, lints, documentation and all tests, with counts at the end
	@scripts/test

.PHONY: bench-auth
bench-auth: setup peers ## First connections, handshakes beside Go's, and all pairs of two nodes; figures to target/bench/{auth,handshakes,pairs}.json (root, minutes)
	$(CARGO) build --locked --quiet --release --bins
	@AUTHD_BIN_DIR="$$(realpath "$${CARGO_TARGET_DIR:-target}")/release" \
		$(CARGO) bench --locked --quiet --package authd-tests --bench auth --profile dev
	@$(CARGO) bench --locked --quiet --package authd-tests --bench handshakes
	@$(CARGO) bench --locked --quiet --package authd --bench pairs

.PHONY: bench-datapath
bench-datapath: setup ## What a packet costs in the kernel; figures to target/bench/datapath.json (root)
	$(CARGO) bench --locked --quiet --package auth-ebpf --bench datapath --profile dev

.PHONY: bench-forwarding
bench-forwarding: setup ## Traffic between two pods: no rules, ours, iptables, nftables (minutes)
	@$(CARGO) bench --locked --quiet --package authd-tests --bench forwarding --profile dev

.PHONY: bench-policy
bench-policy: setup ## What compiling policies costs, whole and change by change; figures to target/bench/policy.json
	@$(CARGO) bench --locked --quiet --package policy --bench policy

.PHONY: nightly-policy
nightly-policy: setup ## The property tests of policies with millions of packets (minutes)
	PROPTEST_CASES=$${PROPTEST_CASES:-10000} $(CARGO) test --locked --quiet --release --package policy --test agreement --test reading

.PHONY: nightly-auth
nightly-auth: setup ## The authentication machine with millions of random steps, every interleaving to depth 5, and a fed port (minutes)
	PROPTEST_CASES=$${PROPTEST_CASES:-50000} AUTHD_SEARCH_DEPTH=$${AUTHD_SEARCH_DEPTH:-5} \
		$(CARGO) test --locked --quiet --release --package authd --lib -- auth::tests --nocapture
	PROPTEST_CASES=$${AUTHD_HOSTILE_CASES:-10000} \
		$(CARGO) test --locked --quiet --release --package authd --lib -- peer::tests::port

.PHONY: test-kernels
test-kernels: ## The tests that ask the kernel, on Debian's 6.1 in a virtual machine (minutes; amd64)
	@scripts/setup --kernels
	@scripts/test-kernels

.PHONY: bench-spire
bench-spire: setup peers ## What SVIDs cost with real SPIRE, and verifying them beside go-spiffe; figures to target/bench/spire.json (minutes)
	@$(CARGO) bench --locked --quiet --package authd-tests --bench spire

.PHONY: test-spire
test-spire: setup peers ## Tests against real SPIRE and the embedded authority only
	$(CARGO) test --locked --workspace --test spire --test spire_nodes

.PHONY: lint
lint: setup ## Format check, clippy and rustdoc only
	@scripts/test --lint

.PHONY: fmt
fmt: ## Format all code
	$(CARGO) fmt --all
	$(CARGO) fmt --manifest-path auth-ebpf/programs/Cargo.toml

.PHONY: deny
deny: ## Licences, bans and sources of all dependencies (builds cargo-deny the first time: minutes)
	@test -x target/tools/bin/cargo-deny || $(CARGO) install --quiet --locked --root target/tools --target-dir target/tools/build cargo-deny@0.20.2
	@rm -rf target/tools/build
	@target/tools/bin/cargo-deny --manifest-path Cargo.toml check licenses bans sources
	@target/tools/bin/cargo-deny --manifest-path auth-ebpf/programs/Cargo.toml --config deny.toml check \
		--allow license-not-encountered --allow unused-wrapper licenses bans sources

FUZZ_SECONDS ?= 60
FUZZ_TARGETS = policy/policy policy/selector policy/label authd/manifests authd/peer/frames authd/peer/authenticator \
	spire-adapter/spiffe_id spire-adapter/svid_chain spire-adapter/bundle auth-ebpf/decide

.PHONY: fuzz
fuzz: ## Fuzz what outsiders write, FUZZ_SECONDS a target (builds cargo-fuzz the first time; nightly Rust)
	@test -x target/tools/bin/cargo-fuzz || $(CARGO) install --quiet --locked --root target/tools --target-dir target/tools/build cargo-fuzz@0.13.2
	@rm -rf target/tools/build
	@# What is new goes to target/, so that the committed corpus stays small: `cargo fuzz cmin` merges it.
	@for target in $(FUZZ_TARGETS); do \
		fuzz=$${target%/*}/fuzz one=$${target##*/} && \
		mkdir -p target/fuzz/found/$$one && \
		RUSTUP_TOOLCHAIN=nightly target/tools/bin/cargo-fuzz run --fuzz-dir $$fuzz --target-dir target/fuzz $$one \
			target/fuzz/found/$$one $$fuzz/corpus/$$one -- -max_total_time=$(FUZZ_SECONDS) -max_len=4096 -timeout=10 -print_final_stats=1 || exit 1; \
	done
