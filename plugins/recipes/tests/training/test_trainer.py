"""The trainer and its checkpoints."""

import math

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from fovea.errors import Cancelled, Conflict, InvalidOption
from fovea_recipes.training import checkpoint
from fovea_recipes.training.checkpoint import read_checkpoint, write_checkpoint
from fovea_recipes.training.recipe import MultiScale, Recipe, Schedule
from fovea_recipes.training.trainer import FitProgress, fit
from shared.registry import CallContext
from tests.device.pretend_cuda import PretendCuda


def weights(fitted):
    return {name: tensor.clone() for name, tensor in fitted.network.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_a_fit_learns_what_its_recipe_asks_for_tells_a_job_and_is_repeated_by_its_seed(line, tmp_path):
    told: list[float] = []
    fitted = fit(line(), tmp_path, run=CallContext(report=lambda fraction, _note: told.append(fraction)))
    assert (told, fitted.progress.step) == (pytest.approx([(step + 1) / 60 for step in range(60)]), 60)
    assert line().measure(fitted.network)["error"] < 0.3
    assert not fitted.network.training
    assert_same(weights(fitted), weights(fit(line(), tmp_path, on_step=lambda *_: pytest.fail("no step was left"))))
    one, two, three = (fit(line(seed=seed), tmp_path / str(i)) for i, seed in enumerate((1, 1, 2)))
    assert_same(weights(one), weights(two))
    assert not torch.equal(weights(one)["layer.weight"], weights(three)["layer.weight"])
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    fit(line(), tmp_path / "anew")
    assert torch.equal(torch.rand(1), expected)


def test_an_interrupted_fit_and_one_on_a_gpu_end_where_an_uninterrupted_one_does(line, tmp_path):
    whole = fit(line(), tmp_path / "whole")
    run = CallContext()

    def stop(_recipe: Recipe, progress: FitProgress) -> None:
        if progress.step == 33:
            run.cancel()

    with pytest.raises(Cancelled):
        fit(line(), tmp_path / "parts", run=run, on_step=stop)
    seen: list[int] = []
    resumed = fit(line(), tmp_path / "parts", on_step=lambda _recipe, progress: seen.append(progress.step))
    assert seen[0] == 21  # the last checkpoint was after step 20
    assert_same(weights(whole), weights(resumed))
    assert resumed.progress.scores == whole.progress.scores
    with PretendCuda().active():
        fitted = fit(line(), tmp_path / "gpu", device="cuda")
    assert_same(weights(whole), weights(fitted))
    assert fitted.progress.scores == whole.progress.scores


@pytest.mark.parametrize("knobs", [{"seed": 9}, {"shift": 2.0}, {"width": 2}])
def test_a_checkpoint_of_other_knobs_or_data_is_not_continued(line, tmp_path, knobs):
    fit(line(), tmp_path)
    with pytest.raises(Conflict, match="another recipe"):
        fit(line(**knobs), tmp_path)


def test_averaged_weights_with_the_best_score_are_kept_and_patience_ends_a_fit(line, tmp_path, monkeypatch):
    monkeypatch.setattr(line, "score", lambda _, network: -float(network.norm.num_batches_tracked))
    fitted = fit(line(), tmp_path)
    assert fitted.progress.best_step == 20
    last, _ = read_checkpoint(tmp_path / "last.safetensors")
    assert not torch.equal(last["average/layer.weight"], weights(fitted)["layer.weight"])
    monkeypatch.setattr(line, "score", lambda _recipe, _network: 0.0)
    schedule = Schedule(steps=60, batch=4, rate=0.1, validate_every=5, patience=3)
    assert fit(line(schedule=schedule), tmp_path / "flat").progress.step == 20
    smooth = Schedule(steps=40, batch=2, rate=0.5, floor=0.5, ema=0.9, validate_every=40)
    fit(line(schedule=smooth), tmp_path / "smooth")
    last, _ = read_checkpoint(tmp_path / "smooth" / "last.safetensors")
    assert not torch.equal(last["live/layer.weight"], last["average/layer.weight"])
    assert last["average/norm.num_batches_tracked"] == 40


def test_gradients_are_clipped_by_their_common_norm_or_clamped_element_by_element(line, tmp_path):
    """With plain gradient descent a step is the gradient times the rate."""

    class Plain(line):
        def optimizer(self, network):
            return torch.optim.SGD(network.parameters(), lr=0.1)

    def moved(**bound: float) -> torch.Tensor:
        recipe = Plain(schedule=Schedule(steps=1, batch=16, rate=0.1, floor=0.1, validate_every=1, **bound))
        with torch.random.fork_rng():
            torch.manual_seed(recipe.seed)
            before = recipe.network().parameters()
        after = fit(recipe, tmp_path / "_".join(["run", *bound])).network.parameters()
        return torch.cat([(a - b).detach().flatten() for a, b in zip(after, before, strict=True)])

    free = moved()
    torch.testing.assert_close(moved(clip=0.5), free * (0.05 / free.norm()))
    half = float(free.abs().median())
    assert free.norm() > 0.05
    assert free.abs().max() > 1.01 * half
    torch.testing.assert_close(moved(clamp=half / 0.1), free.clamp(-half, half))


def test_a_loss_that_is_not_finite_stops_the_fit_and_a_score_that_is_no_number_does_not(line, tmp_path, monkeypatch):
    with pytest.raises(InvalidOption, match="nan at step 7"):
        fit(line(poison=7), tmp_path)
    monkeypatch.setattr(line, "score", lambda _recipe, _network: math.nan)
    fitted = fit(line(), tmp_path / "unscored")
    assert fitted.progress.best_step == 20
    assert weights(fitted)


def test_the_rate_follows_half_a_cosine_and_scales_are_multiples_of_32():
    schedule = Schedule(steps=100, batch=1, rate=1.0, floor=0.1, warm_up=10)
    rates = [schedule.rate_at(step) for step in range(100)]
    assert (rates[0], max(rates)) == (pytest.approx(0.1), pytest.approx(rates[9], abs=0.02))
    assert (rates[50], rates[10:]) == (pytest.approx(0.55), sorted(rates[10:], reverse=True))
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)
    assert list(MultiScale(side=352, mode="each").sides(np.random.default_rng(0))) == [256, 352, 448]
    drawn = MultiScale(side=160)
    rng = np.random.default_rng(0)
    assert ({side for _ in range(40) for side in drawn.sides(rng)}, len(drawn.sides(rng))) == ({128, 160, 192}, 1)
    x = torch.arange(4.0).view(1, 1, 2, 2)
    assert MultiScale.resize(x, 2) is x
    bigger = MultiScale.resize(x, 3)
    assert (bigger[0, 0, 0].tolist(), bigger[0, 0, -1, -1]) == ([0, 0.5, 1], 3)


