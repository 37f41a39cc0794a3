"""The benchmark of eviction while decoding, at a small size: what it compares, and that its curves add up."""

import pytest

from loadtests.bench.suites.longctx_decoding import POINT, Curves, follow, list_methods, summarize, thin
from services.llm_longctx.engine import Engine
from services.llm_longctx.tests.conftest import tiny_decoder

IDS = [(7 * i + i * i) % 61 for i in range(120)]


@pytest.fixture(scope="module")
def engine():
    return Engine(tiny_decoder(), page=4)


@pytest.mark.parametrize(
    ("name", "forcing"), [("dense", "free"), *((name, "teacher") for name in list_methods(24, 8)), ("knorm", "free")]
)
def test_bytes_stay_while_dense_grows_and_the_distance_is_that_of_the_same_tokens(engine, name, forcing):
    knobs = list_methods(24, 8).get(name, {})
    found = follow(engine, {"method": name, **knobs}, IDS, 40, 72, forcing)
    assert [len(x) for x in vars(found).values()] == [72] * 5
    assert all(x > 0 for x in found.ms)
    if name == "dense":
        assert max(found.kl) < 1e-9
        assert all(found.agreed)
        assert found.kv_bytes == found.dense_bytes
    else:
        assert max(found.kl) > 1e-4
        assert max(found.kv_bytes[16:]) < 0.6 * found.dense_bytes[-1]
    kl, nbytes, ms = summarize(name, found)
    assert (kl.median, kl.ratio) == (pytest.approx(sum(found.kl) / 72), sum(found.agreed) / 72)
    assert kl.low <= kl.median <= kl.high
    assert nbytes.ratio == found.kv_bytes[-1] / found.dense_bytes[-1]
    assert min(found.ms[-18:]) <= ms.median <= max(found.ms[-18:])
    longer = Curves(**{key: [*curve] * 4 for key, curve in vars(found).items()})  # 288 tokens
    assert [len(curve) for curve in thin(longer).values()] == [2] * 5
    assert thin(longer)["kl"][1] == pytest.approx(sum(longer.kl[POINT:]) / (288 - POINT), rel=1e-3, abs=1e-12)
