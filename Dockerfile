# One file for the gateway and all services, with the plug-ins that each needs (`deploy/plugins.py`):
#   docker build --build-arg SERVICE=medical-seg --build-arg FLAVOUR=cpu -t fovea-medical-seg .
# FLAVOUR is cpu, gpu or, for vision services, onnx: without torch, with graphs that the build exports.
# BASE is any Debian or Ubuntu image with python3 (3.11+), python3-venv and ca-certificates; name it by digest
# (`python:3.13-slim@sha256:…`) for builds that can be repeated.
# TORCH_INDEX is an index of CPU builds of torch, which keeps the cpu flavour small; `none` takes torch from PyPI.
ARG BASE=python:3.13-slim
ARG FLAVOUR=cpu
# The plug-ins' projects without their code, so that a change of the code leaves the layer of dependencies as it is.
FROM ${BASE} AS projects
COPY plugins /plugins
RUN find /plugins -type f ! -name pyproject.toml -delete

FROM ${BASE} AS build
ARG SERVICE=gateway
ARG FLAVOUR=cpu
# Packages of weights; `fovea-weights` alone leaves out those for research only.
ARG WEIGHTS="fovea-weights fovea-weights-kvasir-seg"
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# A folder of wheels that pip prefers, where the build mounts one.
ARG PIP_FIND_LINKS
# The environment that pip fills, and in which it is not itself.
ARG PIP_PYTHON=/opt/fovea/bin/python
WORKDIR /src
SHELL ["/bin/bash", "-eo", "pipefail", "-c"]
# Dependencies first, with empty packages in place of ours: a change of the code leaves this layer as it is.
# What pip would install is installed by hash; only PyTorch and what comes with it alone follow without one.
COPY pyproject.toml constraints.txt requirements-data.txt requirements-hashes.txt ./
COPY fovea/pyproject.toml fovea/
COPY deploy/hashes.py deploy/plugins.py deploy/
COPY --from=projects /plugins plugins
# The gateway has no flavour: it runs no model. Only the language services carry the embedded language model.
RUN mkdir -p fovea/api fovea/cli/commands/judge shared services \
 && touch {,fovea/}README.md {,fovea/}LICENSE {fovea,shared,services}/__init__.py \
 && python3 -m venv /opt/pip && python3 -m venv --without-pip /opt/fovea \
 && extras="${SERVICE}"; [ "${SERVICE}" = gateway ] || extras="cluster,${SERVICE},${FLAVOUR}" \
 && index=(); [[ "${SERVICE}" = gateway || "${FLAVOUR}" != cpu || "${TORCH_INDEX}" = none ]] || index=(--extra-index-url "${TORCH_INDEX}") \
 && python3 deploy/plugins.py requirements "${SERVICE}" > plugins.txt \
 && install="/opt/pip/bin/pip install --no-cache-dir --no-compile" \
 && /opt/pip/bin/pip install --quiet --dry-run --ignore-installed --report all.json "${index[@]}" -c constraints.txt -r plugins.txt ./fovea ".[${extras}]" \
 && python3 deploy/hashes.py select all.json > locked.txt \
 && case "${SERVICE}" in llm-longctx|interpretability|relevance-judge) \
      /opt/pip/bin/pip install --quiet --dry-run --ignore-installed --no-deps --report data.json -r requirements-data.txt \
      && python3 deploy/hashes.py select data.json >> locked.txt ;; esac \
 && ${install} --no-deps --require-hashes -r locked.txt \
 && ${install} "${index[@]}" -c constraints.txt -r plugins.txt ./fovea ".[${extras}]"
COPY README.md LICENSE ./
COPY fovea fovea
COPY shared shared
COPY services services
COPY plugins plugins
COPY weights weights
RUN mapfile -t folders < <(python3 deploy/plugins.py folders "${SERVICE}") \
 && case "${SERVICE}" in medical-seg|interpretability) weights="${WEIGHTS}" ;; gateway|llm-longctx|relevance-judge) weights= ;; *) weights=fovea-weights ;; esac \
 && for name in ${weights}; do folders+=("./weights/${name}"); done \
 && /opt/pip/bin/pip install --no-cache-dir --no-compile --no-deps --force-reinstall ./fovea . "${folders[@]}"
