"""Inputs that once broke a decoder, and the seeds, end well or with an error of ours."""

import pytest

from tests.fuzz.__main__ import FOUND
from tests.fuzz.harnesses import HARNESSES


# Starlette leaves the file of a part that breaks off to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", HARNESSES)
def test_seeds_and_found_inputs_end_well(name):
    harness = HARNESSES[name]
    for data in (*harness.seeds, b"", *[file.read_bytes() for file in sorted(FOUND.glob(f"{name}-*"))]):
        harness.check(data)
        harness.check(data[: len(data) // 2])
