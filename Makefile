# `make demo` and `make test` need Python 3.11 or newer (with venv) and pip; everything else is installed into .venv.

PYTHON ?= python3
# Test processes: `auto` is one per core, each on a single thread; JOBS=0 runs the tests one after another.
JOBS ?= auto

BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

.PHONY: demo test notebooks bad-inputs nightly lint

demo: .venv/installed
	$(BIN)/edlm demo

test: .venv/installed-test .venv/installed-notebooks
	$(BIN)/python tests/transformers_suite/fetch.py
	$(if $(filter 0,$(JOBS)),,OMP_NUM_THREADS=1) $(BIN)/pytest -n $(JOBS) --nbmake notebooks tests

# Run the notebooks and write what they print into them, as they are committed.
notebooks: .venv/installed-notebooks
	$(if $(filter 0,$(JOBS)),,OMP_NUM_THREADS=1) $(BIN)/python notebooks/execute.py

# Try every bad input of docs/bad_inputs.md and write the page from the messages.
bad-inputs: .venv/installed-test
	HF_HUB_OFFLINE=1 COLUMNS=500 $(BIN)/python tests/support/bad_inputs.py .venv/bad_inputs.json --page

# What .ci/run leaves out: 10,000 random calls of generate() in place of 500, and what is in tests/nightly (the Space in a
# browser needs Debian's chromium and chromium-driver and is skipped without them).
nightly: .venv/installed-demo .venv/installed-test .venv/installed-nightly
	EDLM_FUZZ_CASES=10000 $(BIN)/pytest -rs tests/modeling/test_generate_fuzz.py tests/nightly

lint: .venv/installed-dev
	$(BIN)/ruff check .

# torch comes first, alone: where pip is set up with a CPU build of it, that one is taken.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) torch
	$(INSTALL) --editable .
	touch $@

.venv/installed-%: .venv/installed
	$(INSTALL) --editable ".[$*]"
	touch $@
