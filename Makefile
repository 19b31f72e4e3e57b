# `make` prints this help. Everything is installed into .venv and .tools of this checkout; downloads are cached by uv.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# uv never fetches an interpreter: the machine's own Python (3.11 to 3.13) is used, or its absence is said.
export UV_PYTHON_DOWNLOADS := never
export UV_LINK_MODE ?= hardlink
# Once here instead of in every process: an engine imports for a minute without it where Python may not write bytecode.
export UV_COMPILE_BYTECODE := 1
export HF_HUB_OFFLINE := 1
export RAY_USAGE_STATS_ENABLED := 0

UV := .tools/uv/bin/uv
RUN := $(UV) run --frozen --no-sync
STAMP := .venv/.installed

##@ The main job
.PHONY: up down smoke
up: setup ## Start Redis, a worker with the tiny K-EXAONE and the gateway on this machine (ARGS="--workers 2")
	@exec .venv/bin/hanmaru up --otlp-endpoint http://127.0.0.1:4317 $(ARGS)

down: setup ## Stop what `make up` started
	@.venv/bin/hanmaru down

smoke: setup ## Try a running `make up` as its users would: openai client, tools, gRPC, limits, one trace
	@$(RUN) python tests/smoke/smoke.py $(ARGS)

##@ A Kubernetes with real nodes on this machine (root, Linux)
.PHONY: cluster cluster-down
cluster: setup ## Start two real nodes and print KUBECONFIG=… (ARGS="--node=a,nvidia.com/gpu=8 --node=b"); stays
	@tools/install-system-packages
	@PYTHONPATH=tests/support:tests/cluster exec .venv/bin/python -m hanmaru_cluster real up $(ARGS)

cluster-down: setup ## End what `make cluster` started, and remove what killed runs left
	@PYTHONPATH=tests/support:tests/cluster $(RUN) python -m hanmaru_cluster real down

##@ Development
.PHONY: setup fmt lint types imports generate verify test control-plane real-nodes ci checkpoint bench-gateway bench-operator images clean help
setup: $(STAMP) ## Install what the project needs (done by every other target)

$(UV): tools/install-uv
	@tools/install-uv .tools/uv
	@touch $@

$(STAMP): $(UV) pyproject.toml uv.lock
	@echo "Installing the locked packages (a first time downloads about 4.5 GB) …"
	@$(UV) sync --frozen --quiet --extra laptop --extra operator
	@touch $@

fmt: setup ## Format the code
	@$(RUN) ruff format
	@$(RUN) ruff check --fix

lint: setup ## Check style (ruff, and hadolint for Dockerfiles)
	@$(RUN) ruff format --check
	@$(RUN) ruff check
	@$(RUN) hadolint images/*/Dockerfile tests/cluster/images/*/Dockerfile

types: setup ## Check types (mypy, strict)
	@$(RUN) mypy

imports: setup ## Check who may import whom (import-linter)
	@$(RUN) lint-imports

generate: setup ## Write every generated file anew
	@$(RUN) python tools/generate.py

verify: setup ## Fail when a generated file is stale
	@$(RUN) python tools/generate.py --check

test: setup control-plane real-nodes ## Run the tests (ARGS="tests/gateway -k name" for some of them)
	@$(RUN) $(if $(ARGS),pytest $(ARGS),python tools/test.py)

control-plane: setup ## Build the real Kubernetes control plane that tests start (once a machine, outside the checkout)
	@PYTHONPATH=tests/support:tests/cluster $(RUN) python -m hanmaru_cluster build

.PHONY: e2e
e2e: setup real-nodes ## The whole on two real nodes made here, or on another cluster (KUBECONFIG=… REGISTRY=…)
	@$(if $(filter command line,$(origin KUBECONFIG)),HANMARU_E2E_KUBECONFIG=$(KUBECONFIG) HANMARU_E2E_REGISTRY=$(REGISTRY)) \
		$(RUN) pytest tests/e2e -m "e2e or not e2e" --deselect tests/e2e/test_slice.py -q -s --no-header --timeout 1800 $(ARGS)

images: setup ## Build the gateway's and operator's images (IMAGE=worker, worker-cuda; BASE=debian without a registry)
	@$(RUN) python tools/images.py $(addprefix --image=,$(IMAGE)) $(if $(BASE),--base=$(BASE)) $(ARGS)

real-nodes: setup ## As root, install and build what clusters with real nodes need; without root, nothing
	@if [ "$$(id -u)" = 0 ]; then tools/install-system-packages && \
		PYTHONPATH=tests/support:tests/cluster $(RUN) python -m hanmaru_cluster build --real; fi

ci: lint types imports verify test ## What .ci/run does

checkpoint: setup ## Train the tiny K-EXAONE checkpoint anew (LAYERS=n makes a deeper one outside the checkout)
	@$(RUN) python checkpoints/training/make.py $(if $(LAYERS),--layers $(LAYERS)) $(ARGS)

bench-gateway: setup ## Measure our gateway against LiteLLM and SMG, interleaved; one JSON line last
	@UV=$(abspath $(UV)) $(RUN) python bench/gateway/run.py $(ARGS)

bench-operator: setup control-plane ## Measure planning and reconciling with 1,000 deployments; one JSON line last
	@PYTHONPATH=tests/support:tests/cluster $(RUN) python bench/operator/run.py $(ARGS)

.PHONY: bench-shared-cache
bench-shared-cache: setup ## Measure a rank's pages to a Redis on loopback and back; one JSON line last
	@PYTHONPATH=tests/support $(RUN) python bench/shared_cache.py $(ARGS)

.PHONY: bench-engine test-engine-full
bench-engine: setup ## Measure KV bytes, MTP, batching and prefix hits of the CPU engine; one JSON line last
	@PYTHONPATH=tests/support:checkpoints/training $(RUN) python bench/engine/run.py $(ARGS)

test-engine-full: setup ## All 32 settings of the engine x 200 prompts against transformers (resumes)
	@PYTHONPATH=tests/support $(RUN) python -m hanmaru_testing.engine_full $(ARGS)

# No `setup`: the first needs nothing but torch and transformers, the second runs in the image that has SGLang for CUDA.
.PHONY: bench-engine-gpu-ops bench-engine-gpu
GPU_PYTHON ?= $(firstword $(wildcard .venv/bin/python) python3)
bench-engine-gpu-ops: ## On a GPU with torch and transformers alone: our pools, attention and MTP (ARGS="--device cpu")
	@$(GPU_PYTHON) bench/engine_gpu/ops.py $(ARGS)

bench-engine-gpu: ## SGLang on a GPU with the flags planned for A100s (ARGS="--print-commands" needs none)
	@$(GPU_PYTHON) bench/engine_gpu/served.py $(ARGS)

clean: ## Remove the environment and tools of this checkout (caches outside it stay)
	@rm -rf .venv .tools .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

help: ## Print this help
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
