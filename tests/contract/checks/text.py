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
    net, ids = _network(loaded), list[int]()
    for request, _ in distinct_requests(loaded, 3):
        ids = loaded.servable.tokenize(TokenizeRequest(messages=request.messages)).tokens[:LONGEST]
        served = _served(loaded, ids)
        assert np.abs(served - _likely(net, ids)).max() < NATS, "another model's probabilities"
    assert np.abs(served - _likely(disturbed(net, 0.1), ids)).max() > NATS, "this check would not see other weights"


@applies_to(writes_with_named_weights)
def check_likeliest_token_is_said(loaded: Loaded) -> None:
    """At temperature 0 an answer's tokens are each the likeliest that the network knows."""
    net = _network(loaded)
    for request, _ in distinct_requests(loaded, 2):
        ids = list(loaded.servable.tokenize(TokenizeRequest(messages=request.messages)).tokens[:LONGEST])
        said = _pieces(loaded, CompletionRequest(prompt=ids, max_tokens=3, temperature=0, logprobs=1))
        for piece in [one for one in said if one.logprobs is not None][:2]:
            (told,) = piece.logprobs.token_logprobs[:1]
            best = _logits(net, ids)[-1].log_softmax(-1)
            assert abs(float(best.max()) - told) < NATS, "it says what its network would not"
            ids.append(int(best.argmax()))


def _served(loaded: Loaded, ids: Sequence[int]) -> np.ndarray:
    """Log-probabilities of all tokens of a prompt but its first, as they are served."""
    asked = CompletionRequest(prompt=list(ids), max_tokens=0, echo=True, logprobs=0, temperature=0)
    told = [value for piece in _pieces(loaded, asked) if piece.logprobs for value in piece.logprobs.token_logprobs]
    assert len(told) == len(ids)
    return np.array(told[1:], float)


def _pieces(loaded: Loaded, asked: CompletionRequest) -> list[Any]:
    return [piece for event in events_of(loaded.servable.stream(asked, CallContext())) for piece in event.choices]


def _likely(net: nn.Module, ids: Sequence[int]) -> np.ndarray:
    return _logits(net, ids)[:-1].log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()


def _logits(net: nn.Module, ids: Sequence[int]) -> torch.Tensor:
    tokens, network = torch.tensor([list(ids)]), net
    with torch.no_grad():
        found: Any = network.session(1).feed(tokens) if hasattr(network, "session") else network(tokens)
    return getattr(found, "logits", found)[0].float()


def _network(loaded: Loaded) -> nn.Module:
    if "network" not in loaded.known:
        file = weights_file(loaded.card.weights or "")
        assert file is not None
        loaded.known["network"] = (
            load_decoder(unpack(file, loaded.place.cache, torch.float32), torch.float32, "cpu")
            if (file.suffix == ".gguf")
            else network_of(file)
        )
    net: nn.Module = loaded.known["network"]
    return net


TEXT_CHECKS = tuple(check for name, check in list(globals().items()) if name.startswith("check_"))
"""All of them, in the order in which they stand here."""
