# Everything here works on a fresh machine with Python 3.11 or newer and a C compiler; nothing else need be installed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test web check fast lint types stubs triton docs clean

# Stamps of what is installed: made anew when the project's dependencies change.
$(VENV)/core: pyproject.toml constraints.txt setup.py
	$(PYTHON) -m venv $(VENV)
	$(PIP) "torch==2.13.0"
	$(PIP) -e ".[train]"
	touch $@

$(VENV)/dev: $(VENV)/core
	$(PIP) -e ".[train,dev,keras,flax,onnx,openvino,serve,search,ray]"
	touch $@

demo: $(VENV)/core
	$(BIN)/headstart demo

# The browser's ONNX Runtime, in which a test runs an exported file; without npm it is skipped.
web:
	@test -d build/node_modules/onnxruntime-web || ! command -v npm > /dev/null \
	 || npm install --silent --no-audit --no-fund --prefix build onnxruntime-web@1.30.0 \
	 || echo "npm cannot install onnxruntime-web: its test is skipped"

# Two processes of one thread each: threads of two processes that wait for each other are slower.
test: $(VENV)/dev lint types web
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(VENV)/dev
	$(BIN)/mypy

# Lint, types, and the tests that take no training, no compiler and no other framework, side by
# side.
check: $(VENV)/dev
	$(MAKE) --no-print-directory -j2 lint types fast

fast: $(VENV)/dev
	$(BIN)/python -m pytest -m "not slow" tests/test_*.py tests/checkpoint tests/images tests/data tests/metrics

# The GPU kernels, in Triton's interpreter and compiled for GPUs that need not be here. Triton lies
# apart: in one process with TensorFlow it aborts. From then on `make test` runs these tests too.
$(VENV)/triton: | $(VENV)/dev
	$(PIP) --no-deps --target $@ "triton==3.8.0"

triton: $(VENV)/triton
	$(BIN)/python -m pytest tests/models/yoso/test_kernels_gpu.py

# The public names for editors and type checkers.
stubs: $(VENV)/dev
	$(BIN)/python scripts/stubs.py

docs: $(VENV)/dev
	$(PIP) -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache
