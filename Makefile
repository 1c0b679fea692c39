# `make demo` and `make test` do all set-up. They use .venv; PYTHON is the interpreter that creates it.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# torch is installed first and by version: a looser request takes the newest build, with several GB of CUDA packages.
TORCH := torch==2.13.0

.PHONY: demo native test lint docs train-demo clean

demo: $(VENV)/.demo
	$(BIN)/python export/build_engines.py demo --out engines/demo
	@mkdir -p out
	xargs -a export/demo/sample/regions.txt $(BIN)/python -m patchcaption caption export/demo/sample/scene.jpg \
		--bundle engines/demo --save out/demo.png
	@echo "the image with its captions: out/demo.png"

# The native kernels, runtime/memory/libpatchcaption.so; optional, with torch as the fallback. NATIVE_OPTIONS go to CMake.
native:
	cmake -S . -B build/native -DCMAKE_BUILD_TYPE=Release $(NATIVE_OPTIONS)
	cmake --build build/native --parallel

# One process per core, each with one torch thread: that takes two thirds of the time.
test: $(VENV)/.test native
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	find native -name '*.h' -o -name '*.cpp' | xargs $(BIN)/clang-format --dry-run --Werror
	$(BIN)/mypy --always-false TENSORRT_11 --cache-dir .mypy_cache/tensorrt_10
	$(BIN)/mypy --always-true TENSORRT_11 --cache-dir .mypy_cache/tensorrt_11

# The demo bundle draws the pictures; it is built if there is none.
docs: engines/demo/manifest.json $(VENV)/.test
	$(BIN)/sphinx-build -W --keep-going -q -b html docs build/docs
	@echo "the documents: build/docs/index.html"

engines/demo/manifest.json:
	$(MAKE) demo

# Takes under an hour on two cores; less if torch finds a GPU.
train-demo: $(VENV)/.test
	$(BIN)/python -m export.demo.train --out export/demo/checkpoint
	$(BIN)/python export/build_engines.py demo --out engines/demo
	$(BIN)/python benchmarks/quality.py engines/demo --json export/demo/checkpoint/scores.json

# pip is upgraded because Python 3.10's own does not resolve the constraints within ten minutes.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) $(TORCH)
	$(PIP) -c constraints.txt -e '.[cpu,export]'
	@touch $@

# open_clip_torch provides CLIP's vocabulary file, for seeded checkpoints. Nothing imports it, and its own dependencies
# (torchvision) would pull in another torch.
$(VENV)/.test: $(VENV)/.demo
	$(PIP) -c constraints.txt -e '.[cpu,openvino,tensorrt-rtx,export,quality,bench,video,docs,dev]'
	$(PIP) --no-deps -c constraints.txt open_clip_torch
	@touch $@

clean:
	rm -rf $(VENV) out build docs/_pictures engines/*/ runtime/memory/libpatchcaption.so
