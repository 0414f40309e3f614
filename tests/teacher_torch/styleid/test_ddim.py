import pytest
import torch
from diffusers import DDIMScheduler

from teacher_torch.styleid.ddim import DDIMSchedule, adain


def scheduler(**changes):
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **changes
    )


def test_paper_schedule_visits_1_to_981_and_skips_its_first_sampling_step():
    noise = scheduler()
    schedule = DDIMSchedule.from_scheduler(noise, 50, "paper")
    alphas = noise.alphas_cumprod
    assert schedule.timesteps == tuple(range(1, 1000, 20))
    assert schedule.timesteps[schedule.sampling_start] == 961
    # The inversion ends at level 999, and sampling ends at level 0.
    assert schedule.inversion_levels[0] == alphas[1]
    assert schedule.inversion_levels[-2:] == (alphas[981], alphas[999])
    assert schedule.sampling_levels[:2] == (alphas[0], alphas[1])
    assert not schedule.decodes_x0


def test_port_schedule_inverts_from_one_step_below():
    noise = scheduler()
    schedule = DDIMSchedule.from_scheduler(noise, 20, "port")
    alphas = noise.alphas_cumprod
    assert schedule.timesteps == tuple(range(1, 1000, 50))
    assert schedule.timesteps[schedule.sampling_start] == 951
    assert schedule.inversion_levels == schedule.sampling_levels
    assert schedule.inversion_levels[:2] == (alphas[0], alphas[1])
    assert schedule.decodes_x0


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_step_moves_a_known_picture_between_noise_levels(prediction_type):
    """With the true noise as output, x0 is exact and the next latents have the next level."""
    noise = scheduler(prediction_type=prediction_type)
    schedule = DDIMSchedule.from_scheduler(noise, 10, "port")
    generator = torch.Generator().manual_seed(0)
    x0, epsilon = torch.randn(2, 1, 4, 8, 8, generator=generator, dtype=torch.float64)
    level, next_level = 0.6, 0.2
    latents = level**0.5 * x0 + (1 - level) ** 0.5 * epsilon
    output = epsilon
    if prediction_type == "v_prediction":
        output = level**0.5 * epsilon - (1 - level) ** 0.5 * x0
    moved, predicted = schedule.step(latents, output, level, next_level)
    torch.testing.assert_close(predicted, x0)
    torch.testing.assert_close(moved, next_level**0.5 * x0 + (1 - next_level) ** 0.5 * epsilon)


def test_unknown_prediction_type_is_refused():
    with pytest.raises(ValueError, match='predicts "sample"; expected epsilon or v_prediction'):
        DDIMSchedule.from_scheduler(scheduler(prediction_type="sample"), 10, "paper")


def test_adain_takes_each_samples_channel_statistics():
    generator = torch.Generator().manual_seed(0)
    content = torch.randn(3, 4, 8, 8, generator=generator) * 5 + 2
    style = torch.randn(3, 4, 6, 10, generator=generator) * 0.3 - 1
    moved = adain(content, style)
    torch.testing.assert_close(moved.mean((2, 3)), style.mean((2, 3)))
    torch.testing.assert_close(moved.std((2, 3)), style.std((2, 3)))
    # No sample influences another.
    torch.testing.assert_close(adain(content[1:2], style[1:2]), moved[1:2])
    torch.testing.assert_close(adain(content, content), content)
