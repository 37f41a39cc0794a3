#!/usr/bin/env bash
# Builds one service's image without a Docker daemon, runs it, and sends it one real request through a local gateway:
#   deploy/images.sh [SERVICE]            (default medical-seg; needs root, buildah, podman, runc and, without BASE, mmdebstrap)
# BASE names a base image that is already here; unset, a minimal Debian with Python is made from the distribution's packages.
# FLAVOUR is cpu (default), gpu or onnx; PUSH a registry that takes the image once it has answered: PUSH=ghcr.io/me deploy/images.sh
# It tells how long the first answer took after the container's start; with MAX_START_S=10 more than 10 s is an error.
# SAVE is a folder that takes it as an OCI archive; WEIGHTS the packages of weights that it may have (fovea-weights: no others)
# SUITE is its release, WHEELS a folder of wheels that pip prefers, TORCH_INDEX an index of CPU builds of torch.
set -euo pipefail
cd "$(dirname "$0")/.."
service=${1:-medical-seg}
flavour=${FLAVOUR:-cpu}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
weights=${WEIGHTS-fovea-weights fovea-weights-kvasir-seg}
licences="Apache-2.0 AND MIT"
case "${service} ${weights}" in "medical-seg "*kvasir*|"interpretability "*kvasir*) licences+=" AND LicenseRef-Kvasir-SEG-Research-Only" ;; esac
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
suite=${SUITE:-$(. /etc/os-release && echo "${VERSION_CODENAME}")}
python=${PYTHON:-.venv/bin/python}
base=${BASE:-localhost/fovea-base:${suite}}
image=localhost/fovea-${service}:dev
# Of this shell: buildah would ask for more, which not every machine allows.
nproc=$(ulimit -u | sed s/unlimited/-1/)
limits=(--ulimit "nofile=$(ulimit -n):$(ulimit -n)" --ulimit "nproc=${nproc}:${nproc}")
work=$(mktemp -d)
pids=()
stop() {
  for pid in "${pids[@]}"; do kill "${pid}" 2>/dev/null || true; done
  podman rm -f -t 3 "fovea-${service}-try" >/dev/null 2>&1 || true
  rm -rf "${work}"
}
trap stop EXIT

for tool in buildah podman; do
  command -v "${tool}" >/dev/null || { echo "No ${tool} here. Try: apt-get install buildah podman runc mmdebstrap"; exit 2; }
done

if ! buildah inspect --type image "${base}" >/dev/null 2>&1; then
  echo "Making ${base} from Debian packages …"
  # Without manuals and translations, as slim images are; licences stay.
  mmdebstrap --quiet --variant=minbase --include=python3,python3-venv,ca-certificates \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    "${suite}" "${work}/base.tar"
  from=$(buildah from scratch)
  buildah add --quiet "${from}" "${work}/base.tar" / >/dev/null
  buildah commit --quiet --rm "${from}" "${base}" >/dev/null
fi

echo "Building ${image} on ${base} …"
extra=()
[ -z "${TORCH_INDEX:-}" ] || extra+=(--build-arg "TORCH_INDEX=${TORCH_INDEX}")
[ -z "${WHEELS:-}" ] || extra+=(--volume "${WHEELS}:${WHEELS}:ro" --build-arg "PIP_FIND_LINKS=${WHEELS}")
# The build sees this machine's certificates and pip settings, the image does not keep them.
for place in /etc/ssl/certs /etc/pip.conf /etc/xdg/pip; do
  [ ! -e "${place}" ] || extra+=(--volume "${place}:${place}:ro")
done
for name in $(compgen -e | grep -E '^(https?_proxy|no_proxy|HTTPS?_PROXY)$' || true); do
  extra+=(--build-arg "${name}=${!name}")
done
buildah bud --quiet --format docker --isolation chroot --network host "${limits[@]}" "${extra[@]}" \
  --build-arg "BASE=${base}" --build-arg "SERVICE=${service}" --build-arg "FLAVOUR=${flavour}" \
  --build-arg "WEIGHTS=${weights}" --build-arg "LICENCES=${licences}" \
  --build-arg "VERSION=${version}" --build-arg "REVISION=${revision}" -t "${image}" . >/dev/null
buildah images --format '{{.Name}}:{{.Tag}} {{.Size}}' | grep "fovea-${service}:" || true

free() { "${python}" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
http=$(free); grpc=$(free); front=$(free)
upstream=${service}
in_container() {
  podman --runtime runc run --detach --name "fovea-${service}-try" --network host "${limits[@]}" "$@" >/dev/null 2>&1
}
started=$(date +%s)
# The image under test plays its part; the other part runs from the virtual environment.
if [ "${service}" = gateway ]; then
  upstream=medical-seg
  FOVEA_DATA_DIR=${work} "${python}" -m shared.serving "${upstream}" --http-port "${http}" --grpc-port "${grpc}" >"${work}/service.log" 2>&1 &
  pids+=($!)
  in_container --env FOVEA_HOST=127.0.0.1 --env FOVEA_AUTH=insecure-local --env "FOVEA_HTTP_PORT=${front}" --env FOVEA_GRPC_PORT=0 \
    --env "FOVEA_STATIC_UPSTREAMS=${upstream}=http://127.0.0.1:${http}|grpc://127.0.0.1:${grpc}" "${image}"
else
  in_container --env FOVEA_REPLICA_HOST=127.0.0.1 "${image}" python -m shared.serving "${service}" --http-port "${http}" --grpc-port "${grpc}"
  FOVEA_HTTP_PORT=${front} FOVEA_GRPC_PORT=0 FOVEA_DATA_DIR=${work} FOVEA_STATIC_UPSTREAMS="${upstream}=http://127.0.0.1:${http}|grpc://127.0.0.1:${grpc}" \
    "${python}" -m services.gateway >"${work}/gateway.log" 2>&1 &
  pids+=($!)
fi
if ! "${python}" -m tests.deploy.one_request "http://127.0.0.1:${front}" "${upstream}"; then
  podman logs "fovea-${service}-try" 2>&1 | tail -20
  tail -20 "${work}"/*.log
  exit 1
fi
took=$(($(date +%s) - started))
echo "The first answer came ${took} s after the container was started."
[ "${took}" -le "${MAX_START_S:-${took}}" ] || { echo "That is more than ${MAX_START_S} s."; exit 1; }
if [ -n "${PUSH:-}" ]; then
  buildah push "${image}" "docker://${PUSH}/fovea-${service}:${version}"
fi
if [ -n "${SAVE:-}" ]; then
  buildah push --quiet "${image}" "oci-archive:${SAVE}/fovea-${service}-${version}-${flavour}.tar:fovea-${service}:${version}"
fi
