"""`import fovea` gives the documented names, and is cheap: no tensor library, no web framework, and quick."""

import subprocess
import sys

HEAVY = (
    "torch", "numpy", "onnxruntime", "transformers", "ray", "fastapi", "starlette", "aiohttp", "redis", "grpc",
    "PIL", "jinja2", "prometheus_client", "structlog", "shared.settings", "shared.telemetry", "shared.registry",
)  # fmt: skip

PROBE = """
import sys, time
begun = time.perf_counter()
import {module}
print(time.perf_counter() - begun)
print(",".join(name for name in {heavy!r} if name in sys.modules))
"""


def probe(module: str) -> tuple[float, str]:
    code = PROBE.format(module=module, heavy=HEAVY)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    seconds, loaded = ran.stdout.splitlines()
    return float(seconds), loaded


def test_importing_the_client_loads_nothing_heavy_and_is_quick():
    attempts = [probe("fovea") for _ in range(3)]
    assert {loaded for _, loaded in attempts} == {""}
    # The best of three, with room for a busy machine; a torch import alone takes longer.
    assert min(seconds for seconds, _ in attempts) < 1.0


def test_importing_the_command_loads_nothing_heavy():
    assert probe("fovea.cli.main")[1] == ""
