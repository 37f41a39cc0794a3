"""Hand-built models whose circuits are known: a previous-token head and an induction head, each with a distractor.

A GPT-2 of two layers without MLPs; the residual stream holds the token, the token before, the position, and junk, one
hot each. Head 0-0 copies the token before; head 1-0 looks for its own token there, and copies what it finds.
"""

import torch
from torch import Tensor

from shared.lm.builders import gpt2
from shared.lm.decoder import Decoder

V, P = 8, 8
WIDTH, HEAD = 4 * V, 16
TOKEN, BEFORE, PLACE, JUNK = (slice(i * V, (i + 1) * V) for i in range(4))
A, B, C, D, E, START = range(6)
SHARP = 40.0
"""Scale of queries: attention is nearly hard."""


def induction_model(sharp: float = SHARP) -> Decoder:
    model = gpt2(vocab=V, width=WIDTH, layers=2, heads=2, hidden=8, positions=P)
    for parameter in model.parameters():
        parameter.data.zero_()
    eye = torch.eye(V)
    model.transformer.wte.weight.data[:, TOKEN] = eye
    model.transformer.wpe.weight.data[:, PLACE] = eye
    for name, parameter in model.named_parameters():
        if "ln_" in name and name.endswith("weight"):
            parameter.data.fill_(1.0)
    back = torch.roll(eye, -1, 1)  # position t asks for t − 1
    _set(model, 0, 0, PLACE, back * sharp, PLACE, eye, TOKEN, BEFORE, 1.0)
    _set(model, 0, 1, PLACE, eye * 0.0, PLACE, eye, TOKEN, JUNK, 0.1)
    _set(model, 1, 0, TOKEN, eye * sharp, BEFORE, eye, TOKEN, TOKEN, 2.0)
    _set(model, 1, 1, PLACE, eye * 0.0, PLACE, eye, JUNK, JUNK, 0.1)
    return model.double().requires_grad_(requires_grad=False).eval()


def _set(model, layer, head, q, q_map, k, k_map, v, out, gain):
    """Give a head what it asks for, what it is found by, what it copies, and where to."""
    attn = model.transformer.h[layer].attn
    fused = attn.c_attn.weight.data.view(WIDTH, 3, 2, HEAD)
    fused[q, 0, head, :V], fused[k, 1, head, :V], fused[v, 2, head, :V] = q_map, k_map, torch.eye(V)
    attn.c_proj.weight.data.view(2, HEAD, WIDTH)[head, :V, out] = gain * torch.eye(V)


def prompts(which: str) -> tuple[Tensor, Tensor, Tensor]:
    """Clean prompt, counterfactual and answers: … A B C D A → B, not C, with the `key`, `query` or `value` changed."""
    clean = [START, A, B, C, D, A]
    corrupt = {"key": [E, B, C, D, A], "query": [A, B, C, D, E], "value": [A, C, B, D, A]}[which]
    corrupt = [START, *corrupt]
    return torch.tensor([clean]), torch.tensor([corrupt]), torch.tensor([[B, C]])
