"""Data, losses and scores of restoration."""

import numpy as np
import pytest
import torch

from fovea_recipes.vision_restoration import losses, synthesis
from fovea_recipes.vision_restoration.evaluation import gain_by_darkening, restore_pairs, score_pairs, tensor
from fovea_recipes.vision_restoration.identity_init import start_at_identity
from fovea_recipes.vision_restoration.pairs import ReflectionPairs
from plugins.recipes.tests.golden_files import read
from shared.registry import network


def flat(value: float, side: int = 24) -> np.ndarray:
    return np.full((side, side, 3), value, np.float32)


def noise(seed: int, side: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).random((side, side, 3)).astype(np.float32)


def test_formulas_add_hide_dim_and_blur():
    mixture, scene_alone = synthesis.blend_by_sum(flat(0.3), flat(0.4))
    assert np.allclose(mixture, 0.7)
    assert np.array_equal(scene_alone, flat(0.3))
    assert np.allclose(synthesis.blend_by_screen(flat(1), noise(1))[0], 1)
    assert np.allclose(synthesis.blend_by_screen(flat(0), noise(1))[0], noise(1))
    # Without a reflection only the scene's own dimming is left: (a T^2.2)^(1/2.2) with a in 0.8..1.
    mixture, clean = synthesis.blend_defocused(flat(0.5), flat(0), np.random.default_rng(1))
    assert 0.8 ** (1 / 2.2) * 0.5 - 1e-6 <= mixture.mean() <= 0.5 + 1e-6
    assert np.array_equal(clean, flat(0.5))
    drawn = [synthesis.blend_varied(noise(1), noise(2), np.random.default_rng(seed)) for seed in range(40)]
    dims = np.array([float((clean / noise(1)).mean()) for _, clean in drawn])
    assert dims.min() >= 0.8
    assert dims.max() <= 1
    assert dims.std() > 0.02
    added = [mixture - clean for mixture, clean in drawn]
    assert all(layer.min() >= -1e-6 for layer in added)
    assert all(layer.std() < 0.5 * noise(2).std() for layer in added)
    point = np.zeros((21, 21, 3), np.float32)
    point[10, 10] = 1
    spread = synthesis.blur(point, 3, 4)
    assert spread.sum() == pytest.approx(3, rel=1e-5)
    assert (spread[10, :, 0] > 0).tolist() == [6 <= place < 15 for place in range(21)]


def test_losses_equal_the_published_ones_and_send_gradients_to_the_prediction_only(fill, picture):
    expected, p, t = read("rrformer_losses.json"), picture(2, 64, 80, "pred"), picture(2, 64, 80, "target")
    tower = fill(network("vgg19-features"), "vgg:")
    critic = fill(network("rrformer-discriminator"), "netD:")
    with torch.no_grad():
        found = {
            "pixel": losses.pixel_loss(p, t).item(), "vgg": losses.perceptual_loss(tower, p, t).item(),
            "netD_pred": critic(p).tolist(), "netD_target": critic(t).tolist(),
        }  # fmt: skip
        g, d = losses.adversarial_losses(critic(p), critic(t))
    for name, value in {**found, "rasgan_G": g.item(), "rasgan_D": d.item()}.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)
    tower = network("vgg19-features", widths=(2, 2, 2, 2, 2))
    p, t = picture(1, 32, 32, "pred").requires_grad_(), picture(1, 32, 32, "target").requires_grad_()
    losses.perceptual_loss(tower, p, t).backward()
    assert p.grad.abs().sum() > 0
    assert t.grad is None


def test_a_network_can_begin_at_the_identity(picture):
    torch.manual_seed(0)
    net = network("rrformer", "paper", levels=(4, 4, 4, 4, 4), features=16, body=16, groups=1, blocks=2, heads=2)
    tower, x = network("vgg19-features", widths=(4, 4, 4, 4, 4)), picture(1, 64, 64)
    with torch.no_grad():
        start_at_identity(net)
        assert (net.eval()(x, tower(x)) - x).abs().mean() < 0.05
        for parameter in net.parameters():  # without the quiet rest, nothing but the picture is left
            parameter[parameter != 1] = torch.where(parameter[parameter != 1] > 0.75, 1.0, 0.0)
        torch.testing.assert_close(net(x, tower(x)), x, rtol=0, atol=1e-6)


def pairs(plain: tuple[bool, ...] = (False, True)) -> ReflectionPairs:
    clean = np.random.default_rng(2).integers(0, 200, (len(plain), 32, 32, 3)).astype(np.uint8)
    mixed = np.where(np.array(plain)[:, None, None, None], clean, clean + 30).astype(np.uint8)
    return ReflectionPairs(mixed, clean, np.array(plain))


def test_scores_of_the_right_answer_are_perfect_answers_clipped_and_darker_pictures_scored_beside():
    held = pairs()
    scores = score_pairs(held.clean, held)
    assert (scores["psnr"], scores["psnr_clean"], scores["ssim"]) == (60, 60, pytest.approx(1))
    assert scores["psnr_identity"] == pytest.approx(20 * np.log10(255 / 30))
    assert (scores["pairs"], scores["clean_pairs"]) == (2, 1)

    class Shifted(torch.nn.Linear):
        def forward(self, x):
            return x * 1.5 - 0.2

    wanted = ((tensor(held.mixed) * 1.5 - 0.2).clamp(0, 1) * 255).numpy().astype(np.uint8).transpose(0, 2, 3, 1)
    assert np.array_equal(restore_pairs(Shifted(1, 1), held.mixed, batch=1), wanted)
    clean = np.repeat(np.uint8([0, 96]), 32).reshape(1, 8, 8, 1).repeat(3, axis=-1)
    dark = ReflectionPairs(np.maximum(clean, 4) + np.uint8(clean > 4) * np.uint8(4), clean, np.array([False]))
    assert gain_by_darkening(dark, 4) == pytest.approx(60 - 20 * np.log10(255 / 4))  # equal pictures count as 60 dB
    assert gain_by_darkening(dark, 0) == 0
    assert gain_by_darkening(dark, 8) == pytest.approx(20 * np.log10(2**0.5), abs=1e-3)  # half the picture is 4 off
