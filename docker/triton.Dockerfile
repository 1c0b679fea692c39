# Triton Inference Server with patchcaption in its Python, for models that `patchcaption triton-repository` has made
# (docs/triton.md). Build it in the repository, and run it:
#
#   docker build -f docker/triton.Dockerfile -t patchcaption-triton --build-arg BASE=IMAGE --build-arg WHEELS=INDEX .
#   docker run --rm --shm-size 1g -v "$PWD/models:/work/models:ro" -p 127.0.0.1:8000-8002:8000-8002 patchcaption-triton
#
# BASE: NVIDIA's image of Triton, of 24.12 or newer, whose tag ends in -py3. WHEELS: the package index with torch's builds for
# CPUs; for a GPU (docker run --gpus 1) leave it out, and --build-arg ONNXRUNTIME=onnxruntime-gpu for ort-cuda.
#
# An example, which has not been built on NVIDIA's image: only its steps were run, on another machine.
ARG BASE
FROM ${BASE}
ARG WHEELS
ARG TORCH=torch==2.13.0
ARG ONNXRUNTIME
RUN apt-get update \
    && apt-get install -y --no-install-recommends cmake g++ make python3-venv \
    && rm -rf /var/lib/apt/lists/*
# First in the path: the server's Python finds its packages by it.
RUN python3 -m venv /venv
ENV PATH=/venv/bin:$PATH
COPY locks /locks
RUN pip install --no-cache-dir ${WHEELS:+--index-url "${WHEELS}"} "${TORCH}" \
    && pip install --no-cache-dir --no-deps --require-hashes -r /locks/serve.txt
RUN if [ -n "${ONNXRUNTIME}" ]; then pip uninstall -y onnxruntime && pip install --no-cache-dir "${ONNXRUNTIME}"; fi
WORKDIR /patchcaption
COPY . .
RUN pip install --no-cache-dir --no-deps .
WORKDIR /work
CMD ["tritonserver", "--model-repository", "/work/models"]
