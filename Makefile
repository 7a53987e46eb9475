PYTHON ?= python3
SEEDS ?= 1
BIN := .venv/bin
STAMP := .venv/installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: install demo theory test nightly lint clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "DropGen needs Python 3.11 or newer and $(PYTHON) is $$($(PYTHON) -V 2>&1); name another: make install PYTHON=python3.12" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv (about 2 GB, a few minutes) ..."
	@$(BIN)/python -m pip install -qq -c constraints.txt -e '.[dev,s3,dicom-net]'
	@touch $@

demo: install
	@$(BIN)/dropgen demo --seeds $(SEEDS)
	@if [ $(SEEDS) -ge 3 ]; then for end in md json; do cp $${DROPGEN_ROOT:-runs}/demo/results.$$end docs/results/demo.$$end; done; fi

theory: install
	@$(BIN)/python -m dropgen.platform.theory.sweep docs

test: install
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST)

nightly: install
	@$(BIN)/python -m pytest -m nightly $(PYTEST)

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage
