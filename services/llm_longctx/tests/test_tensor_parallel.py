"""A decoder that two processes hold together answers as one process does; what needs it whole is refused."""

from contextlib import closing

import pytest

from fovea.errors import InvalidOption
from services.llm_longctx.engine import Engine, GenerationRequest, Request, Sampling
from services.llm_longctx.engine import backend as backend_module
from services.llm_longctx.engine.device.parallel_backend import open_backend
from services.llm_longctx.engine.scheduler import Scheduler
from services.llm_longctx.methods import method
from services.llm_longctx.serving.local_models import make_local_model
from services.llm_longctx.tests.conftest import tiny_decoder, write_folder
from shared.lm.builders import gpt2
from shared.lm.tensor_parallel import Team, take_shard
from shared.registry import LoadContext

IDS = [(11 * i + i * i) % 250 for i in range(150)]
SPARSE = method("flexprefill", block=8, min_budget=8, gamma=0.6)


def asked() -> list[Request]:
    """Different lengths in one batch; some share a prefix of whole blocks, and one reads its prompt sparsely."""
    dense = [Request(IDS[a:b], max_tokens=new) for a, b, new in ((0, 100, 6), (0, 90, 4), (5, 60, 5))]
    return [*dense, Request(IDS[:130], SPARSE, max_tokens=6)]


def load(folder, cache, size: int):
    options = {"llm_weights": "fp32", "llm_tensor_parallel": str(size)}
    return make_local_model(folder).load(LoadContext(cache=cache, threads=1, options=options))


def test_two_processes_answer_as_one(tmp_path):
    folder = write_folder(tmp_path / "model")
    wanted = [one.tokens for one in Engine(tiny_decoder(), prefix_block=64).generate(asked())]
    with closing(load(folder, tmp_path / "cache", 2)) as together:
        engine = together.adapter.engine
        assert engine.model.config.kv_heads == 1
        for _ in range(2):  # the second time with what is left of the first
            assert [one.tokens for one in engine.generate(asked())] == wanted
        with pytest.raises(InvalidOption, match="may hold other entries"):
            engine.generate([Request(IDS[:40], "snapkv", max_tokens=2)])
        with pytest.raises(InvalidOption, match="Embeddings need the whole model"):
            together.embedder  # noqa: B018  # the access raises
    assert all(process.returncode == 0 for process in together._others._started)


@pytest.mark.parametrize(("model", "size", "said"), [
    (lambda: gpt2(vocab=11, width=16, layers=1, heads=4, hidden=20, positions=8), 2, "GPT-2 can't be divided"),
    (tiny_decoder, 4, "can't share 2 kv_heads evenly"),
])  # fmt: skip
def test_what_can_not_be_divided_is_refused(model, size, said):
    with pytest.raises(InvalidOption, match=said):
        take_shard(model(), Team(0, size))


def test_sizes_that_there_are_not_are_refused(tmp_path):
    with pytest.raises(InvalidOption, match="1, 2, 4 or 8 processes, not by 3"):
        load(write_folder(tmp_path / "model"), tmp_path, 3)


class Record:
    """Messages of a leader and what it held in between, for one follower that reads them later."""

    def __init__(self) -> None:
        self.sent: list = []
        self.follower = None
        self.looks = 0

    def send(self, message) -> None:
        self.sent.append(message)

    def receive(self):
        while self.sent[0][0] == "held":
            assert held_by(self.follower) == self.sent.pop(0)[1]
            self.looks += 1
        return self.sent.pop(0)


def held_by(backend) -> tuple[int, int]:
    return backend.runner.pool.held, len(backend.prefix_cache)


def test_a_follower_holds_the_pages_that_its_leader_holds(monkeypatch):
    """Preemption, lost prefixes and forks, in a pool that is too small: whatever happens there, happens here."""
    monkeypatch.setattr(backend_module, "_FORESEEN_NEW", 0)
    channel = Record()
    engines = [Engine(tiny_decoder(), kv_bytes=1) for _ in range(2)]
    leader, channel.follower = (
        open_backend(channel, Team(rank, 2), one.runner, one.policy, 6, None, 16) for rank, one in enumerate(engines)
    )
    scheduler = Scheduler(leader)
    requests = [GenerationRequest(IDS[i : 70 + 5 * i], [Sampling(seed=i)] * (1 + i % 2), 30) for i in range(4)]
    for request in requests:
        scheduler.add_request(request)
    while scheduler.in_flight:
        scheduler.step()
        channel.send(("held", held_by(leader)))
    assert sum(request.stats.preempted for request in requests) > 0, "the pool was large enough"
    assert any(message[0] == "make_room" for message in channel.sent), "no prefix was given up"
    channel.send(("stop",))
    channel.follower.follow(channel)
    assert channel.looks > 30
    assert not channel.sent
