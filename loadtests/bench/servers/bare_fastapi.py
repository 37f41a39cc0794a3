"""FastAPI with a raw body: the least a Python web framework can do."""

import sys

import numpy as np
import uvicorn
from fastapi import FastAPI, Request, Response

from loadtests.bench.model import INPUT, SHAPE, session

app = FastAPI()


@app.post("/infer")
async def infer(request: Request) -> Response:
    """Float32 bytes in, float32 bytes out, computed on the event loop."""
    tensor = np.frombuffer(await request.body(), np.float32).reshape(-1, *SHAPE)
    [scores] = session().run(None, {INPUT: tensor})
    return Response(scores.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    session()
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)
