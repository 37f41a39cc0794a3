"""Every attention method keeps the contract, which has teeth: it refuses each method that is broken on purpose."""

from itertools import product

import pytest

from fovea import plugins
from services.llm_longctx.methods import methods
from services.llm_longctx.methods.core import registry
from services.llm_longctx.tests.broken_methods import BROKEN
from services.llm_longctx.tests.method_contract import CHECKS
from tests.harness.hypothesis_profiles import in_depth

STOOD_FOR = ("adakv", "criticalkv", "expected_attention", "flexprefill", "keydiff", "knorm", "kvzap", "lagkv",
             "pyramidkv", "razor", "tova", "triattention")  # fmt: skip
"""Methods whose knobs and surroundings are checked before a release: others of their kind stand for them."""

SURROUNDINGS = [f"check_{name}" for name in ("chunks", "fit", "knobs", "neighbours", "preemption", "prefixes")]
CASES = list(product(methods(), CHECKS))


@pytest.mark.parametrize(("name", "check"), in_depth(CASES, {*CASES} - {*product(STOOD_FOR, SURROUNDINGS)}))
def test_every_method_keeps_the_contract(name, check):
    CHECKS[check](methods()[name])


@pytest.mark.parametrize("says", BROKEN)
def test_a_broken_method_is_refused(says):
    check, cls = BROKEN[says]
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        CHECKS[f"check_{check}"](cls)


def test_a_method_of_a_plug_in_replaces_none_of_ours(tmp_path, monkeypatch):
    text = "from services.llm_longctx.methods.dense import DenseMethod\nclass Twin(DenseMethod):\n    name = 'dense'\n"
    (tmp_path / "twin_method.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plugins, "BROKEN", {})
    monkeypatch.setattr(registry, "plugin_rooms", lambda _service: ["twin_method"])
    assert registry.methods.__wrapped__()["dense"] is methods()["dense"]
    assert "has an attention method 'dense', too" in plugins.BROKEN["twin_method"]
