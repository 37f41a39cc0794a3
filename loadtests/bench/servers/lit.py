"""LitServe with JSON bodies, its native form."""

import sys
from typing import Any

import litserve
import numpy as np

from loadtests.bench.model import INPUT, SHAPE, session


class Tiny(litserve.LitAPI):
    """The small model as a LitAPI."""

    def setup(self, device: str) -> None:
        """Load the model in the worker."""
        self.session = session()

    def decode_request(self, request: dict[str, Any], **_: Any) -> np.ndarray:
        """JSON lists in."""
        return np.asarray(request["image"], np.float32).reshape(-1, *SHAPE)

    def predict(self, x: np.ndarray, **_: Any) -> np.ndarray:
        return np.asarray(self.session.run(None, {INPUT: x})[0])

    def encode_response(self, output: np.ndarray, **_: Any) -> dict[str, Any]:
        """JSON lists out."""
        return {"scores": output.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(Tiny(api_path="/infer"), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False)
