"""Weights that nobody reads are given back, unless somebody wrote to them."""

import subprocess
import sys

import torch
from safetensors.torch import load_file, save_file

from shared.lm.mapped_weights import release_clean_pages
from shared.lm.tests.test_weights import FACTS

SIZE = 4 * 2**20


def test_clean_pages_are_given_back_and_read_again_and_written_ones_stay(tmp_path):
    for name, value in (("clean", 3.0), ("written", 5.0)):
        save_file({"w": torch.full((SIZE // 4,), value)}, tmp_path / name)
    clean, written = (load_file(tmp_path / name)["w"] for name in ("clean", "written"))
    assert float(clean.sum() + written.sum()) == 8.0 * SIZE / 4
    written[7] = 11.0
    assert SIZE <= release_clean_pages(tmp_path) < 2 * SIZE
    assert release_clean_pages(tmp_path) == 0
    assert (float(clean[7]), float(written[7]), float(written[8])) == (3.0, 11.0, 5.0)
    assert release_clean_pages(tmp_path / "elsewhere") == 0


def test_a_decoder_without_weights_does_not_import_torchs_compiler():
    """For random numbers of tensors that have no memory torch imports it and sympy: 75 MB, and a second."""
    program = (
        "import sys\n"
        "from shared.lm.config import from_official\n"
        "from shared.lm.weights import build_without_weights\n"
        f"model = build_without_weights(from_official({FACTS}))\n"
        "print(model.output_matrix.device, 'torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "meta False\n"
