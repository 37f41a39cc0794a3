# One file for the gateway and all services:
#   docker build --build-arg SERVICE=medical-seg --build-arg FLAVOUR=cpu -t fovea-medical-seg .
# BASE is any Debian or Ubuntu image with python3 (3.11+), python3-venv and ca-certificates.
# TORCH_INDEX may name an index of CPU builds of torch, which keeps the cpu flavour small.
ARG BASE=python:3.13-slim
FROM ${BASE} AS build
ARG SERVICE=gateway
ARG FLAVOUR=cpu
ARG TORCH_INDEX=
WORKDIR /src
COPY pyproject.toml constraints.txt requirements-data.txt README.md ./
COPY fovea fovea
COPY shared shared
COPY services services
SHELL ["/bin/bash", "-eo", "pipefail", "-c"]
# The gateway has no flavour: it runs no model. Only the language services carry the embedded language model.
RUN python3 -m venv /opt/fovea \
 && extras="${SERVICE}"; [ "${SERVICE}" = gateway ] || extras="${SERVICE},${FLAVOUR}" \
 && /opt/fovea/bin/pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} -c constraints.txt ".[${extras}]" \
 && case "${SERVICE}" in llm-longctx|interpretability|relevance-judge) \
      /opt/fovea/bin/pip install --no-cache-dir --no-deps -r requirements-data.txt ;; esac

FROM ${BASE}
ARG SERVICE=gateway
LABEL org.opencontainers.image.title="fovea-${SERVICE}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/fovea /opt/fovea
# A numeric user, so that Kubernetes can check runAsNonRoot; state only under /data.
RUN mkdir -p /data && chown 65532:65532 /data
USER 65532:65532
WORKDIR /data
ENV PATH=/opt/fovea/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    OMP_WAIT_POLICY=PASSIVE \
    HOME=/data \
    FOVEA_SERVICE=${SERVICE} \
    FOVEA_HOST=0.0.0.0 \
    FOVEA_REPLICA_HOST=0.0.0.0 \
    FOVEA_DATA_DIR=/data \
    FOVEA_LOG_FORMAT=json \
    FOVEA_AUTH=keys
EXPOSE 8080 8081
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/livez', timeout=2)"]
# `gateway` starts the gateway; any other name starts that service under uvicorn and grpc.aio.
CMD ["/bin/sh", "-c", "if [ \"$FOVEA_SERVICE\" = gateway ]; then exec python -m services.gateway; fi; exec python -m shared.serving \"$FOVEA_SERVICE\" --http-port 8080 --grpc-port 8081"]
