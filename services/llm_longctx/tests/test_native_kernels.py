"""The C++ kernels: every level of instructions agrees, old builds are not loaded, absence is no failure."""

import pytest
import torch

from fovea.errors import Fault
from services.llm_longctx.kernels import BlockCsr
from services.llm_longctx.kernels.block_sparse_prefill import cpu_ext as prefill_ext
from services.llm_longctx.kernels.decode import cpu_ext as decode_ext
from services.llm_longctx.kernels.native import bindings, isa_targets
from services.llm_longctx.kernels.native import build as building
from services.llm_longctx.tests.test_kernels import agree, in_tensors, prefill, prefill_problem

PROCESSOR = bindings._processor()
BUILT = [target for target in isa_targets.runnable_targets(PROCESSOR) if isa_targets.library_file(target).exists()]
DTYPES = [torch.float32, torch.bfloat16]

if not BUILT:
    pytest.skip("no C++ kernels are built here", allow_module_level=True)


@pytest.fixture(params=BUILT, ids=lambda target: target.name)
def level(request, monkeypatch):
    found = (bindings.open_library(isa_targets.library_file(request.param)), request.param.name)
    monkeypatch.setattr(bindings, "load_library", lambda: found)
    return request.param


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("d", "block", "key_block", "group"), [(64, 32, 32, 3), (24, 20, 7, 2), (1, 5, 5, 1), (130, 64, 16, 2)]
)
def test_every_level_prefills_like_the_oracle(level, dtype, d, block, key_block, group):
    torch.manual_seed(1)
    case = prefill_problem(dtype, (2 * group, 2), 90, 170, d, block, key_block, 2 * group)
    agree(case[0], prefill_ext.prefill(*case), prefill(case, "reference"), lse_within=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("d", "group"), [(64, 3), (24, 5), (1, 1), (130, 8)])
def test_every_level_decodes_like_the_oracle_from_strided_views(level, dtype, d, group):
    torch.manual_seed(1)
    lengths = [0, 1, 15, 129, 2500]
    q = torch.randn(len(lengths), group, d).to(dtype)
    stores = [torch.randn(n, 2, d).to(dtype) for n in lengths]
    keys, values = [s[:, 0] for s in stores], [s[:, 1] for s in stores]
    weights = [None, torch.full((1,), -torch.inf), torch.randn(15), None, torch.randn(2500)]
    found = decode_ext.decode(q, keys, values, weights)
    agree(q, found, in_tensors(q, keys, values, weights, "reference"), lse_within=1e-5)


def test_large_scores_do_not_overflow(level):
    q = torch.full((1, 2, 64), 40.0)
    keys = torch.full((3, 64), 40.0)
    keys[1] = -40.0
    values = torch.tensor([1.0, 2.0, 3.0])[:, None].expand(3, 64).contiguous()
    out, lse = decode_ext.decode(q, [keys], [values], [None])
    assert torch.allclose(out, torch.full((1, 2, 64), 2.0))
    assert torch.allclose(lse, torch.full((1, 2), 12800 + torch.log(torch.tensor(2.0)).item()))


def test_threads_share_the_work_without_changing_the_result(level):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 300, 64), *torch.randn(2, 1, 300, 64)
    blocks = BlockCsr.dense(3, 300, 32)
    alone = prefill_ext.prefill(q, k, v, blocks)[0]
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        assert torch.equal(prefill_ext.prefill(q, k, v, blocks)[0], alone)
    finally:
        torch.set_num_threads(before)


def test_libraries_fit_the_processor_best_first():
    names = [target.name for target in isa_targets.TARGETS]
    assert [
        t.name for t in isa_targets.runnable_targets(frozenset().union(*(t.needs for t in isa_targets.TARGETS)))
    ] == names
    assert isa_targets.runnable_targets([]) == [t for t in isa_targets.TARGETS if not t.needs]


@pytest.fixture
def place(monkeypatch, tmp_path):
    for module in (isa_targets, building):
        monkeypatch.setattr(module, "PLACE", tmp_path)
    return tmp_path


def test_an_unbuilt_library_is_told_and_not_an_error(monkeypatch, place):
    bindings.load_library.cache_clear()
    try:
        assert (bindings.explain_absence(), bindings.describe()[0]) == ("it is not built", "note")
        assert "fovea build-kernels" in bindings.describe()[1]
    finally:
        bindings.load_library.cache_clear()
    monkeypatch.undo()
    assert bindings.describe()[0] == "good"


def test_without_a_compiler_nothing_happens(monkeypatch, capsys):
    monkeypatch.setattr(building.shutil, "which", lambda _name: None)
    building.build_kernels(force=True)
    assert "No C++ compiler" in capsys.readouterr().out


def test_what_is_built_is_kept():
    assert building.build("no-such-compiler", BUILT[0]) == isa_targets.library_file(BUILT[0])


def test_a_failing_compiler_is_quoted(monkeypatch, place):
    monkeypatch.setattr(building, "sources", lambda: [place / "gone.cpp"])
    compiler = building.shutil.which("g++")
    if compiler is None:
        pytest.skip("no compiler")
    with pytest.raises(Fault, match="can't build") as caught:
        building.build(compiler, BUILT[0])
    assert "gone.cpp" in caught.value.hint
    assert not list(place.iterdir())


def test_a_level_that_the_compiler_does_not_know_is_left_out(monkeypatch, place, capsys):
    unknown = isa_targets.Target("later", ("-mno-such-instruction",), frozenset())
    if building.shutil.which("g++") is None:
        pytest.skip("no compiler")
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


def test_a_library_that_the_system_refuses_makes_way_for_the_next(monkeypatch):
    real = bindings.open_library
    first, *_ = BUILT

    def opened(file):
        if file == isa_targets.library_file(first):
            message = "no tiles for this process"
            raise OSError(message)
        return real(file)

    monkeypatch.setattr(bindings, "open_library", opened)
    bindings.load_library.cache_clear()
    try:
        found, told = bindings.load_library()
        assert told == (BUILT[1].name if len(BUILT) > 1 else "it can't be loaded: no tiles for this process")
        assert (found is None) == (len(BUILT) == 1)
    finally:
        bindings.load_library.cache_clear()
