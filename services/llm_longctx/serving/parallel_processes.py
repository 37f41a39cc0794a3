"""Processes that hold one decoder together on one node: the replica's own leads, the others are started here.

Each has a device of its own: the replica's first, and those that follow it. Knows files, processes and engines; knows
nothing about requests.
"""

import json
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch

from fovea.errors import InvalidOption, NotReady
from services.llm_longctx.engine import Engine
from services.llm_longctx.engine.device.parallel_backend import FollowingBackend
from services.llm_longctx.engine.device.process_team import join_team, leave_team
from services.llm_longctx.serving.weight_format import ModelWeights, load_weights
from shared.lm.tensor_parallel import Team, take_shard
from shared.registry import LoadContext

OPTION = "llm_tensor_parallel"

_SIZES = (1, 2, 4, 8)
_END_S = 20.0


class ParallelProcesses:
    """The processes next to this one; this one leads.

    Attributes:
        team, channel: Of this process.
    """

    def __init__(self, source: Path, place: LoadContext, size: int, engine: dict[str, Any]) -> None:
        """Start them, and wait until all have joined.

        Args:
            source: The decoder's files.
            place: How this process loads it.
            size: How many processes hold it.
            engine: Further arguments of the engine, as JSON has them: the same in all.
        """
        self._folder = tempfile.TemporaryDirectory(prefix="fovea-team-")
        address = (Path(self._folder.name) / "meeting").as_uri()
        kind, _, first = place.device.partition(":")
        self._started: list[subprocess.Popen[bytes]] = []
        wanted = place.options.get("llm_weights", "auto")
        for rank in range(1, size):
            device = f"{kind}:{int(first or 0) + rank}" if kind == "cuda" else kind
            facts = {
                "source": str(source.resolve()), "cache": str(place.cache.resolve()), "device": device, "rank": rank,
                "size": size, "address": address, "format": wanted, "threads": place.threads, "engine": engine,
            }  # fmt: skip
            command = [sys.executable, "-m", __name__, json.dumps(facts)]
            self._started.append(subprocess.Popen(command))  # noqa: S603  # our own interpreter and module
        self.team, self.channel = join_team(0, size, address, place.device)

    def stop(self) -> None:
        """Let them end, and wait for it."""
        with suppress(RuntimeError):  # they are gone already
            self.channel.send(("stop",))
        leave_team()
        for process in self._started:
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._folder.cleanup()


def read_size(place: LoadContext) -> int:
    """How many processes hold the decoder.

    Raises InvalidOption: it is none of the sizes there are; NotReady: there are fewer GPUs.
    """
    asked = place.options.get(OPTION, "1")
    if asked not in {str(size) for size in _SIZES}:
        raise InvalidOption(f"A decoder is held by 1, 2, 4 or 8 processes, not by {asked}.", field=OPTION)
    size = int(asked)
    if place.device.startswith("cuda") and size > 1 and torch.cuda.device_count() < size:
        detail = f"{size} processes need {size} GPUs, and this replica has {torch.cuda.device_count()}."
        raise NotReady(detail, hint="Raise `gpus` of the service in the chart, or lower FOVEA_LLM_TENSOR_PARALLEL.")
    return size


def load_shard(source: Path, cache: Path, wanted: str, device: str, team: Team) -> ModelWeights:
    """Load one process's part of a decoder to its device; the whole is read on the host.

    Raises InvalidOption: It can't be divided.
    """
    whole = load_weights(source, cache, wanted)
    if whole.packed:
        detail = f"Weights of few bits ({whole.format}) are not divided among processes."
        raise InvalidOption(detail, hint="Set FOVEA_LLM_WEIGHTS=bf16.", field="llm_weights")
    shard = take_shard(whole.model, team).to(device)
    return ModelWeights(shard, whole.folder, whole.sha256, whole.format, {})


def _follow(facts: dict[str, Any]) -> None:
    """Join the team and do what its leader says."""
    if facts["device"].startswith("cuda"):
        torch.cuda.set_device(facts["device"])
    team, channel = join_team(facts["rank"], facts["size"], facts["address"], facts["device"])
    if facts["threads"]:
        torch.set_num_threads(facts["threads"])
    weights = load_shard(Path(facts["source"]), Path(facts["cache"]), facts["format"], facts["device"], team)
    kv_bytes, max_batch = channel.receive()
    more = facts["engine"] | {"kv_bytes": kv_bytes, "max_batch": max_batch}
    engine = Engine(weights.model, weights_sha256=weights.sha256, team=team, channel=channel, **more)
    with torch.inference_mode():
        cast("FollowingBackend", engine.scheduler.backend).follow(channel)
    leave_team()


if __name__ == "__main__":
    _follow(json.loads(sys.argv[1]))
