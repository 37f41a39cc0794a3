"""Builders, angles of rotation, and weights that nobody reads: given back, unless somebody wrote to them."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from shared.lm import builders
from shared.lm.config import DecoderConfig
from shared.lm.mapped_weights import release_clean_pages
from shared.lm.rope import frequencies, rotation
from shared.lm.tests.test_weights import FACTS

SIZES = {"vocab": 20, "width": 12, "layers": 2, "heads": 3, "hidden": 16, "positions": 32}


def test_gpt2_has_no_position_behind_its_table():
    model = builders.gpt2(**SIZES)
    assert model(torch.zeros(1, 32, dtype=torch.long)).shape == (1, 32, 20)
    with pytest.raises(ValueError, match="32 positions, not 33"):
        model(torch.zeros(1, 33, dtype=torch.long))


def test_only_the_last_logits_are_computed_when_only_they_are_kept():
    model = builders.llama(**SIZES, kv_heads=1)
    ids = torch.arange(10)[None]
    torch.testing.assert_close(model(ids, keep=2), model(ids)[:, -2:])
    assert model(ids, keep=0).shape == (1, 0, 20)


def test_angles_are_float32_in_every_dtype():
    theta = frequencies(DecoderConfig("llama", 8, 12, 2, 4, 2, 8, 8, 64, 1e-5, tied=True, rope_theta=100.0))
    assert theta.dtype == torch.float32
    far = torch.tensor([60_001])
    narrow, wide = (rotation(theta, far, dtype)[0].flatten() for dtype in (torch.bfloat16, torch.float32))
    torch.testing.assert_close(narrow.float(), wide, atol=4e-3, rtol=0)
    assert rotation(theta, far, torch.float64)[0].dtype == torch.float64


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
