"""The C++ kernels: every level of instructions agrees, old builds are not loaded, absence is no failure."""

import pytest
import torch

from fovea.errors import Fault
from services.llm_longctx.kernels import BlockCsr
from services.llm_longctx.kernels.block_sparse_prefill import cpu_ext as prefill_ext
from services.llm_longctx.kernels.native import bindings, isa_targets
from services.llm_longctx.kernels.native import build as building
from services.llm_longctx.tests.conftest import BUILT, torch_threads

if not BUILT:
    pytest.skip("no C++ kernels are built here", allow_module_level=True)

compiled = pytest.mark.skipif(building.shutil.which("g++") is None, reason="no compiler")


def test_threads_share_the_work_without_changing_the_result(native_level):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 300, 64), *torch.randn(2, 1, 300, 64)
    blocks = BlockCsr.dense(3, 300, 32)
    alone = prefill_ext.prefill(q, k, v, blocks)[0]
    with torch_threads(4):
        assert torch.equal(prefill_ext.prefill(q, k, v, blocks)[0], alone)


def test_libraries_fit_the_processor_best_first():
    names = [target.name for target in isa_targets.TARGETS]
    assert [
        t.name for t in isa_targets.runnable_targets(frozenset().union(*(t.needs for t in isa_targets.TARGETS)))
    ] == names
    assert isa_targets.runnable_targets([]) == [t for t in isa_targets.TARGETS if not t.needs]


@pytest.fixture
def unloaded():
    bindings.load_library.cache_clear()
    yield
    bindings.load_library.cache_clear()


@pytest.fixture
def place(monkeypatch, tmp_path):
    for module in (isa_targets, building):
        monkeypatch.setattr(module, "PLACE", tmp_path)
    return tmp_path


def test_an_unbuilt_library_is_told_and_not_an_error(monkeypatch, place, unloaded):
    assert (bindings.explain_absence(), bindings.describe()[0]) == ("it is not built", "note")
    assert "fovea build-kernels" in bindings.describe()[1]
    monkeypatch.undo()
    bindings.load_library.cache_clear()
    assert bindings.describe()[0] == "good"


def test_without_a_compiler_nothing_happens_and_what_is_built_is_kept(monkeypatch, capsys):
    monkeypatch.setattr(building.shutil, "which", lambda _name: None)
    building.build_kernels(force=True)
    assert "No C++ compiler" in capsys.readouterr().out
    assert building.build("no-such-compiler", BUILT[0]) == isa_targets.library_file(BUILT[0])


@compiled
def test_a_failing_compiler_is_quoted(monkeypatch, place):
    monkeypatch.setattr(building, "sources", lambda: [place / "gone.cpp"])
    with pytest.raises(Fault, match="can't build") as caught:
        building.build(building.shutil.which("g++"), BUILT[0])
    assert "gone.cpp" in caught.value.hint
    assert not list(place.iterdir())


@compiled
def test_a_level_that_the_compiler_does_not_know_is_left_out(monkeypatch, place, capsys):
    unknown = isa_targets.Target("later", ("-mno-such-instruction",), frozenset())
    (place / "one.cpp").write_text('extern "C" int fovea_ready() { return 1; }\n')
    monkeypatch.setattr(building, "sources", lambda: [place / "one.cpp"])
    monkeypatch.setattr(building, "TARGETS", (unknown, BUILT[-1]))
    building.build_kernels(force=True)
    told = capsys.readouterr().out
    assert "later: left out" in told
    assert isa_targets.library_file(BUILT[-1]).exists()
    monkeypatch.setattr(building, "TARGETS", (unknown,))
    with pytest.raises(Fault, match="can't build"):
        building.build_kernels(force=True)


def test_a_library_that_the_system_refuses_makes_way_for_the_next(monkeypatch, unloaded):
    real = bindings.open_library
    first, *_ = BUILT

    def opened(file):
        if file == isa_targets.library_file(first):
            message = "no tiles for this process"
            raise OSError(message)
        return real(file)

    monkeypatch.setattr(bindings, "open_library", opened)
    found, told = bindings.load_library()
    assert told == (BUILT[1].name if len(BUILT) > 1 else "it can't be loaded: no tiles for this process")
    assert (found is None) == (len(BUILT) == 1)
