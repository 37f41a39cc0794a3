"""Open Inference v2 without a transport: inference calls and answers.

`oip_json` and `oip_proto` turn bytes and messages into `InferCall` and back, for the REST and gRPC fronts.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import numpy as np

from fovea.errors import Fault, Malformed

Parameter = bool | int | float | str
"""Value of a request, tensor or answer parameter."""

T = TypeVar("T")

_MAX_TIMEOUT_US: Final = 2**53  # JSON integers may be longer than a float holds


@dataclass(frozen=True, slots=True)
class InferCall:
    """One inference request, decoded.

    Attributes:
        model: Name of the model.
        version: Requested version; empty means the served one.
        id: The caller's name for the request, returned with the answer.
        feeds: Input name → array.
        requested: Output name → as bytes or not (None: as `binary` says), in the caller's order; empty means all.
        binary: Whether outputs travel as bytes unless `requested` says otherwise.
        parameters: Request parameters, for example `timeout` in microseconds.
    """

    model: str
    feeds: Mapping[str, np.ndarray]
    version: str = ""
    id: str = ""
    requested: Mapping[str, bool | None] = field(default_factory=dict)
    binary: bool = False
    parameters: Mapping[str, Parameter] = field(default_factory=dict)

    @property
    def timeout_s(self) -> float | None:
        """The caller's timeout in seconds, where it states one."""
        timeout = self.parameters.get("timeout")
        return min(timeout, _MAX_TIMEOUT_US) / 1e6 if type(timeout) is int and timeout > 0 else None

    def as_bytes(self, output: str) -> bool:
        """Whether an output travels as bytes."""
        choice = self.requested.get(output)
        return self.binary if choice is None else choice


@dataclass(frozen=True, slots=True)
class InferAnswer:
    """An inference answer: output name → array, in the caller's order."""

    model: str
    version: str
    outputs: Mapping[str, np.ndarray]
    id: str = ""


def check_outputs(call: InferCall, offered: Collection[str]) -> None:
    """Check that a model has the outputs that a call names; the host checks the inputs; `Malformed` if it lacks one."""
    for name in call.requested:
        if name not in offered:
            detail = f"Model {call.model!r} has no output {name!r}."
            raise Malformed(detail, field=name, hint=f"Its outputs are {_list(offered)}.")


def build_answer(call: InferCall, results: Mapping[str, np.ndarray], version: str) -> InferAnswer:
    """Build the answer: the requested outputs in the call's order, or all of them; `Fault` if the model lacks one."""
    names = call.requested or results
    if missing := [name for name in names if name not in results]:
        raise Fault(f"Model {call.model!r} did not produce {_list(missing)}.")
    return InferAnswer(call.model, version, {name: results[name] for name in names}, call.id)


def to_mapping(kind: str, pairs: Iterable[tuple[str, T]]) -> dict[str, T]:
    """Build a mapping of named things of a kind (`input`, `output`); `Malformed` for an empty or repeated name."""
    found: dict[str, T] = {}
    for name, thing in pairs:
        if not name or name in found:
            detail = f"The {kind} {name!r} comes twice." if name else f"An {kind} has no name."
            raise Malformed(detail, field=name or None)
        found[name] = thing
    return found


def refuse_unoffered(name: str, parameters: Mapping[str, Any]) -> None:
    """Refuse what is not offered as `Malformed`: shared memory, classification, sequences; `name` is a tensor's."""
    if "shared_memory_region" in parameters:
        detail = f"Tensor {name!r} is in shared memory, which is not offered."
        raise Malformed(detail, field=name, hint="Send the bytes with the request.")
    if parameters.get("classification"):
        detail = f"Output {name!r} is requested as classification, which is not offered."
        hint = "Ask for the tensor, or use the model's own route, which gives labels."
        raise Malformed(detail, field=name, hint=hint)
    if parameters.get("sequence_id"):
        raise Malformed("Sequences are not offered: requests are independent.", field="sequence_id")


def _list(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"
