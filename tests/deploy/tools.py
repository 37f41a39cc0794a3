"""Finds helm for the chart's tests: on PATH, or inside the wheel that carries it (unpacked once, next to the venv)."""

import importlib.util
import io
import pathlib
import shutil
import sys
import tarfile
import zipfile

CARRIER = "aws_cdk"


def helm() -> str | None:
    if found := shutil.which("helm"):
        return found
    target = pathlib.Path(sys.prefix) / "bin" / "helm"
    if target.exists():
        return str(target)
    if (packed := _layer()) is None:
        return None
    with zipfile.ZipFile(io.BytesIO(packed)) as layer:
        target.write_bytes(layer.read("helm/helm"))
    target.chmod(0o755)
    return str(target)


def _layer() -> bytes | None:
    spec = importlib.util.find_spec(CARRIER)
    for place in (spec.submodule_search_locations or []) if spec else []:
        for archive in pathlib.Path(place).glob("lambda_layer_kubectl_*/_jsii/*.tgz"):
            with tarfile.open(archive) as tar:
                member = tar.extractfile("package/lib/layer.zip")
                return member.read() if member else None
    return None
