"""Fidelity: the distance of a method from dense attention on the same tokens, both teacher-forced side by side.

Work comes in small pieces, so that whoever serves can do something else in between. Knows two sequences and their
logits; knows nothing about when it is worth the time.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from services.llm_longctx.engine.attention.method_policy import Policy
from services.llm_longctx.engine.kv_manager import PagedState
from services.llm_longctx.engine.model_runner import ModelRunner
from services.llm_longctx.engine.offline.decode_loop import decode, read_prompt
from shared.lm.lora import LoraAdapter


@dataclass(slots=True)
class Fidelity:
    """One number per token of an answer.

    Attributes:
        kl: KL(dense ‖ method) of the next token, in nats.
        top1: Whether both found the same token likeliest.
        right: Whether the method found the token likeliest that came.
        dense: Log-likelihood of the token that came, dense.
        method: The same under the method.
    """

    kl: list[float] = field(default_factory=list)
    top1: list[bool] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)
    dense: list[float] = field(default_factory=list)
    method: list[float] = field(default_factory=list)

    @property
    def agreement(self) -> float:
        """Share of tokens on which both agree."""
        return sum(self.top1) / len(self.top1) if self.top1 else 1.0

    @property
    def divergence(self) -> float:
        """Mean KL in nats."""
        return sum(self.kl) / len(self.kl) if self.kl else 0.0

    @property
    def delta(self) -> float:
        """Mean log-likelihood that the method loses, in nats per token."""
        return (sum(self.dense) - sum(self.method)) / len(self.dense) if self.dense else 0.0

    def add(self, dense: Tensor, method: Tensor, token: int) -> None:
        """Compare logits [V] before `token` came."""
        p, q = dense.double().log_softmax(-1), method.double().log_softmax(-1)
        self.kl.append(max(float((p.exp() * (p - q)).sum()), 0.0))
        self.top1.append(bool(p.argmax() == q.argmax()))
        self.right.append(bool(q.argmax() == token))
        self.dense.append(float(p[token]))
        self.method.append(float(q[token]))


def compare_to_dense(
    runner: ModelRunner,
    prompt: Sequence[int],
    answer: Sequence[int],
    policy: Policy,
    on_result: Callable[[Fidelity], object],
    adapter: LoraAdapter | None = None,
) -> Generator[None, None, None]:
    """Read a prompt and an answer densely and by a method, piece by piece; `on_result` gets the result at the end.

    Pages are given back whether it runs to its end or is closed before.
    """
    found = Fidelity()
    pair = [_Forced(runner.open(one, adapter), answer) for one in (runner.dense, policy)]
    try:
        for one in pair:
            one.state.reserve(len(prompt), len(answer))
            one.logits = (yield from read_prompt(runner, one.state, prompt))[-1]
        if answer:
            found.add(pair[0].logits, pair[1].logits, answer[0])
        for place, _ in enumerate(decode(runner, pair), 1):
            found.add(pair[0].logits, pair[1].logits, answer[place])
            yield
        on_result(found)
    finally:
        for one in pair:
            one.state.close()


class _Forced:
    """A sequence that is fed a known answer, whatever it would have said."""

    logits: Tensor

    def __init__(self, state: PagedState, answer: Sequence[int]) -> None:
        self.state = state
        self._rest = iter(answer[:-1])  # there is nothing to compare behind the last token

    def next_token(self) -> int | None:
        return next(self._rest, None)

    def take(self, logits: Tensor) -> None:
        self.logits = logits
