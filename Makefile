# One word an act. `make help` lists them; scripts/bootstrap.sh does what each needs first.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON_BIN := .venv/bin/python
SAY := printf '\033[1m== %s\033[0m\n'
# Built here, so that the C++ tests find the same OpenVINO as the extension.
CMAKE_PYTHON := -DPython3_EXECUTABLE=$(CURDIR)/$(PYTHON_BIN)
CLANG_FORMAT := .venv/bin/clang-format
CXX_FILES = $(shell git ls-files '*.h' '*.cc' '*.cuh' '*.cu')

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.PHONY: build
build: ## system packages if missing, .venv, headrace built and installed in it
	@scripts/bootstrap.sh

.PHONY: demo
demo: ## serve real models and use them through tritonclient
	@scripts/bootstrap.sh demo
	@$(SAY) "models"
	@$(PYTHON_BIN) examples/make_models.py examples/models
	@$(SAY) "demo"
	@$(PYTHON_BIN) examples/demo.py --model-repository examples/models

.PHONY: test
test: test-cpp test-python lint ## build, C++ tests, Python and end-to-end tests, linters

.PHONY: test-cpp
test-cpp:
	@scripts/bootstrap.sh
	@$(SAY) "C++ tests"
	@cmake --preset dev $(CMAKE_PYTHON) --log-level=WARNING
	@cmake --build --preset dev
	@ctest --preset dev

# Most of an end-to-end test is waiting, so one process more than the two cores of a small machine.
PYTEST_WORKERS ?= 3
.PHONY: test-python
test-python:
	@scripts/bootstrap.sh test
	@$(SAY) "Python tests"
	@$(PYTHON_BIN) -m pytest -n $(PYTEST_WORKERS) --dist loadfile $(PYTEST_ARGS) || { \
	  status=$$?; [ $$status -eq 1 ] || exit $$status; \
	  $(SAY) "what failed beside other tests, alone"; \
	  $(PYTHON_BIN) -m pytest --last-failed --last-failed-no-failures none $(PYTEST_ARGS); }

.PHONY: cuda
cuda: ## the CUDA kernels: built by nvcc where there is one, registers, spills and machine code inspected
	@scripts/bootstrap.sh
	@$(SAY) "CUDA kernels"
	@cmake --preset dev $(CMAKE_PYTHON) --log-level=WARNING
	@if cmake --build --preset dev --target help | grep -q '^headrace_cuda:'; \
	  then cmake --build --preset dev --target headrace_cuda; \
	  else echo "skipped: no nvcc 12 or later (PATH, CUDA_HOME)"; fi
	@$(PYTHON_BIN) tools/cuda_gates.py

.PHONY: faults
faults: ## the fault matrix: crashes, hangs, full disks, cut connections, ... (FAULTS_JSON=FILE keeps its figures)
	@scripts/bootstrap.sh test
	@$(SAY) "faults"
	@$(PYTHON_BIN) -m pytest tests/faults $(PYTEST_ARGS)

.PHONY: monitoring
monitoring: ## dashboard and rules in a real Chromium and Prometheus; installs them
	@scripts/bootstrap.sh test monitoring
	@$(SAY) "dashboard, rules"
	@$(PYTHON_BIN) -m pytest tests/python/monitoring tests/e2e/test_dashboard.py tests/e2e/test_prometheus.py $(PYTEST_ARGS)

.PHONY: lint
lint: ## ruff, mypy --strict, clang-format, tools/check_rooms.py
	@scripts/bootstrap.sh test dev
	@$(SAY) "linters"
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@$(CLANG_FORMAT) --dry-run -Werror $(CXX_FILES)
	@$(PYTHON_BIN) tools/check_rooms.py

.PHONY: format
format: ## let ruff and clang-format rewrite the files
	@scripts/bootstrap.sh dev
	@.venv/bin/ruff check --fix .
	@.venv/bin/ruff format .
	@$(CLANG_FORMAT) -i $(CXX_FILES)

.PHONY: sanitize
sanitize: sanitize-asan-ubsan sanitize-tsan ## C++ tests under address+undefined, then thread sanitizer

sanitize-%:
	@scripts/bootstrap.sh
	@$(SAY) "C++ tests under $*"
	@cmake --preset $* $(CMAKE_PYTHON) --log-level=WARNING
	@cmake --build --preset $*
	@ctest --preset $*

FUZZ_SECONDS ?= 60
.PHONY: fuzz
fuzz: ## each harness of tests/fuzz for FUZZ_SECONDS=60, from its kept corpus (clang-14)
	@scripts/bootstrap.sh fuzz
	@cmake --preset fuzz $(CMAKE_PYTHON) --log-level=WARNING
	@cmake --build --preset fuzz
	@tests/fuzz/run.sh build/fuzz/tests/fuzz $(FUZZ_SECONDS)

.PHONY: bench
bench: ## the front-end benchmark (BENCH_ARGS="--quick"; bench/README.md)
	@scripts/bootstrap.sh demo
	@cmake --preset release $(CMAKE_PYTHON) --log-level=WARNING
	@cmake --build --preset release
	@$(PYTHON_BIN) bench/load/front_end.py --bin-dir build/release/bench/load $(BENCH_ARGS)

.PHONY: wheel
wheel: ## dist/headrace-*.whl
	@scripts/bootstrap.sh
	@$(PYTHON_BIN) -m pip wheel --quiet --no-deps --no-build-isolation -w dist .
	@ls -l dist

.PHONY: clean
clean: ## remove everything that was built, .venv and the example models included
	@rm -rf build dist .venv examples/models .pytest_cache .mypy_cache .ruff_cache .hypothesis
