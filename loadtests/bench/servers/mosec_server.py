"""mosec with raw bytes in and out."""

import sys

import numpy as np
from mosec import Server, Worker

from loadtests.bench.model import INPUT, SHAPE, session


class Tiny(Worker):
    """The small model as a mosec worker."""

    def __init__(self) -> None:
        """Load the model in the worker process."""
        super().__init__()
        self.session = session()

    def deserialize(self, data: bytes) -> np.ndarray:
        """Float32 bytes in."""
        return np.frombuffer(data, np.float32).reshape(-1, *SHAPE)

    def serialize(self, data: np.ndarray) -> bytes:
        """Float32 bytes out."""
        return data.tobytes()

    def forward(self, data: np.ndarray) -> np.ndarray:
        """Run the model."""
        return np.asarray(self.session.run(None, {INPUT: data})[0])


if __name__ == "__main__":
    port = sys.argv[1]
    sys.argv = [sys.argv[0], "--address", "127.0.0.1", "--port", port, "--log-level", "warning"]
    server = Server()
    server.append_worker(Tiny, num=1)
    server.run()
