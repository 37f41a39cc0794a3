"""Open Inference v2 without a wire: what a call asks for, and what is answered.

`oip_json` and `oip_proto` turn bytes and messages into `InferCall` and back; the REST and gRPC fronts, the gateway's
tests and the `triton` engine all meet here. Knows nothing about servers, engines or batching.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import numpy as np

from shared.errors import Fault, Malformed

__all__ = ["InferAnswer", "InferCall", "Parameter", "answer", "check_outputs", "refuse_unoffered", "unique"]

Parameter = bool | int | float | str
"""Value of a request, tensor or answer parameter."""

T = TypeVar("T")

_LONGEST_US: Final = 2**53  # JSON integers may be longer than a float holds


@dataclass(frozen=True, slots=True)
class InferCall:
    """One inference request, decoded.

    Attributes:
        model: Name of the model.
        version: Wanted version; empty means the served one.
        id: The caller's name for the request, handed back.
        feeds: Input name → array.
        wanted: Output name → whether as bytes (None: as `binary` says), in the caller's order; empty means all outputs.
        binary: Whether outputs travel as bytes unless `wanted` says otherwise.
        parameters: Request parameters, for example `timeout` in microseconds.
    """

    model: str
    feeds: Mapping[str, np.ndarray]
    version: str = ""
    id: str = ""
    wanted: Mapping[str, bool | None] = field(default_factory=dict)
    binary: bool = False
    parameters: Mapping[str, Parameter] = field(default_factory=dict)

    @property
    def timeout_s(self) -> float | None:
        """How long the caller waits, in seconds, where it says so."""
        timeout = self.parameters.get("timeout")
        return min(timeout, _LONGEST_US) / 1e6 if type(timeout) is int and timeout > 0 else None

    def as_bytes(self, output: str) -> bool:
        """Whether an output travels as bytes."""
        choice = self.wanted.get(output)
        return self.binary if choice is None else choice


@dataclass(frozen=True, slots=True)
class InferAnswer:
    """What is answered: output name → array, in the caller's order."""

    model: str
    version: str
    outputs: Mapping[str, np.ndarray]
    id: str = ""
    parameters: Mapping[str, Parameter] = field(default_factory=dict)


def check_outputs(call: InferCall, offered: Collection[str]) -> None:
    """See that a model offers the outputs that a call names; whether its inputs fit is the host's to say.

    Raises:
        Malformed: It has no such output.
    """
    for name in call.wanted:
        if name not in offered:
            detail = f"Model {call.model!r} has no output {name!r}."
            raise Malformed(detail, field=name, hint=f"Its outputs are {_list(offered)}.")


def answer(call: InferCall, results: Mapping[str, np.ndarray], version: str) -> InferAnswer:
    """The outputs that the call wants, in its order; all of them when it names none.

    Raises:
        Fault: The model did not produce an output that it declares.
    """
    names = call.wanted or results
    if missing := [name for name in names if name not in results]:
        detail = f"Model {call.model!r} did not produce {_list(missing)}."
        raise Fault(detail)
    return InferAnswer(call.model, version, {name: results[name] for name in names}, call.id)


def unique(kind: str, pairs: Iterable[tuple[str, T]]) -> dict[str, T]:
    """A mapping of named things; `kind` (`input`, `output`) is for the error.

    Raises:
        Malformed: A name is empty or comes twice.
    """
    found: dict[str, T] = {}
    for name, thing in pairs:
        if not name or name in found:
            detail = f"The {kind} {name!r} comes twice." if name else f"An {kind} has no name."
            raise Malformed(detail, field=name or None)
        found[name] = thing
    return found


def refuse_unoffered(name: str, parameters: Mapping[str, Any]) -> None:
    """Refuse extensions that change what a request means and are not offered here; `name` is the tensor's, if any.

    Raises:
        Malformed: Shared memory, classification or sequences are asked for.
    """
    if "shared_memory_region" in parameters:
        detail = f"Tensor {name!r} is said to lie in shared memory, which is not offered."
        raise Malformed(detail, field=name, hint="Send the bytes with the request.")
    if parameters.get("classification"):
        detail = f"Output {name!r} is asked for as classification, which is not offered."
        raise Malformed(
            detail, field=name, hint="Ask for the tensor, or use the model's own route, which gives labels."
        )
    if parameters.get("sequence_id"):
        detail = "Sequences are not offered: every request stands for itself."
        raise Malformed(detail, field="sequence_id")


def _list(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"
