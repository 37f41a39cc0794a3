"""Decodes under presses of kvpress (Apache-2.0) that evict while decoding, in an environment of its own.

`decode_kvpress.py MODEL ASKED.json --out OUT.jsonl`: ASKED has `ids`, `prompt`, `count`, `budget`, `every`, `presses`.
A prompt is read, then token by token either what follows in `ids` or the press's own first choices; a dense copy of the
model reads the same tokens. Each line of OUT has the curves of one press. Imports nothing of ours.
"""

import argparse
import json
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import kvpress
import torch
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.utils import logging

PRESSES = {
    "streamingllm": kvpress.StreamingLLMPress,
    "tova": kvpress.TOVAPress,
    "keydiff": kvpress.KeyDiffPress,
    "knorm": kvpress.KnormPress,
}


class Reader:
    """One copy of the model, and what it has read."""

    def __init__(self, model: AutoModelForCausalLM) -> None:
        self.model, self.cache, self.position = model, DynamicCache(), 0

    def read(self, ids: list[int]) -> torch.Tensor:
        """Log-probabilities [V] behind the last of `ids`."""
        at = torch.arange(self.position, self.position + len(ids))[None]
        self.position += len(ids)
        found = self.model(torch.tensor([ids]), past_key_values=self.cache, position_ids=at, logits_to_keep=1)
        return found.logits[0, -1].float().log_softmax(-1)

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.cache.layers)


def main() -> None:
    """Follow each press, as the text goes and freely."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("asked", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    pressed, dense = (AutoModelForCausalLM.from_pretrained(asked.model, dtype=torch.bfloat16).eval() for _ in "pd")
    wanted = json.loads(asked.asked.read_text("utf8"))
    with asked.out.open("a", encoding="utf8") as out:
        for line in follow_all(pressed, dense, wanted):
            out.write(json.dumps(line) + "\n")
            out.flush()


@torch.inference_mode()
def follow_all(pressed: AutoModelForCausalLM, dense: AutoModelForCausalLM, asked: dict) -> Iterator[dict]:
    """Curves of each press; the dense copy reads the text only once for all."""
    prompt, ids = asked["prompt"], asked["ids"]
    text = Reader(dense)
    text.read(ids[:prompt])
    expected = [(text.read([token]).half(), text.nbytes) for token in ids[prompt : prompt + asked["count"]]]
    for forcing in ("teacher", "free"):
        for name in asked["presses"]:
            base = PRESSES[name]()
            press = kvpress.DecodingPress(
                base_press=base, compression_interval=asked["every"], target_size=asked["budget"]
            )
            curves = {"kl": [], "agreed": [], "kv_bytes": [], "dense_bytes": [], "ms": []}
            with press(pressed):
                mine, other = Reader(pressed), Reader(dense)
                token = int(mine.read(ids[:prompt]).argmax())
                if forcing == "free":
                    other.read(ids[:prompt])
                for at in range(asked["count"]):
                    fed, begun = ids[prompt + at] if forcing == "teacher" else token, time.thread_time()
                    q = mine.read([fed])
                    curves["ms"].append(1000 * (time.thread_time() - begun))
                    p, held = (other.read([fed]), other.nbytes) if forcing == "free" else expected[at]
                    p = p.float().log_softmax(-1)
                    token = int(q.argmax())
                    curves["kl"].append(float((p.exp() * (p - q)).sum()))
                    curves["agreed"].append(int(p.argmax()) == token)
                    curves["kv_bytes"].append(mine.nbytes)
                    curves["dense_bytes"].append(held)
            yield {"method": name, "forcing": forcing, "build": f"kvpress {version('kvpress')}", **curves}


if __name__ == "__main__":
    main()
