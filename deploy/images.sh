#!/usr/bin/env bash
# Builds one service's image without a Docker daemon, runs it, and sends it one real request through a local gateway:
#   deploy/images.sh [SERVICE]            (default medical-seg; needs root, buildah, podman, runc and, without BASE, mmdebstrap)
# BASE names a base image that is already here; unset, a minimal Debian with Python is made from the distribution's packages.
# FLAVOUR is cpu (default), gpu or onnx; PUSH a registry that takes the image once it has answered: PUSH=ghcr.io/me deploy/images.sh
# It prints how long the first answer took after the container's start; with MAX_START_S=10 more than 10 s is an error.
# SAVE is a folder that takes it as an OCI archive, and what is inside (CycloneDX); WEIGHTS the packages of weights that it may have (fovea-weights: no others)
# SUITE is its release, WHEELS a folder of wheels that pip prefers, TORCH_INDEX an index of CPU builds of torch.
set -euo pipefail
cd "$(dirname "$0")/.."
service=${1:-medical-seg}
flavour=${FLAVOUR:-cpu}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
weights=${WEIGHTS-fovea-weights fovea-weights-kvasir-seg}
licences="Apache-2.0 AND MIT AND CC-BY-4.0"
case "${service} ${weights}" in "medical-seg "*kvasir*|"interpretability "*kvasir*) licences+=" AND LicenseRef-Kvasir-SEG-Research-Only" ;; esac
revision=${REVISION:-$(git rev-parse HEAD 2>/dev/null || echo unknown)}
suite=${SUITE:-$(. /etc/os-release && echo "${VERSION_CODENAME}")}
python=${PYTHON:-.venv/bin/python}
base=${BASE:-localhost/fovea-base:${suite}}
image=localhost/fovea-${service}:${flavour}
# Of this shell: buildah would ask for more, which not every machine allows.
nproc=$(ulimit -u | sed s/unlimited/-1/)
limits=(--ulimit "nofile=$(ulimit -n):$(ulimit -n)" --ulimit "nproc=${nproc}:${nproc}")
work=$(mktemp -d)
trap 'rm -rf "${work}"' EXIT

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
index=${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}
# pip would ask an index that can't be reached again and again, for each package.
[ "${index}" = none ] || "${python}" -c 'import sys; sys.path.insert(0, "deploy"); import install; sys.exit(not install.torch_source(sys.argv[1], ()))' "${index}" || index=none
extra=(--build-arg "TORCH_INDEX=${index}")
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

# A gateway (or, for the gateway's image, a service) from the virtual environment takes part in the trial.
PYTHONPATH="${PWD}${PYTHONPATH:+:${PYTHONPATH}}" "${python}" -m loadtests.image_start "${service}" "${flavour}" ${MAX_START_S:+--most "${MAX_START_S}"}
if [ -n "${PUSH:-}" ]; then
  buildah push "${image}" "docker://${PUSH}/fovea-${service}:${version}"
fi
if [ -n "${SAVE:-}" ]; then
  file=${SAVE}/fovea-${service}-${version}-${flavour}
  buildah push --quiet "${image}" "oci-archive:${file}.tar:fovea-${service}:${version}"
  podman --runtime runc run --rm --network none "${limits[@]}" "${image}" cat /opt/fovea/sbom.json >"${file}.cdx.json"
fi
