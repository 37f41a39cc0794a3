"""The contract of Servables that write text, besides the others: its probabilities are those of the Card's network."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from fovea.api.text import CompletionRequest, TokenizeRequest
from shared.lm.gguf_file import unpack
from shared.lm.weights import load_decoder
from shared.registry import CallContext
from tests.contract.checks.kinds import applies_to, writes_with_named_weights
from tests.contract.checks.loaded import Loaded
from tests.contract.checks.requests import distinct_requests
from tests.contract.checks.weights import disturbed, network_of, weights_file
from tests.harness.streams import events_of

LONGEST = 64
"""Tokens of a prompt that are looked at."""

NATS = 0.2
"""How far log-probabilities may be apart: tokens that are never said are left out of what is served only."""


@applies_to(writes_with_named_weights)
def check_log_probabilities_are_the_cards_networks(loaded: Loaded) -> None:
    """Each token of a prompt is as likely as the network says that has the Card's weights, and noise changes that."""
    file, ids = weights_file(loaded.card.weights or ""), list[int]()
    assert file is not None
    if file.suffix == ".gguf":
        net: nn.Module = load_decoder(unpack(file, loaded.place.cache, torch.float32), torch.float32, "cpu")
    else:
        net = network_of(file)
    for request, _ in distinct_requests(loaded, 3):
        ids = loaded.servable.tokenize(TokenizeRequest(messages=request.messages)).tokens[:LONGEST]
        served = _served(loaded, ids)
        assert np.abs(served - _likely(net, ids)).max() < NATS, "another model's probabilities"
    assert np.abs(served - _likely(disturbed(net, 0.1), ids)).max() > NATS, "this check would not see other weights"


def _served(loaded: Loaded, ids: Sequence[int]) -> np.ndarray:
    """Log-probabilities of all tokens of a prompt but its first, as they are served."""
    asked = CompletionRequest(prompt=list(ids), max_tokens=0, echo=True, logprobs=0, temperature=0)
    pieces = [piece for event in events_of(loaded.servable.stream(asked, CallContext())) for piece in event.choices]
    told = [value for piece in pieces if piece.logprobs for value in piece.logprobs.token_logprobs]
    assert len(told) == len(ids)
    return np.array(told[1:], float)


def _likely(net: nn.Module, ids: Sequence[int]) -> np.ndarray:
    """Log-probabilities of all tokens of a prompt but its first, as the network has them."""
    tokens, network = torch.tensor([list(ids)]), net
    with torch.no_grad():
        found: Any = network.session(1).feed(tokens) if hasattr(network, "session") else network(tokens)
    logits = getattr(found, "logits", found)[0].float()
    return logits[:-1].log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0].numpy()


TEXT_CHECKS = tuple(check for name, check in list(globals().items()) if name.startswith("check_"))
"""All of them, in the order in which they stand here."""
