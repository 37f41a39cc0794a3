"""Triton engine: any Open Inference v2 server (NVIDIA Triton, KServe, another Fovea), through `tritonclient`.

Tensors travel as binary data over HTTP, or over gRPC when the URL starts with `grpc://`; large inputs go through shared
memory where the server is on this host and can open it. The inputs and outputs come from the server's own metadata.
"""

import importlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeVar

import numpy as np
from tritonclient.utils import InferenceServerException
from tritonclient.utils.shared_memory import SharedMemoryException

from fovea.api.tensors import TensorSpec
from fovea.errors import (
    Cancelled,
    Conflict,
    DeadlineExceeded,
    Fault,
    FoveaError,
    Malformed,
    NotFound,
    NotReady,
    PermissionDenied,
    RateLimited,
    Unauthenticated,
    by_status,
)
from shared.engines.triton_connections import ConnectionPool, InputRegion, TritonConnection, is_this_host
from shared.rpc.tensors import datatype_of

T = TypeVar("T")

MIN_SHARED_BYTES = 2**16
"""Inputs of less are sent over the network, which costs them next to nothing."""

_GRPC: Mapping[str, type[FoveaError]] = {
    "INVALID_ARGUMENT": Malformed, "UNAUTHENTICATED": Unauthenticated, "PERMISSION_DENIED": PermissionDenied,
    "NOT_FOUND": NotFound, "FAILED_PRECONDITION": Conflict, "RESOURCE_EXHAUSTED": RateLimited,
    "CANCELLED": Cancelled, "UNAVAILABLE": NotReady, "DEADLINE_EXCEEDED": DeadlineExceeded,
}  # fmt: skip


