"""LoRA adapters: equal to peft, row by row next to others, and refused by name where something is not served."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fovea.errors import FoveaError, InvalidOption, Malformed
from shared.lm.builders import gpt2
from shared.lm.lora import LoraOps, build_adapter
from shared.lm.lora_config import parse_lora_config
from shared.lm.ops import TORCH
from shared.lm.tests.test_decoder import ids, ours, theirs

FOLDER = Path(__file__).parent / "golden/lora"
KNOWN = json.loads((FOLDER / "logits.json").read_text())
Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


def facts_of(name: str) -> dict:
    return json.loads((FOLDER / name / "adapter_config.json").read_text())


def tensors_of(name: str) -> dict:
    return load_file(FOLDER / name / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def model(llama_golden):
    return llama_golden.model


@pytest.mark.parametrize("name", KNOWN["adapters"])
@torch.no_grad()
def test_an_adapter_equals_peft(model, name):
    adapter = build_adapter(parse_lora_config(facts_of(name)), tensors_of(name), model, name)
    ids, known, ops = KNOWN["ids"], KNOWN["adapters"][name], LoraOps(TORCH, [adapter])
    last = model(torch.tensor([ids]), ops=ops)[0, -1]
    torch.testing.assert_close(last, torch.tensor(known["last_logits"]), atol=1e-4, rtol=0)
    said = ids[:6]
    while len(said) < 22:
        said = [*said, int(model(torch.tensor([said]), ops=ops)[0, -1].argmax())]
    assert said[6:] == known["greedy"]


@pytest.mark.parametrize(("changed", "what"), [
    ({"use_dora": True}, "use_dora"), ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"bias": "lora_only"}, "bias"), ({"trainable_token_indices": [3]}, "trainable_token_indices"),
    ({"layer_replication": [[0, 2]]}, "layer_replication"), ({"init_lora_weights": "pissa"}, "pissa"),
    ({"kasa_config": {"beta": 1}}, "kasa_config"), ({"peft_type": "IA3"}, "IA3"),
    ({"layers_pattern": "blocks"}, "layers_pattern"), ({"r": 10_000}, "1 to 256"), ({"r": True}, "1 to 256"),
    ({"lora_alpha": float("nan")}, "alpha"), ({"rank_pattern": {"(a+)+b": 3}}, "may take long"),
    ({"rank_pattern": {"(q_proj": 3}}, "regular expression"), ({"rank_pattern": [3]}, "can't be used"),
    ({"target_modules": [3]}, "list of names"), ({"layers_to_transform": ["one"]}, "numbers of layers"),
    ({"target_modules": ["k_proj"]}, "leaves out"), ({"exclude_modules": ["v_proj"]}, "leaves out"),
    ({"r": 5}, "must be"),
])  # fmt: skip
def test_a_configuration_that_is_not_served_is_refused_by_name(model, changed, what):
    with pytest.raises(FoveaError, match=what) as caught:
        build_adapter(parse_lora_config(facts_of("plain") | changed), tensors_of("plain"), model, "")
    assert caught.value.status in {400, 422}
    assert caught.value.field in {"config", "weights"}


@pytest.mark.parametrize(("more", "what"), [
    ({"base_model.model.model.embed_tokens.lora_embedding_A": torch.zeros(4, 64)}, "lora_embedding_A"),
    ({f"{Q0}.lora_magnitude_vector": torch.zeros(32)}, "lora_magnitude_vector"),
    ({Q0.replace("layers.0", "layers.9") + ".lora_A.weight": torch.zeros(4, 32)}, "layers.9"),
    ({f"{Q0}.lora_A.weight": torch.zeros(4, 31)}, "must be"),
    ({f"{Q0}.lora_A.weight": torch.zeros(4, 32, dtype=torch.int8)}, "float16 or bfloat16"),
    ({f"{Q0}.lora_B.weight": torch.full((32, 4), torch.inf)}, "finite"),
])  # fmt: skip
def test_tensors_that_do_not_fit_are_refused(model, more, what):
    with pytest.raises(FoveaError, match=what):
        build_adapter(parse_lora_config(facts_of("plain")), tensors_of("plain") | more, model, "")


def test_half_an_adapter_an_empty_one_one_without_a_rank_and_a_gpt2_are_refused(model):
    config, tensors = parse_lora_config(facts_of("plain")), tensors_of("plain")
    with pytest.raises(Malformed, match="has no r"):
        parse_lora_config({key: value for key, value in facts_of("plain").items() if key != "r"})
    with pytest.raises(Malformed, match="missing"):
        build_adapter(config, {k: x for k, x in tensors.items() if k != f"{Q0}.lora_B.weight"}, model, "")
    with pytest.raises(Malformed, match="no tensors"):
        build_adapter(config, {}, model, "")
    with pytest.raises(InvalidOption, match="GPT-2"):
        build_adapter(config, tensors, gpt2(vocab=8, width=8, layers=1, heads=2, hidden=8, positions=8), "")


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


@pytest.mark.release
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft and transformers
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
