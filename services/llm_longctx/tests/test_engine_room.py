"""Room of a served engine: as on any host, or by what a GPU has free."""

import torch

from services.llm_longctx.serving.engine_room import choose_room


def test_a_host_has_what_it_always_had():
    assert choose_room("cpu", 16) == choose_room("cpu", 4) == (2 * 2**30, 8)


def test_a_gpu_gives_pages_what_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: ({"cuda:1": 50 * 2**30}[device], 80 * 2**30))
    assert choose_room("cuda:1", 16) == (40 * 2**30, 64)
    assert choose_room("cuda:1", 4) == (20 * 2**30, 64)
