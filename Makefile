# Everything happens in .venv, which the first command that needs it makes.
#   make demo      the example services as real processes, with a table at the end
#   make test      the test suite, in four processes; make test ARGS="-n 0 -k stream" passes pytest options
#   make mutants   removes guards one by one, and sees tests fail
#   make proof     all that takes minutes, and the table of docs/proof.md
#   make lint      ruff, mypy, basedpyright
#   make bench     the benchmark, beside its rivals
#   make docs      the documentation, into docs/_build
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NATIVE := $(wildcard shmrpc/_native/*.[ch]) setup.py pyproject.toml

PROOF := build/proof

.PHONY: demo test mutants proof lint bench docs clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# One stamp for each set of extras: installing is skipped while nothing that it depends on has changed.
$(VENV)/.installed-%: $(BIN)/python $(NATIVE)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	touch $@

demo: $(VENV)/.installed-demo
	$(BIN)/python -m examples.code_search
	$(BIN)/python -m examples.images

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 4 --dist worksteal $(ARGS)

mutants: $(VENV)/.installed-test
	$(BIN)/python tests/mutants/run.py --figures=$(PROOF)/mutants.json

proof: mutants
	$(BIN)/python -m pytest --long --figures=$(PROOF)/tests.json
	$(BIN)/python tests/load/soak.py --seconds 600 --figures=$(PROOF)/soak.json
	$(BIN)/python tests/figures.py docs/proof.md $(PROOF)/*.json

lint: $(VENV)/.installed-lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/basedpyright

bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks

docs: $(VENV)/.installed-docs
	$(BIN)/sphinx-build -W -q -b html docs docs/_build/html

clean:
	rm -rf $(VENV) build docs/_build *.egg-info shmrpc/*.so
