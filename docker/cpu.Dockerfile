# patchcaption on any machine without a GPU, from its wheel. Build it in the repository, and run it:
#
#   docker build -f docker/cpu.Dockerfile -t patchcaption --build-arg WHEELS=INDEX .
#   mkdir -p out && (umask 077 && openssl rand -hex 32 > out/token)
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD/out:/work" patchcaption demo --out engines/demo
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD/out:/work" patchcaption caption photo.jpg --bundle engines/demo --whole
#   docker run --user "$(id -u):$(id -g)" -v "$PWD/out:/work:ro" -p 127.0.0.1:8000:8000 --read-only --tmpfs /tmp \
#       --stop-timeout 40 patchcaption serve engines/demo --host 0.0.0.0 --token-file token
#
# In the container the service is on port 8000, where the health check asks; -p says where outside (docs/serve.md).
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
    && pip install --no-cache-dir --no-deps --require-hashes -r /locks/serve.txt
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir --no-deps /wheels/*.whl
WORKDIR /work
# A user without rights, and without an entry in /etc/passwd as whoever --user names: torch asks for its name.
ENV HOME=/tmp USER=patchcaption
USER 1000:1000
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", "from http.client import HTTPConnection; \
    service = HTTPConnection('127.0.0.1', 8000, timeout=5); service.request('GET', '/healthz'); \
    raise SystemExit(service.getresponse().status != 200)"]
ENTRYPOINT ["patchcaption"]
CMD ["doctor"]
