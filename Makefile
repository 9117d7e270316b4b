# `make demo` and `make test` need Python 3.11 or newer (with venv) and pip; everything else is installed into .venv.

PYTHON ?= python3
# Test processes: `auto` is one per core, each on a single thread; JOBS=0 runs the tests one after another.
JOBS ?= auto

# The versions that are installed: constraints.txt, or constraints/floors.txt or constraints/newest.txt, each of which has
# an environment of its own (.venv-floors, .venv-newest).
CONSTRAINTS ?= constraints.txt

VENV := .venv$(if $(filter-out constraints.txt,$(CONSTRAINTS)),-$(basename $(notdir $(CONSTRAINTS))))
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c $(CONSTRAINTS)

.PHONY: demo test notebooks bad-inputs architectures nightly gpu lint docs

demo: $(VENV)/installed
	$(BIN)/edlm demo

test: $(VENV)/installed-test $(VENV)/installed-notebooks
	$(BIN)/python tests/transformers_suite/fetch.py
	$(if $(filter 0,$(JOBS)),,OMP_NUM_THREADS=1) $(BIN)/pytest -n $(JOBS) --dist worksteal --nbmake notebooks tests

# Run the notebooks and write what they print into them, as they are committed.
notebooks: $(VENV)/installed-notebooks
	$(if $(filter 0,$(JOBS)),,OMP_NUM_THREADS=1) $(BIN)/python notebooks/execute.py

# Try every bad input of docs/bad_inputs.md and write the page from the messages.
bad-inputs: $(VENV)/installed-test
	HF_HUB_OFFLINE=1 COLUMNS=500 $(BIN)/python tests/support/bad_inputs.py $(VENV)/bad_inputs.json --page

# Try every language model of transformers at tiny sizes and write docs/architectures.md from the results.
architectures: $(VENV)/installed-test
	HF_HUB_OFFLINE=1 $(BIN)/python tests/support/architectures.py $(VENV)/architectures.json --page

# What .ci/run leaves out: 10,000 random calls of generate() in place of 500, diffusers, lm-evaluation-harness, every
# language model of transformers, and what else is in tests/nightly (the Space in a browser needs Debian's chromium and
# chromium-driver and is skipped without them).
nightly: $(VENV)/installed-demo $(VENV)/installed-diffusers $(VENV)/installed-lm-eval $(VENV)/installed-test \
		$(VENV)/installed-nightly
	EDLM_FUZZ_CASES=10000 $(BIN)/pytest -rs tests/modeling/test_generate_fuzz.py tests/edlm_hf/test_diffusers.py \
		tests/edlm_hf/test_lm_eval.py tests/nightly

# On a CUDA device of this machine: every use of a device, published networks, an exact law, the quick benchmark of speed.
# Without such a device all of it is skipped. DEVICE=mps takes an Apple GPU, DEVICE=cpu tries the tests themselves.
gpu: DEVICE ?= cuda
gpu: $(VENV)/installed-test
	EDLM_DEVICE=$(DEVICE) $(BIN)/pytest -rs tests/devices tests/gpu

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The documentation site, in build/site: the search in it needs a server, say `python -m http.server -d build/site`.
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# torch comes first, alone: where pip is set up with a CPU build of it, that one is taken.
$(VENV)/installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) torch
	$(INSTALL) --editable .
	touch $@

$(VENV)/installed-%: $(VENV)/installed
	$(INSTALL) --editable ".[$*]"
	touch $@
