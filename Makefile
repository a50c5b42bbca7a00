# make demo: search the built-in family for a smaller model, write and verify it, print before/after.
# make interop: run tailored models in llama.cpp, and install the hf extension; builds llama.cpp once (minutes).
# make release: build and check what is published, where HEAD has the tag of its version.
# make test: ruff, mypy --strict, pytest. Both make .venv first.
# make weekly: the tests that take too long for every change.
# make docs: write the reference pages again, and build the site into runs/site; broken links fail.
# Test files run in the order of their names: files of few long tests would else come last, on one core.
PYTHON ?= python3
# torch comes first and pinned, so that nothing else drags in another build; TORCH=… overrides it.
# All is compiled at the end on all cores, where pip would take one; templates among the libraries cannot be.
TORCH ?= torch==2.13.0
BIN := .venv/bin
RUN ?= runs/demo

LLAMA_VERSION := 0.3.36
LLAMA := runs/interop/llama_cpp_python-$(LLAMA_VERSION)

.PHONY: test types tests weekly demo docs interop release clean

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile '$(TORCH)'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -e '.[dev]'
	-$(BIN)/python -m compileall -qq -j 0 .venv/lib
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

weekly: .venv/.installed
	$(BIN)/pytest -n 2 --dist load -m weekly

# One thread: on two virtual cores two threads of a model this small are at times ten times slower.
demo: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/demo.py --out $(RUN)

# The source distribution carries llama.cpp with its converter, which the wheel would lack. pip keeps what it built.
.venv/.interop: .venv/.installed
	mkdir -p runs/interop
	$(BIN)/pip download --quiet --disable-pip-version-check --no-deps --no-binary llama-cpp-python --dest runs/interop \
	  llama-cpp-python==$(LLAMA_VERSION)
	tar xzf runs/interop/llama_cpp_python-$(LLAMA_VERSION).tar.gz -C runs/interop
	CMAKE_ARGS='-DLLAVA_BUILD=OFF' $(BIN)/pip install --quiet --disable-pip-version-check \
	  --no-binary llama-cpp-python llama-cpp-python==$(LLAMA_VERSION)
	touch $@

interop: .venv/.interop
	LLAMA_CPP=$(LLAMA)/vendor/llama.cpp OMP_NUM_THREADS=1 $(BIN)/python integrations/interop.py \
	  --json runs/interop/figures.json --markdown runs/interop/table.md \
	  $(if $(wildcard $(RUN)/model),--model demo=$(RUN)/model)
	$(BIN)/pytest integrations/tests

release: .venv/.installed
	test "$$(git describe --tags --exact-match)" = "v$$($(BIN)/hatchling version)"
	test -z "$$(git status --porcelain)"
	rm -rf dist
	$(BIN)/pip install --quiet --disable-pip-version-check build twine
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

.venv/.docs: .venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[docs]'
	touch $@

docs: .venv/.docs
	$(BIN)/python docs/site/reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file docs/site/mkdocs.yml

clean:
	rm -rf .venv runs
