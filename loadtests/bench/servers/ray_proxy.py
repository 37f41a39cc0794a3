"""Ray Serve as it comes: a FastAPI ingress behind Ray's own HTTP proxy."""

import signal
import sys

import numpy as np
import ray
from fastapi import FastAPI, Request, Response
from ray import serve

app = FastAPI()


@serve.deployment(num_replicas=1, max_ongoing_requests=64, ray_actor_options={"num_cpus": 0.1})
@serve.ingress(app)
class Tiny:
    """The small model as a Ray Serve deployment."""

    def __init__(self) -> None:
        """Load the model in the replica."""
        from loadtests.bench.model import session  # noqa: PLC0415 - sessions do not travel to the replica

        self.session = session()

    @app.post("/infer")
    async def infer(self, request: Request) -> Response:
        """Float32 bytes in, float32 bytes out."""
        tensor = np.frombuffer(await request.body(), np.float32).reshape(-1, 3, 64, 64)
        [scores] = self.session.run(None, {"image": tensor})
        return Response(scores.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Tiny.bind(), route_prefix="/", blocking=False)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
