# The commands of the project. `make help` lists them.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
MAKEFLAGS += --jobs=2  # the two environments of `make test` are made side by side
# A worker a core (at most four: tests start Rays and browsers), and no library that starts a thread for each core beside
# them: half the time of one process.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
FAULTS := $(addprefix tests/test_,engine.py faults.py store.py packs.py s3_faults.py cluster.py)

.PHONY: faults help demo test paddle check bench bench-gpu synth docs clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

demo: $(VENV)/.core ## sample shards, the main job, the report: at most 3 minutes from an empty machine
	@deploy/apt.sh --optional fonts-wqy-microhei:"the demo's Chinese poster"
	@$(BIN)/curate demo demo

test: $(VENV)/.dev .venv-paddle/.made ## install what the tests need and run them all
	@deploy/apt.sh --optional fonts-noto-cjk:"rendered text" fonts-wqy-microhei:"tests that draw Chinese" chromium:"browser tests"
	@$(PYTEST)

paddle: .venv-paddle/.made ## an environment with PaddleOCR, beside ours, for ocr.engine = "paddleocr" and its tests

# Half a gigabyte, a minute; made beside the other environment. Without it one test is skipped and nothing else is missing.
.venv-paddle/.made: deploy/paddle.txt | $(VENV)/bin/python
	@echo "installing PaddleOCR into .venv-paddle"
	@$(BIN)/python -m venv .venv-paddle && .venv-paddle/bin/python -m pip --disable-pip-version-check --quiet install \
		--no-deps --no-compile --requirement deploy/paddle.txt && touch $@ || echo "PaddleOCR was not installed: its tests will be skipped"

check: $(VENV)/.dev ## format, lint, types and tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST)

faults: $(VENV)/.dev ## the fault suite in full: forty kills instead of three (docs/faults.md)
	CURATE_KILLS=40 $(BIN)/python -m pytest $(FAULTS)

bench: $(VENV)/.dev ## run the benchmarks of this machine and append the figures to docs/benchmarks.md
	$(BIN)/python -m benchmarks.run

bench-gpu: $(VENV)/.dev ## the benchmarks that need a GPU
	$(BIN)/python -m benchmarks.cogvlm
	$(BIN)/python -m benchmarks.cogvlm --second
	$(BIN)/python -m benchmarks.models clip
	$(BIN)/python -m benchmarks.train --gpu

synth: $(VENV)/.dev ## 2,000 pictures of rendered Chinese text and their report, in ./synth
	@deploy/apt.sh fonts-noto-cjk:"rendered text" fonts-wqy-microhei:"rendered text"
	@$(BIN)/curate synth -o synth -n 2000

docs: $(VENV)/.core ## write the generated pages of docs/ anew
	$(BIN)/python -m curate.docs

clean: ## remove what `make demo` made; the environment stays
	rm -rf demo

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "curate needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || deploy/apt.sh python3-venv:"virtual environments"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing curate into $(VENV)"
	@$(PIP) install --constraint constraints.txt --editable '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing curate and its tests into $(VENV) (PyTorch is large: some minutes)"
	@$(PIP) install --constraint constraints.txt --editable '.[dev]'
	@touch $(VENV)/.core $@
