"""The Triton kernels compiled without a card, in their own process, and a table of these sources."""

import os
import subprocess
import sys

import pytest

from loadtests.gpu.ahead_of_time.machine_code import count
from loadtests.gpu.ahead_of_time.results import OPERATIONS, digest_sources, read_results
from services.llm_longctx.kernels.device.cards import CARDS, card_of
from services.llm_longctx.kernels.fp8_linear import LEAST_CAPABILITY

pytest.importorskip("triton", reason="triton is not installed: its wheels are for Linux")


@pytest.mark.release
@pytest.mark.timeout(3600)
def test_all_kernels_keep_their_budgets_and_are_those_on_record(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-m", "loadtests.gpu.ahead_of_time"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"{len(read_results()['rows'])} kernels compiled" in run.stdout


def test_the_table_is_of_these_sources_and_whole():
    recorded = read_results()
    hint = "the kernels changed: run `python -m loadtests.gpu.ahead_of_time --write`, then tests.drift"
    assert recorded["sources"] == {operation: digest_sources(operation) for operation in OPERATIONS}, hint
    cells = {tuple(name.split("/")) for name in recorded["rows"]}
    assert {operation for operation, _, _ in cells} == set(OPERATIONS)
    for operation in OPERATIONS:
        cards = [card for card in CARDS if operation != "fp8_linear" or card.capability >= LEAST_CAPABILITY]
        of = {cell for cell in cells if cell[0] == operation}
        assert len(of) == len(cards) * len({cell[1] for cell in of})
    assert all(used["stack"] == used["spills"] == 0 for used in recorded["rows"].values())


ASSEMBLY = """
.L_x_0:
 IMAD R1, R2, R3, R4 ;
 BRA `(.L_x_0) ;
.L_x_1:
 LDG.E.128 R4, desc[UR4][R2.64] ;
 @!P0 LDGSTS.E.BYPASS.128 [R5], desc[UR4][R6.64] ;
 LDG.E R8, desc[UR4][R2.64] ;
 LDG.E.U16 R9, desc[UR4][R2.64] ;
 HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8] ;
 HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
 STL [R1], R4 ;
 @P0 BRA `(.L_x_1) ;
 LDGDEPBAR ;
"""


def test_instructions_are_counted():
    usage = count(ASSEMBLY, 168, 16, 4096)
    assert (usage.loads, usage.copies, usage.spills) == (4, 1, 1)
    assert usage.vectorized == pytest.approx(256 / (256 + 32 + 16))
    assert (usage.matrix, usage.loop) == ({"mma.sync": 1, "wgmma": 1}, 8)


KNOWN = {75: "A100", 80: "A100", 86: "L4", 89: "L4", 90: "H100", 103: "B200", 120: "L4"}


def test_an_unknown_card_is_shaped_for_as_the_next_older_one():
    assert {capability: card_of(capability).name for capability in KNOWN} == KNOWN
