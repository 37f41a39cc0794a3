"""Asks a fresh process how much memory a piece of work takes."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
{setup}
from fovea.errors import BadInput
from shared.vision.decode import decode
samples = [p for p in refused() if p.name.startswith({prefix!r})]
decode(next(p.data for p in odd() if p.name == "png"))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for sample in samples:
    try:
        decode(sample.data)
    except BadInput:
        continue
    sys.exit("was read: " + sample.name)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.fixture
def resident_growth():
    """Peak resident growth in MiB while the refused pictures of a prefix are decoded in a process of their own."""

    def measure(setup: str, prefix: str) -> float:
        script = SCRIPT.format(setup=setup + ", odd", prefix=prefix)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return float(done.stdout)

    return measure
