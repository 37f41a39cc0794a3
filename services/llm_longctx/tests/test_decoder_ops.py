"""Operations of a layer besides attention: the C++ operations against torch's in float64, at every level built here."""

import copy

import pytest
import torch

from fovea.errors import NotReady
from services.llm_longctx.kernels import layer_ops
from services.llm_longctx.kernels.decoder_ops import PackedPass
from services.llm_longctx.kernels.decoder_ops.cpu_ext import FEW, MANY, NativeOps
from services.llm_longctx.kernels.native import bindings
from services.llm_longctx.kernels.quantized_linear import pack
from services.llm_longctx.tests.conftest import native
from shared.lm.attention import DenseAttention
from shared.lm.blocks import OffsetRMSNorm, RMSNorm
from shared.lm.builders import llama
from shared.lm.ops import TORCH
from shared.lm.quantization import quantize
from shared.lm.rope import rotation

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 4e-2}

pytestmark = native


@pytest.fixture
def ops(native_level):
    with torch.inference_mode():
        yield NativeOps()


def alike(K, widths, dtype):
    """Layers, every other one with biases, and the same in float64."""
    mine = [torch.nn.Linear(K, n, bias=i % 2 == 0).to(dtype) for i, n in enumerate(widths)]
    return mine, [copy.deepcopy(one).double() for one in mine]


def near(found, wanted, dtype, times=1):
    torch.testing.assert_close(found.double(), wanted, atol=TOLERANCE[dtype] * times, rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("K", "rows", "widths"), [
    *((K, rows, (33, 16, 7)) for K in (1, 60, 576) for rows in (1, 5, FEW, FEW + 1)),
    *((96, rows, (64, 64)) for rows in (FEW + 1, 100, MANY, MANY + 1)),  # matrices that tiles take
])  # fmt: skip
def test_products_and_gates_agree_with_torch_and_norms_before_them_are_norms(ops, dtype, K, rows, widths):
    torch.manual_seed(K + rows)
    x = torch.randn(rows, 1, K).to(dtype) if K != 96 else torch.randn(1, rows, K).to(dtype)
    mine, oracle = alike(K, widths, dtype)
    for found, wanted in zip(ops.products(x, mine), TORCH.products(x.double(), oracle), strict=True):
        assert found.dtype == dtype
        near(found, wanted, dtype)
    (gate, up), (gate64, up64) = alike(K, widths[:1] * 2, dtype)
    near(ops.swiglu(x, gate, up), TORCH.swiglu(x.double(), gate64, up64), dtype)
    norm = OffsetRMSNorm(K, 1e-5).to(dtype)
    norm.weight.data.normal_()
    normed = ops.norm(x, norm)
    assert torch.equal(ops.swiglu(x, gate, up, norm), ops.swiglu(normed, gate, up))
    assert all(map(torch.equal, ops.products(x, mine, norm), ops.products(normed, mine)))
    if K == 96 and bindings.has_tiles() and rows <= MANY:
        assert torch.equal(ops.products(x[:, : FEW + 1], mine)[0], ops.products(x, mine)[0][:, : FEW + 1])
    matrix = torch.randn(50, K).to(dtype)
    near(ops.logits(x, matrix), x.double() @ matrix.double().T, dtype, times=3)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_row_does_not_depend_on_its_neighbours(ops, dtype):
    torch.manual_seed(0)
    x, (mine, _) = torch.randn(FEW, 1, 100).to(dtype), alike(100, (40, 23), dtype)
    together = ops.products(x, mine)
    for i in range(FEW):
        for alone, row in zip(ops.products(x[i : i + 1], mine), together, strict=True):
            assert torch.equal(alone[0], row[i])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("width", [1, 60, 576])
@pytest.mark.parametrize("kind", [RMSNorm, OffsetRMSNorm])
def test_norms_agree_with_torch_on_views_too(ops, dtype, width, kind):
    torch.manual_seed(width)
    norm, x = kind(width, 1e-5).to(dtype), torch.randn(300, 4, width).to(dtype).transpose(0, 1)
    norm.weight.data.normal_()
    found = ops.norm(x, norm)
    near(found, norm.double()(x.double()), dtype)


@pytest.mark.parametrize("width", [7, 64])
@pytest.mark.parametrize("rows", [3, FEW + 1, MANY + 1])
def test_a_stream_in_float32_passes_norms_in_bfloat16(ops, width, rows):
    torch.manual_seed(width)
    norm, x = RMSNorm(width, 1e-5).bfloat16(), 3 * torch.randn(1, rows, width)
    mine, _ = alike(width, (64, 33), torch.bfloat16)
    normed = ops.norm(x, norm)
    assert normed.dtype == torch.bfloat16
    torch.testing.assert_close(normed.double(), RMSNorm(width, 1e-5).double()(x.double()), atol=2e-2, rtol=2e-2)
    assert all(map(torch.equal, ops.products(x, mine, norm), ops.products(normed, mine)))
    gate, up = alike(width, (40, 40), torch.bfloat16)[0]
    assert torch.equal(ops.swiglu(x, gate, up, norm), ops.swiglu(normed, gate, up))


