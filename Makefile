# One line each; CI runs the same ones. `make demo` and `make test` set up .venv themselves.
.PHONY: setup fix check test test-slow test-soak bench bench-peers bench-optimise-peers docs demo clean
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

setup: $(STAMP)

# torch comes first and by itself, so that the pinned build is the one that everything after it finds.
NATIVE := hatch_build.py $(addprefix src/forwardpass/serve/native/,_front.pyx wire.hpp)

$(STAMP): pyproject.toml constraints.txt $(NATIVE)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[demo,dev]'
	touch $(STAMP)

fix: setup
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

check: setup
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy && $(BIN)/lint-imports && $(BIN)/python docs/generate.py --check && $(BIN)/python scripts/make_blocking_client.py --check

test: setup
	$(BIN)/pytest -m 'not slow and not soak'

test-slow: setup
	$(BIN)/pytest -m 'slow and not soak'

# Half an hour of mixed traffic at a server, whose memory must not grow.
test-soak: setup
	$(BIN)/pytest -m soak

bench: setup
	for file in $(filter-out %_peers.py,$(wildcard benchmarks/bench_*.py)); do $(BIN)/python $$file || exit 1; done

# Installs the other servers (2.4 GB, kept in ~/.cache) and takes hours; `--quick` and `--only` make it shorter.
bench-peers: setup
	$(BIN)/python benchmarks/bench_serving_peers.py

# Installs the other optimisers (4 GB, kept in ~/.cache); `--quick`, `--only` and `--models` make it shorter.
bench-optimise-peers: setup
	$(BIN)/python benchmarks/bench_optimise_peers.py

docs: setup
	$(BIN)/python docs/generate.py && $(BIN)/python scripts/make_blocking_client.py

demo: setup
	$(BIN)/python examples/demo.py

clean:
	rm -rf .venv .cache demo-output .forwardpass
