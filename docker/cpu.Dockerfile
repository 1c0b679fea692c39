# patchcaption on any machine without a GPU, from its wheel. Build it in the repository, and run it:
#
#   docker build -f docker/cpu.Dockerfile -t patchcaption --build-arg WHEELS=INDEX .
#   docker run --rm -v "$PWD/out:/work" patchcaption demo --out engines/demo
#   docker run --rm -v "$PWD/out:/work" patchcaption caption photo.jpg --bundle engines/demo --whole
#
# WHEELS: the package index with torch's builds for CPUs, which pytorch.org names under "Get Started". Without it pip takes
# the build that its own index has, which on x86-64 comes with 5 GB of CUDA.
ARG BASE=python:3.12-slim
FROM ${BASE} AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends cmake g++ make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /patchcaption
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${BASE}
ARG WHEELS
ARG TORCH=torch==2.13.0
COPY locks /locks
RUN pip install --no-cache-dir ${WHEELS:+--index-url "${WHEELS}"} "${TORCH}" \
    && pip install --no-cache-dir --no-deps --require-hashes -r /locks/demo.txt
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir --no-deps /wheels/*.whl
WORKDIR /work
ENTRYPOINT ["patchcaption"]
CMD ["doctor"]
