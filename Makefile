# Two commands do all set-up: `make demo` and `make test`. They use .venv; PYTHON picks the interpreter that makes it.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# torch goes first and by version: any looser request takes the newest build, with several GB of CUDA packages.
TORCH := torch==2.13.0

.PHONY: demo native test lint docs train-demo clean

demo: $(VENV)/.demo
	$(BIN)/python export/build_engines.py demo --out engines/demo
	@mkdir -p out
	xargs -a export/demo/sample/regions.txt $(BIN)/python -m runtime caption export/demo/sample/scene.jpg \
		--bundle engines/demo --save out/demo.png
	@echo "the picture with its captions: out/demo.png"

# The native kernels, runtime/memory/libpatchcaption.so: optional, torch does the same without them. NATIVE_OPTIONS go to CMake.
native:
	cmake -S . -B build/native -DCMAKE_BUILD_TYPE=Release $(NATIVE_OPTIONS)
	cmake --build build/native --parallel

# One thread of torch for each of the processes, of which there are as many as cores: together they take two thirds of the time.
test: $(VENV)/.test native
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	find native -name '*.h' -o -name '*.cpp' | xargs $(BIN)/clang-format --dry-run --Werror
	$(BIN)/mypy --always-false TENSORRT_11 --cache-dir .mypy_cache/tensorrt_10
	$(BIN)/mypy --always-true TENSORRT_11 --cache-dir .mypy_cache/tensorrt_11

# The pictures in it are drawn by the bundle of `make demo`, which is made if there is none.
docs: engines/demo/manifest.json $(VENV)/.test
	$(BIN)/sphinx-build -W --keep-going -q -b html docs build/docs
	@echo "the documents: build/docs/index.html"

engines/demo/manifest.json:
	$(MAKE) demo

# Under an hour on two cores; faster where torch finds a GPU.
train-demo: $(VENV)/.test
	$(BIN)/python -m export.demo.train --out export/demo/checkpoint
	$(BIN)/python export/build_engines.py demo --out engines/demo
	$(BIN)/python benchmarks/quality.py engines/demo --json export/demo/checkpoint/scores.json

# The pip that comes with Python 3.10 was not through with the constraints after ten minutes.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) $(TORCH)
	$(PIP) -c constraints.txt -e '.[cpu,export]'
	@touch $@

# open_clip_torch is there for the vocabulary file inside it, which seeded checkpoints speak; nothing imports it, and its
# own dependencies (torchvision) would pull another torch.
$(VENV)/.test: $(VENV)/.demo
	$(PIP) -c constraints.txt -e '.[cpu,openvino,export,quality,bench,video,docs,dev]'
	$(PIP) --no-deps -c constraints.txt open_clip_torch
	@touch $@

clean:
	rm -rf $(VENV) out build docs/_pictures engines/*/ runtime/memory/libpatchcaption.so
