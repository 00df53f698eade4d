# make demo   install what is missing, then run a fleet of four vehicles on generated frames
# make test   install what is missing, then run the tests
# make test-fast  those that run no fleet, neither as processes nor in memory
# make test-arm64  a vehicle on an emulated arm64 in a fleet of this machine: as root, with qemu-user-static and mmdebstrap
# make official   the official Cityscapes evaluation, in an environment of its own
# make check  formatting, lint, strict types, import contract
# make bench  the cost of the network and of an encoder, as tables and JSON lines

PYTHON ?= python3
VENV ?= .venv
# One more than cores: tests of processes wait for each other, too.
TEST_PROCESSES ?= 3
OFFICIAL ?= .official
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# What a package needs compiled is compiled when it is first imported, which is a small part of what is installed...
PIP_INSTALL := -m pip install --no-compile
# ...and kept, whatever the environment says: every process of a fleet imports it all again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo install official test test-fast test-arm64 check format bench clean

demo: $(INSTALLED)
	$(BIN)/blackfleet launch --preset pretrained

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e '.[dev]'
	touch $@

# Without what the packages ask for besides: see official.txt.
official: $(OFFICIAL)/.installed

$(OFFICIAL)/.installed: official.txt
	$(PYTHON) -m venv $(OFFICIAL)
	$(OFFICIAL)/bin/python $(PIP_INSTALL) --no-deps -r official.txt
	touch $@

# Files in the order of tests/conftest.py, longest first; by itself xdist would begin with those of most tests.
test: $(INSTALLED) $(OFFICIAL)/.installed
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

test-fast: $(INSTALLED)
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile -m "not system and not fleet"

# Builds what it needs below .arm64/ the first time; skips, with a reason, where it can't.
test-arm64: $(INSTALLED)
	$(BIN)/python -m pytest -s -rs tests/system/emulated_vehicle.py

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	MYPY_NUM_WORKERS=2 $(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.network_cost
	$(BIN)/python -m benchmarks.encoder_cost

clean:
	rm -rf $(VENV) $(OFFICIAL) .arm64 build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
