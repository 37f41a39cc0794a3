"""One large picture through the restoring service's model, in a process of its own: `… WIDTH HEIGHT [TILES]`.

Prints JSON: peak memory above what the loaded model takes, tiles done, tiles in all, and seconds for those done. With
TILES the run is cancelled after so many, as a caller would; without, the whole picture is restored and packed.
"""

import contextlib
import io
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from fovea.api.restore import RestoreIn
from fovea.errors import Cancelled, FoveaError
from services.vision_restoration.models.rrformer import RRFormerRestorer
from shared.registry import CallContext, LoadContext


def main() -> None:
    """Measure once."""
    width, height, *limit = map(int, sys.argv[1:])
    picture = _photograph(width, height)
    with tempfile.TemporaryDirectory() as folder:
        place = LoadContext(cache=Path(folder), weights=Path(folder) / "none", threads=1)
        restorer = RRFormerRestorer.load(place)
        base = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", "ascii")  # the peak starts anew: loading had one of its own
        print(json.dumps({**_run(restorer, picture, *limit), "peak_mib": round((_status("VmHWM") - base) / 1024)}))
        restorer.close()


class _Tiles(CallContext):
    """A run that counts its tiles, and is cancelled after so many."""

    def __init__(self, limit: int | None) -> None:
        super().__init__()
        self.limit, self.done, self.ended = limit, 0, 0.0

    def progress(self, fraction: float, note: str | None = None) -> None:
        self.done, self.ended = self.done + 1, time.perf_counter()
        if self.done == self.limit:
            self.cancel()


def _run(restorer: RRFormerRestorer, picture: bytes, limit: int | None = None) -> dict[str, float]:
    request, run = RestoreIn(image=picture, resolution="full"), _Tiles(limit)
    (planned,) = restorer.predict([request.model_copy(update={"dry_run": True})], CallContext())
    if isinstance(planned, FoveaError):
        raise planned
    begun = time.perf_counter()
    with contextlib.suppress(Cancelled):
        restorer.predict([request], run)
    cost = planned.estimate
    return {"done": run.done, "tiles": cost.tiles, "seconds": run.ended - begun, "estimated_mib": cost.memory_mib}


def _photograph(width: int, height: int) -> bytes:
    """A JPEG of coarse noise: what is in a picture changes neither time nor memory."""
    coarse = np.random.default_rng(1).integers(0, 256, (-(-height // 16), -(-width // 16), 3)).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    return out.getvalue()


def _status(name: str) -> int:
    """A line of /proc/self/status, KiB."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main()
