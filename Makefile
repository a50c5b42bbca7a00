# make demo: search the built-in family for a smaller model, write and verify it, print before/after.
# make test: ruff, mypy --strict, pytest. Both make .venv first.
# make docs: write the reference pages again, and build the site into runs/site; broken links fail.
# Test files run in the order of their names: files of few long tests would else come last, on one core.
PYTHON ?= python3
# torch comes first and pinned, so that nothing else drags in another build; TORCH=… overrides it.
TORCH ?= torch==2.13.0
BIN := .venv/bin
RUN ?= runs/demo

.PHONY: test types tests demo docs clean

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check '$(TORCH)'
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

test: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) --no-print-directory -j 2 types tests

# mypy runs beside the tests: what it takes of a core, the tests do not take at their end.
types:
	$(BIN)/mypy

tests:
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# One thread: on two virtual cores two threads of a model this small are at times ten times slower.
demo: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/demo.py --out $(RUN)

.venv/.docs: .venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[docs]'
	touch $@

docs: .venv/.docs
	$(BIN)/python docs/site/reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file docs/site/mkdocs.yml

clean:
	rm -rf .venv runs
