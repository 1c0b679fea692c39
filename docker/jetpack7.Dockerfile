# patchcaption on JetPack 7 (Thor, from 7.2 on Orin too; TensorRT 10.13 or newer, CUDA 13, Python 3.12). Build and run it
# on the Jetson:
#
#   docker build -f docker/jetpack7.Dockerfile -t patchcaption --build-arg BASE=IMAGE .
#   docker run --rm -it --runtime nvidia \
#       -v "$PWD/engines:/patchcaption/engines" -v patchcaption:/root/.local/share/patchcaption patchcaption
#
# BASE: NVIDIA's CUDA 13 development image for Ubuntu 24.04 on 64-bit Arm servers (SBSA), which Thor runs, and Orin from
# JetPack 7.2 on: CUDA 13.0 for JetPack 7.1, 13.2 for 7.2. TENSORRT: the version that your JetPack has (10.13.3.9 in 7.1);
# plans can be loaded only by the version that built them. TORCH and WHEELS: on Orin, a torch that was built for it and
# CUDA 13, and the package index that has it; PyPI's torch for Arm has no kernels for Orin.
ARG BASE
FROM ${BASE}
ARG TORCH=torch==2.13.0
ARG TENSORRT=tensorrt-cu13==10.13.3.9
ARG WHEELS

RUN apt-get update \
    && apt-get install -y --no-install-recommends cmake g++ make python3-pip python3-venv \
    && rm -rf /var/lib/apt/lists/*

RUN python3 -m venv /venv
ENV PATH=/venv/bin:$PATH
RUN pip install --no-cache-dir --upgrade pip \
    && pip install --no-cache-dir ${WHEELS:+--index-url "${WHEELS}"} "${TORCH}" \
    && pip install --no-cache-dir "${TENSORRT}"

WORKDIR /patchcaption
COPY . .
RUN pip install --no-cache-dir --no-deps --require-hashes -r locks/plans.txt \
    && pip install --no-cache-dir --no-build-isolation -e '.[plans]' \
    && make native
CMD ["patchcaption", "doctor"]