# Kernels of language services. The compiler stays behind; the library that they share threads by lies next to them. The
# language model is unpacked and packed now: a container starts with an empty cache.
COPY deploy/pack_lm.py deploy/
# hadolint ignore=DL3008  # whatever compiler the base's distribution has
RUN case "${SERVICE}" in llm-longctx|interpretability|relevance-judge) \
      apt-get update -qq && apt-get install -yqq --no-install-recommends g++ && rm -rf /var/lib/apt/lists/* \
      && /opt/fovea/bin/fovea build-kernels \
      && built=$(/opt/fovea/bin/python -P -c "from services.llm_longctx.kernels.native.isa_targets import PLACE; print(PLACE)") \
      && cp -L "$(g++ -print-file-name=libgomp.so.1)" "${built}" \
      && /opt/fovea/bin/python -P deploy/pack_lm.py ;; esac
# Graphs, compared with torch, which is thrown away with its environment.
RUN mkdir -p /opt/fovea/graphs \
 && [ "${FLAVOUR}" != onnx ] || { \
      index=(); [ "${TORCH_INDEX}" = none ] || index=(--extra-index-url "${TORCH_INDEX}"); \
      python3 -m venv /opt/export \
      && env -u PIP_PYTHON /opt/export/bin/pip install --no-cache-dir "${index[@]}" -c constraints.txt -r plugins.txt ./fovea ".[${SERVICE},cpu]" \
      && mapfile -t folders < <(python3 deploy/plugins.py folders "${SERVICE}") \
      && for name in ${WEIGHTS}; do folders+=("./weights/${name}"); done \
      && env -u PIP_PYTHON /opt/export/bin/pip install --no-cache-dir --no-deps ./fovea . "${folders[@]}" \
      && /opt/export/bin/fovea export graphs /opt/fovea/graphs --service "${SERVICE}" && rm -rf /opt/export; }
# What is inside, for whoever must know (`cat /opt/fovea/sbom.json`).
RUN /opt/pip/bin/pip inspect | /opt/fovea/bin/python -m shared.serving.sbom "fovea-${SERVICE}" > /opt/fovea/sbom.json
# Tests, headers, symbols, weights of other services and the like; all that starts is imported once afterwards.
COPY deploy/trim.py deploy/
RUN /opt/fovea/bin/python deploy/trim.py "${SERVICE}"

FROM ${BASE} AS run-cpu
FROM ${BASE} AS run-onnx
# An image for GPUs says so where it finds none, and doesn't serve from a CPU.
FROM ${BASE} AS run-gpu
ENV FOVEA_DEVICE=cuda

# hadolint ignore=DL3006  # one of the three above
FROM run-${FLAVOUR}
ARG SERVICE=gateway
ARG FLAVOUR=cpu
ARG VERSION=0.2.0
ARG REVISION=unknown
# Of Fovea and its weights; sbom.json has those of all packages, whose texts are in their `dist-info` folders.
ARG LICENCES="Apache-2.0 AND MIT AND CC-BY-4.0 AND LicenseRef-Kvasir-SEG-Research-Only"
LABEL org.opencontainers.image.title="fovea-${SERVICE}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="${LICENCES}"
COPY --from=build /opt/fovea /opt/fovea
# A numeric user, so that Kubernetes can check runAsNonRoot; state only under /data. A login shell, which some versions
# of KubeRay start Ray with, sets PATH anew and reads this file.
RUN mkdir -p /data && chown 65532:65532 /data \
 && echo "export PATH=/opt/fovea/bin:\$PATH" > /etc/profile.d/fovea.sh
# Triton compiles a module of its driver when the first kernel starts, for this Python: it needs a compiler and headers.
SHELL ["/bin/bash", "-eo", "pipefail", "-c"]
# hadolint ignore=DL3008  # whatever compiler the base's distribution has
RUN case "${FLAVOUR}:${SERVICE}" in gpu:llm-longctx|gpu:interpretability|gpu:relevance-judge) \
      packages=(gcc libc6-dev) \
      && headers=$(/opt/fovea/bin/python -c "import sysconfig; print(sysconfig.get_path('include'))") \
      && { [ -f "${headers}/Python.h" ] || packages+=(python3-dev); } \
      && apt-get update -qq && apt-get install -yqq --no-install-recommends "${packages[@]}" && rm -rf /var/lib/apt/lists/* \
      && [ -f "${headers}/Python.h" ] ;; esac
USER 65532:65532
WORKDIR /data
ENV PATH=/opt/fovea/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    OMP_WAIT_POLICY=PASSIVE \
    HOME=/data \
    SERVICE=${SERVICE} \
    FOVEA_HOST=0.0.0.0 \
    FOVEA_REPLICA_HOST=0.0.0.0 \
    FOVEA_METRICS_PORT=9464 \
    FOVEA_DATA_DIR=/data \
    TRITON_CACHE_DIR=/data/cache/triton \
    FOVEA_GRAPHS_DIR=/opt/fovea/graphs \
    FOVEA_LOG_FORMAT=json \
    FOVEA_AUTH=keys
EXPOSE 8080 8081 9464
HEALTHCHECK --interval=30s --timeout=20s --start-period=120s \
  CMD ["python", "-m", "shared.serving.health_check"]
# `gateway` starts the gateway; any other name starts that service under uvicorn and grpc.aio.
CMD ["/bin/sh", "-c", "if [ \"$SERVICE\" = gateway ]; then exec python -m services.gateway; fi; exec python -m shared.serving \"$SERVICE\" --http-port 8080 --grpc-port 8081"]
