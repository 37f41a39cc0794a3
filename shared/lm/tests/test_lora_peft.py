"""Adapters of every family, made anew by peft on random official models: ours add what peft's add."""

import json

import pytest
import torch
from safetensors.torch import load_file

from shared.lm.lora import LoraOps, build_adapter
from shared.lm.lora_config import parse_lora_config
from shared.lm.ops import TORCH
from shared.lm.tests.test_lm_parity import ids, ours, theirs

pytestmark = [pytest.mark.release, pytest.mark.filterwarnings("ignore::FutureWarning")]  # of peft and transformers

ALL = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
CONFIGS = {
    "all": {"r": 4, "lora_alpha": 6, "target_modules": ALL, "rank_pattern": {"v_proj": 7, r"1\.mlp\.up_proj": 2}},
    "stabilized": {
        "r": 3, "lora_alpha": 5, "use_rslora": True, "target_modules": ALL[2:5], "layers_to_transform": [1, 2],
        "alpha_pattern": {"o_proj": 9},
    },
    "regex": {
        "r": 2, "lora_alpha": 8, "target_modules": r".*self_attn\.[qo]_proj", "exclude_modules": ["1.self_attn.q_proj"],
    },
}  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("case", ["llama", "llama, biases", "qwen2", "qwen3", "gemma3"])
@torch.no_grad()
def test_an_adapter_adds_what_pefts_does(case, config, tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model, text = theirs(case), ids(2, 30)
    decoder = ours(model)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **CONFIGS[config])).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.copy_(0.2 * torch.randn(parameter.shape))
    adapted.save_pretrained(tmp_path)
    facts = parse_lora_config(json.loads((tmp_path / "adapter_config.json").read_text()))
    adapter = build_adapter(facts, load_file(tmp_path / "adapter_model.safetensors"), decoder, "")
    known, found = adapted(text).logits, decoder(text, ops=LoraOps(TORCH, [adapter]))
    torch.testing.assert_close(found, known, atol=2e-4, rtol=1e-4)
    assert (found - decoder(text)).abs().max() > 0.1