class TritonEngine:
    """Runs a model on a server; any number of threads may call `run`, and up to `connections` calls are under way.

    Args:
        url: `host:port` or `http://host:port` for HTTP, `grpc://host:port` for gRPC.
        model: The server's name of the model.
        version: Its version; empty leaves the choice to the server.
        timeout: Seconds after which a call is given up.
        connections: Calls at once; more wait.
        shared_memory: Whether tensors go through shared memory; None tries it where the server is on loopback.
        declared: Tensors as the model's own graph has them. Where it has one number per item, Triton's configuration
            has an axis of one more, which is added to what is sent, and taken off what comes back.

    Raises:
        NotReady: The server can't be reached, or the model isn't ready there.
        NotFound: It has no such model.
    """

    name = "triton"
    reason = ""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        version: str = "",
        timeout: float = 60.0,
        connections: int = 8,
        shared_memory: bool | None = None,
        declared: Iterable[TensorSpec] = (),
    ) -> None:
        scheme, _, self._address = url.rpartition("://")
        self._grpc = scheme == "grpc"
        self._model, self._version, self._timeout = model, version, timeout
        self._library: Any = importlib.import_module(f"tritonclient.{'grpc' if self._grpc else 'http'}")
        self._connection_errors = _find_connection_errors(self._grpc)
        has_memory = is_this_host(self._address) if shared_memory is None else shared_memory
        self._pool = ConnectionPool(self._connect, connections, is_shared=self._grpc, has_memory=has_memory)
        try:
            facts = self._ask(self._metadata)
        except BaseException:
            self.close()
            raise
        numbers = {spec.name: spec for spec in declared if len(spec.shape) == 1}
        stated = [_spec(fact) for fact in (*facts["inputs"], *facts["outputs"])]
        self._columns = {spec.name for spec in stated if spec.name in numbers and spec.shape[1:] == (1,)}
        found = [numbers[spec.name] if spec.name in self._columns else spec for spec in stated]
        self.inputs, self.outputs = tuple(found[: len(facts["inputs"])]), tuple(found[len(facts["inputs"]) :])

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute all outputs on the server.

        Raises FoveaError: the server's error, by its status; NotReady when it is gone, DeadlineExceeded when slow.
        """
        arrays = [np.ascontiguousarray(feeds[spec.name]) for spec in self.inputs]
        outputs = [self._library.InferRequestedOutput(spec.name) for spec in self.outputs]
        answer = self._ask(lambda connection: self._infer(connection, arrays, outputs))
        found = {spec.name: _array(spec, answer.as_numpy(spec.name)) for spec in self.outputs}
        return {name: array[:, 0] if name in self._columns else array for name, array in found.items()}

    def close(self) -> None:
        """Close the connections, once the running calls are over."""
        self._pool.close()

    def _connect(self) -> Any:
        more = {} if self._grpc else dict.fromkeys(("connection_timeout", "network_timeout"), self._timeout)
        return self._library.InferenceServerClient(self._address, **more)

    def _metadata(self, connection: TritonConnection) -> Mapping[str, Any]:
        more = {"as_json": True, "client_timeout": self._timeout} if self._grpc else {}
        found: Mapping[str, Any] = connection.client.get_model_metadata(self._model, self._version, **more)
        return found

    def _infer(self, connection: TritonConnection, arrays: list[np.ndarray], outputs: list[Any]) -> Any:
        more = {"client_timeout": self._timeout} if self._grpc else {}
        send = partial(connection.client.infer, self._model, model_version=self._version, outputs=outputs, **more)
        try:
            return send(self._fill_inputs(connection, arrays))
        except InferenceServerException as error:
            if connection.region is None or "shared memory" not in str(error).lower():
                raise
            connection.region.close()  # the server restarted and does not know it: the next write registers another
            return send(self._fill_inputs(connection, arrays))

    def _fill_inputs(self, connection: TritonConnection, arrays: list[np.ndarray]) -> list[Any]:
        """The inputs of a call: in shared memory where they are large and the server can see it."""
        inputs = [
            self._library.InferInput(spec.name, [*array.shape, *[1] * (spec.name in self._columns)], spec.datatype)
            for spec, array in zip(self.inputs, arrays, strict=True)
        ]
        offsets = self._share(connection, arrays)
        for place, (tensor, array) in enumerate(zip(inputs, arrays, strict=True)):
            if offsets is None or connection.region is None:
                tensor.set_data_from_numpy(array.reshape(tensor.shape()))
            else:
                tensor.set_shared_memory(connection.region.name, array.nbytes, offsets[place])
        return inputs

    def _share(self, connection: TritonConnection, arrays: list[np.ndarray]) -> list[int] | None:
        """Offsets of the arrays in the connection's region; None where they travel over the network."""
        size = sum(array.nbytes for array in arrays)
        if not self._pool.has_memory or size < MIN_SHARED_BYTES or any(array.dtype.hasobject for array in arrays):
            return None
        if connection.region is None:
            connection.region = InputRegion(connection.client)
        try:
            return connection.region.write(arrays)
        except (InferenceServerException, SharedMemoryException, OSError) as error:
            self._pool.refuse_memory(str(error))
            return None

    def _ask(self, call: Callable[[TritonConnection], T]) -> T:
        """Make a call through a free connection, and turn what goes wrong into our errors."""
        try:
            with self._pool.connection() as connection:
                return connection.call(lambda: self._call_twice(lambda: call(connection)))
        except InferenceServerException as error:
            raise _to_fovea_error(error) from error
        except TimeoutError as error:
            raise DeadlineExceeded(f"The server at {self._address} took over {self._timeout:g} s.") from error
        except self._connection_errors as error:
            raise NotReady(
                f"The server at {self._address} can't be reached.", hint="Check FOVEA_TRITON_URL and the server."
            ) from error
        except Exception as error:
            raise Fault(f"The server at {self._address} gave an answer that can't be read.") from error

    def _call_twice(self, call: Callable[[], T]) -> T:
        """Call again when the connection was lost: servers close idle ones, and inference may be done twice."""
        try:
            return call()
        except TimeoutError:
            raise
        except self._connection_errors:
            return call()


def _find_connection_errors(grpc: bool) -> tuple[type[Exception], ...]:
    """Exceptions that mean a lost connection."""
    if grpc:
        return (OSError,)
    return (OSError, importlib.import_module("geventhttpclient.response").HTTPConnectionClosed)


def _to_fovea_error(error: InferenceServerException) -> FoveaError:
    """The FoveaError for an HTTP status or a gRPC code, with the server's text unless it is a 5xx."""
    status, text = str(error.status() or ""), str(error.message() or "no reason given").strip()
    word = status.removeprefix("StatusCode.")
    kind = by_status(int(word)) if word.isdigit() else _GRPC.get(word, Fault)
    return kind("The inference server failed." if kind is Fault else f"The inference server says: {text}")


def _spec(fact: Mapping[str, Any]) -> TensorSpec:
    """One tensor of the server's metadata; JSON made from protobuf writes its axes as text."""
    return TensorSpec(name=fact["name"], datatype=fact["datatype"], shape=tuple(int(n) for n in fact.get("shape", ())))


def _array(spec: TensorSpec, array: np.ndarray | None) -> np.ndarray:
    if array is None:
        raise Fault(f"The inference server did not answer the output {spec.name!r}.")
    if datatype_of(spec.name, array) != spec.datatype:
        raise Fault(f"The inference server answered {spec.name!r} as {array.dtype}, not {spec.datatype}.")
    return array
