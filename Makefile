# Targets for a fresh clone. Needs Python 3.11 or 3.12, make and a C++ compiler.
PYTHON ?= python3
VENV ?= .venv
# torch first and by version: a dependency that asks for "torch" would pull the newest build.
TORCH ?= torch==2.13.0
# The kernels for GPUs are tested in Triton's interpreter. Where torch brings a Triton, that one stays.
TRITON ?= triton==3.9.0
BIN := $(VENV)/bin

.PHONY: quickstart test lint clean

quickstart: $(VENV)/installed
	$(BIN)/python tools/quickstart.py

# Two at a time: half of the tests are of one process, and those of several wait for each other most of the time. Files
# stay whole, since their tests share what they start.
test: $(VENV)/triton
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: | $(BIN)/ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Checking the code installs nothing where the checkers are.
$(BIN)/ruff:
	$(MAKE) $(VENV)/installed

# The stamp is made last, so an interrupted installation is taken up again.
$(VENV)/installed: setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)) and "error: Python 3.11 or 3.12 is needed, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -q $(TORCH)
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e .[dev]
	touch $@

$(VENV)/triton: $(VENV)/installed
	$(BIN)/python -c 'import triton' 2>/dev/null || $(BIN)/pip install --disable-pip-version-check -q $(TRITON)
	touch $@

clean:
	rm -rf $(VENV) runs data/quickstart
