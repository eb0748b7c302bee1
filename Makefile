# Every target that needs Python makes its own virtual environment first; nothing else has to be installed.
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= suites,dev
BIN := $(VENV)/bin
STAMP := $(VENV)/.robot-cl-installed

.PHONY: help install demo test check lint types layering smoke bench profile wheel-check clean
help:            ## this text
	@grep -E '^[a-z-]+: .*##|^[a-z-]+:  *##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 16

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@
install: $(STAMP) ## virtual environment with the pinned packages

demo: $(STAMP)   ## dataset -> offline policy -> online policy -> evaluation, film and report
	$(BIN)/robot-cl demo

test: $(STAMP)   ## all tests
	$(BIN)/python -m pytest

check: lint types layering ## what must hold before a commit
lint: $(STAMP)   ## ruff
	$(BIN)/ruff check .
types: $(STAMP)  ## mypy
	$(BIN)/mypy
layering: $(STAMP) ## who may import whom
	$(BIN)/python -m pytest tests/test_layering.py

smoke: $(STAMP)  ## every learner for a few updates
	$(BIN)/robot-cl train experiment=smoke

bench: $(STAMP)  ## every benchmark, into docs/results.md
	$(BIN)/python benchmarks/run_all.py

profile: $(STAMP) ## flame graphs and floors, into docs/performance.md
	$(BIN)/python tools/profile_all.py

wheel-check: $(STAMP) ## build the wheel, install it into a clean environment, run it from elsewhere
	$(BIN)/python tests/wheel_check.py

clean:           ## remove the virtual environment and build products
	rm -rf $(VENV) build dist