class NarrowStream(NativeOps):
    def widen(self, x):
        return x

    def products(self, x, layers, norm=None, *, added=False):
        return super().products(x, layers, norm)


def test_a_bfloat16_decoder_adds_up_in_float32(ops):
    """Many small additions to a large stream: in bfloat16 most of them would be lost."""
    torch.manual_seed(0)
    shape = {"vocab": 64, "width": 64, "layers": 16, "heads": 4, "kv_heads": 2, "hidden": 96, "positions": 64}
    low, exact = (llama(**shape, norm_eps=1e-5, tied=False).eval().to(kind) for kind in (torch.bfloat16, torch.float64))
    low.model.embed_tokens.weight *= 400
    exact.load_state_dict({key: x.double() for key, x in low.state_dict().items()})
    ids = torch.arange(12)[None]  # so few that logits are float32
    wanted = exact(ids)
    wide = (low(ids, ops=ops).double() - wanted).abs().mean()
    assert wide < 0.5 * (low(ids, ops=NarrowStream()).double() - wanted).abs().mean()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("d", [2, 24, 64, 80])
@pytest.mark.parametrize(("T", "batched"), [(5, False), (5, True), (1, False)])
def test_rotations_agree_with_torch(ops, dtype, d, T, batched):
    torch.manual_seed(d)
    x = torch.randn(2, T, 3, d).to(dtype)
    positions = torch.arange(10).view(2, 5) if batched else torch.arange(7, 7 + T)
    turn = rotation(torch.rand(d // 2), positions, dtype)
    wanted, _ = TORCH.rotate(x.double(), x.double(), (turn[0].double(), turn[1].double()))
    turned = ops.rotate(x, x[:, :, :1], turn)
    near(turned[0], wanted, dtype)
    near(turned[1], wanted[:, :, :1], dtype)


def test_gates_far_from_zero_are_exact_and_finite(ops):
    closed = torch.tensor([[[-200.0, -88.0, -1.0, 0.0, 1.0, 88.0, 200.0] * 8]])
    gate, up = torch.nn.Linear(56, 56, bias=False), torch.nn.Linear(56, 56, bias=False)
    for layer in (gate, up):
        layer.weight.data = torch.eye(56)
    wanted = TORCH.swiglu(closed.double(), gate.double(), up.double())
    gate.float(), up.float()
    for rows in (1, FEW + 1):
        found = ops.swiglu(closed.expand(rows, 1, 56), gate, up)
        torch.testing.assert_close(found.double(), wanted.expand(rows, 1, 56), atol=1e-6, rtol=1e-5)


def test_float64_and_plainer_back_ends_compute_with_torch():
    assert layer_ops("auto", torch.float64, "cpu") is TORCH
    assert layer_ops("cpu_torch", torch.float32, "cpu") is TORCH
    with pytest.raises(NotReady, match="float64"):
        layer_ops("cpu_ext", torch.float64, "cpu")


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("style", [{}, {"qk_norm": True}, {"qkv_bias": True, "tied": False}])
@pytest.mark.parametrize("keep", [None, 0, 3])
def test_a_pass_with_few_bit_matrices_is_the_decoders_own_loop_bit_for_bit(ops, dtype, style, keep):
    torch.manual_seed(7)
    shape = {"vocab": 50, "width": 72, "layers": 3, "heads": 6, "kv_heads": 2, "hidden": 100, "positions": 64}
    model = llama(**shape, norm_eps=1e-5, **style).eval().to(dtype)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            parameter.normal_(0.5, 0.3)
    linears = [part for block in model.blocks for part in block.modules() if isinstance(part, torch.nn.Linear)]
    packed = {part: pack(quantize(part.weight.float().numpy(), 4 + 4 * (i % 2))) for i, part in enumerate(linears)}
    few = NativeOps(packed, pack(quantize(model.output_matrix.float().numpy(), 8)))
    tiled = dtype == torch.bfloat16 and bindings.has_tiles()  # the loop multiplies many rows with whole matrices there
    for begin, T in ((0, 1), (9, FEW)) if tiled else ((0, 1), (0, 17), (9, 37)):
        ids = torch.randint(0, 50, (T,)).tolist()
        wanted = model(torch.tensor([ids]), attend=DenseAttention(), offset=begin, keep=keep, ops=few)
        assert torch.equal(PackedPass(model, packed).run(ids, DenseAttention(), begin, keep, few), wanted)
    if not bindings.has_tiles():
        assert PackedPass.is_possible(model, packed)
        assert not PackedPass.is_possible(model, dict(list(packed.items())[1:]))
