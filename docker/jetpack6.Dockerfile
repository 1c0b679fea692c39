# patchcaption on JetPack 6 (Orin; TensorRT 10.3, CUDA 12.6, Python 3.10). Build and run it on the Jetson:
#
#   docker build -f docker/jetpack6.Dockerfile -t patchcaption --build-arg BASE=IMAGE --build-arg WHEELS=INDEX .
#   docker run --rm -it --runtime nvidia \
#       -v "$PWD/engines:/patchcaption/engines" -v patchcaption:/root/.local/share/patchcaption patchcaption
#
# BASE: NVIDIA's l4t-jetpack image of your release (tag r36.4.0 for JetPack 6.1 and newer), which has CUDA, cuDNN and
# TensorRT with its Python package. WHEELS: the package index with NVIDIA's torch for JetPack 6 and CUDA 12.6; PyPI's
# torch for Arm has no kernels for Orin.
ARG BASE
FROM ${BASE}
ARG WHEELS
ARG TORCH=torch==2.8.0

RUN apt-get update \
    && apt-get install -y --no-install-recommends cmake g++ make python3-pip python3-venv \
    && rm -rf /var/lib/apt/lists/*

# The environment sees the system's packages: TensorRT's Python package comes from JetPack, not from pip.
RUN python3 -m venv --system-site-packages /venv
ENV PATH=/venv/bin:$PATH
RUN pip install --no-cache-dir --upgrade pip \
    && pip install --no-cache-dir --index-url "${WHEELS}" "${TORCH}"

WORKDIR /patchcaption
COPY . .
RUN pip install --no-cache-dir --no-deps --require-hashes -r locks/plans.txt \
    && pip install --no-cache-dir --no-build-isolation -e '.[plans]' \
    && make native
CMD ["patchcaption", "doctor"]
