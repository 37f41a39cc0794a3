"""The peers of the bench `longctx_peers`: how each is started, and the settings of which the best is taken."""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from loadtests.bench.peers.environment import PeerMissing
from loadtests.bench.peers.process import EngineProcess

Clock = Literal["wall", "cpu"]
STEPS = 33
PROBE, TRIES = 1024, 3  # of a setting: tokens of the prompt, and runs, of which the fastest counts


@dataclass(frozen=True)
class Peer:
    """One engine: how it is started.

    Attributes:
        name: As in the table.
        script: Below `peers/engines`.
        options: Further settings that its `load` reads, next to `gguf`, `folder` and `kept`.
        environment: Of its requirements; None is this one.
        build: Variables of its build from source, if there is one.
        settings: Options by the name of a setting, of which the best is taken.
    """

    name: str
    script: str
    options: Mapping[str, str] = field(default_factory=dict)
    environment: str | None = None
    build: Mapping[str, str] | None = None
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"": {}})


_FLASH = {f"flash attention {way}": {"flash": way == "on"} for way in ("off", "on")}
_HINTS = {
    "default hints": {},
    "hint LATENCY": {"properties": {"PERFORMANCE_HINT": "LATENCY"}},
    "hint THROUGHPUT": {"properties": {"PERFORMANCE_HINT": "THROUGHPUT"}},
    "float32": {"properties": {"INFERENCE_PRECISION_HINT": "f32"}},
    "activations quantized by 64": {"properties": {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "64"}},
    "cache in bf16": {"properties": {"KV_CACHE_PRECISION": "bf16"}},
}
_EAGER = {way: {"eager": way == "eager"} for way in ("eager", "compiled")}
_ATTENTION = {way: {"attention": way} for way in ("sdpa", "eager")}
OURS = "ours, q4"
PEERS = (
    Peer(OURS, "run_fovea", {"weights": "q4"}),
    Peer("ours, bf16", "run_fovea", {"weights": "bf16"}),
    Peer("llama.cpp, Q4_1", "run_llamacpp", {}, "llamacpp", {"CMAKE_ARGS": "-DGGML_NATIVE=ON"}, _FLASH),
    Peer("OpenVINO, int4", "run_openvino", {"weights": "int4"}, "openvino", settings=_HINTS),
    Peer("OpenVINO, 16 bits", "run_openvino", {"weights": "fp16"}, "openvino", settings=_HINTS),
    Peer("vLLM, bf16", "run_vllm", {}, "vllm", settings=_EAGER),
    Peer("transformers, bf16", "run_transformers", settings=_ATTENTION),
)


def choose_setting(
    peer: Peer, begin: Callable[[Mapping[str, Any]], EngineProcess], probe: Sequence[int], clock: Clock
) -> EngineProcess:
    """The engine in its best setting; the others are ended.

    The best has the least product of seconds to the first token and per further token: a sum would follow the prompt
    alone, which llama.cpp reads sooner with flash attention and continues sooner without.

    Raises:
        PeerMissing: It runs in none of its settings; the text is of the last.
    """
    if len(peer.settings) == 1:
        return begin(next(iter(peer.settings.values())))
    at, best, least, missing = ("wall", "cpu").index(clock), None, math.inf, PeerMissing("it has no setting")
    for name, options in peer.settings.items():
        engine = None
        try:
            engine = begin(options)
            runs = [engine.generate([[*probe[i:], *probe[:i]]], STEPS) for i in range(TRIES)]
        except PeerMissing as reason:
            missing = reason
            print(f"{peer.name}, {name}: left out, {reason}.", file=sys.stderr)
            if engine is not None:
                engine.close()
            continue
        first, token = min(run.first(at) for run in runs), min(run.per_token(at) for run in runs)
        print(f"{peer.name}, {name}: {first:.2f} s, then {1000 * token:.1f} ms", file=sys.stderr, flush=True)
        loser, engine.build = engine, f"{engine.build}, {name}"
        if first * token < least:
            best, least, loser = engine, first * token, best
        if loser is not None:
            loser.close()
    if best is None:
        raise missing
    return best