TENSORS = {"a/weight": torch.arange(6.0).view(2, 3), "a/count": torch.tensor(3), "b/weight": torch.zeros(0)}


def test_a_checkpoint_comes_back_whole_is_no_pickle_and_outlives_a_crash_while_the_next_is_made(tmp_path, monkeypatch):
    state = {"step": 7, "best": 0.25, "scores": [[1, 0.5]], "knobs": {"name": "ü"}}
    write_checkpoint(tmp_path / "new" / "last.safetensors", TENSORS, state)
    tensors, found = read_checkpoint(tmp_path / "new" / "last.safetensors")
    assert found == state
    assert_same(tensors, TENSORS)
    assert {name: x.dtype for name, x in tensors.items()} == {name: x.dtype for name, x in TENSORS.items()}
    x = torch.arange(24.0).view(1, 2, 3, 4).to(memory_format=torch.channels_last)
    write_checkpoint(tmp_path / "a.safetensors", {"x": x}, {})
    assert torch.equal(read_checkpoint(tmp_path / "a.safetensors")[0]["x"], x)
    path = tmp_path / "last.safetensors"
    write_checkpoint(path, TENSORS, {"step": 1})
    assert path.read_bytes()[8:9] == b"{"  # the header of safetensors, after its length
    (tmp_path / "pickle.safetensors").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(SafetensorError):
        read_checkpoint(tmp_path / "pickle.safetensors")

    def crash(tensors, draft, metadata):
        draft.write_bytes(b"half a file")
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "save_file", crash)
    with pytest.raises(OSError, match="disk full"):
        write_checkpoint(path, TENSORS, {"step": 2})
    assert read_checkpoint(path)[1] == {"step": 1}
