"""Sequences that are read in chunks and decode together answer as each alone."""

import torch

from services.llm_longctx.engine import Engine
from services.llm_longctx.engine.offline.decode_loop import decode, read_prompt
from services.llm_longctx.tests.test_engine_pages import prompt


class Fed:
    """A sequence that is fed known tokens; remembers the logits."""

    def __init__(self, state, tokens):
        self.state, self.rest, self.heard = state, list(tokens), []

    def next_token(self):
        return self.rest.pop(0) if self.rest else None

    def take(self, logits):
        self.heard.append(logits)


def finish(work):
    steps = 0
    while True:
        try:
            next(work)
            steps += 1
        except StopIteration as end:
            return steps, end.value


def test_sequences_of_other_lengths_decode_together_as_alone(tiny):
    engine = Engine(tiny, page=8)
    answers = (prompt(2, 5), prompt(4, 6))
    alone = []
    for ids, answer in zip((prompt(70), prompt(33, 2)), answers, strict=True):
        sequence = engine.open()
        alone.append([sequence.prefill(ids)[-1], *(sequence.step(token) for token in answer)])
        sequence.close()
    together = []
    for ids, answer in zip((prompt(70), prompt(33, 2)), answers, strict=True):
        state = engine.runner.open(engine.dense)
        state.reserve(len(ids), len(answer))
        _, logits = finish(read_prompt(engine.runner, state, ids, keep=3, prefixes=engine.prefix_cache))
        assert len(logits) == 3
        together.append(Fed(state, answer))
        together[-1].take(logits[-1])
    steps, _ = finish(decode(engine.runner, together, prefixes=engine.prefix_cache))
    assert steps == 4
    for expected, one in zip(alone, together, strict=True):
        torch.testing.assert_close(torch.stack(one.heard), torch.stack(expected))
        one.state.close()
    assert engine.pool.held == 0


def test_a_prompt_that_is_known_gives_no_logits(tiny):
    engine = Engine(tiny, page=8)
    state = engine.runner.open(engine.dense)
    steps, logits = finish(read_prompt(engine.runner, state, prompt(9), start=9))
    assert (steps, len(logits)) == (0, 0)
    state.close()
