# `make demo` and `make test` need nothing but Python 3.11–3.13 and make: they build .venv themselves.
PYTHON ?= $(shell for p in python3.12 python3.13 python3.11 python3; do $$p -c 'import sys; sys.exit(not (3,11) <= sys.version_info[:2] < (3,14))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-all check bench venv clean

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 found: install one, or run make PYTHON=/path/to/python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing (a few minutes the first time; torch is large) ..."
	@PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/denoise samples demo/input
	$(BIN)/denoise run demo/input demo/output --noise gauss:25
	@echo "Open demo/output/report.html in a browser."

# In two processes, each of which may take 2 GB; the tests of a file stay in one of them.
TEST_PROCESSES ?= 2
QUICK := $(BIN)/python -m pytest -m "not slow" -n $(TEST_PROCESSES) --dist loadfile

test: $(STAMP)
	$(QUICK)

test-all: test
	$(BIN)/python -m pytest -m slow

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(QUICK)

bench: $(STAMP)
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) demo build *.egg-info
