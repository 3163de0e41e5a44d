"""Drawing: guidance is its formula, pictures are functions of their seeds, and samplers are diffusers'."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from mllm.errors import UserError
from mllm.generation.conditions import Conditions
from mllm.generation.opening import load_generator
from mllm.generation.pictures import draw_pictures
from mllm.generation.sampler import Sampling, guided, sample, start_noise
from mllm.generation.schedule import Schedule


@pytest.fixture(scope="module")
def generator(saved):
    return load_generator(saved)


def inputs(generator, count=2):
    conditions = generator.conditions(["a red square", "a blue square"][:count], range(count))
    start, generators = start_noise(range(count), generator.codec.shape)
    return start, conditions, generator.null(), generators


@torch.no_grad()
@pytest.mark.parametrize("guidance", [0, 0.4, 1, 3])
def test_guidance_is_its_formula_for_every_weight_in_one_pass(generator, guidance):
    start, conditions, null, _ = inputs(generator)
    calls = []

    def denoise(noised, timesteps, given):
        calls.append(len(noised))
        return generator.denoiser(noised, timesteps, given)

    levels = torch.tensor([500, 500])
    said = guided(denoise, start, levels, conditions, null, guidance)
    nothing, conditional = (generator.denoiser(start, levels, c) for c in (null.repeated(2), conditions))
    assert torch.allclose(said, nothing + guidance * (conditional - nothing), atol=1e-5)
    assert calls == [2 if guidance in (0, 1) else 4]
    if guidance in (0, 1):
        assert torch.equal(said, conditional if guidance else nothing)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("method", "theirs"), [("ddim", DDIMScheduler), ("ddpm", DDPMScheduler)])
def test_a_drawn_picture_is_that_of_a_plain_loop_over_diffusers(generator, prediction, method, theirs):
    schedule = Schedule(prediction_type=prediction)
    start, conditions, null, generators = inputs(generator)
    how = Sampling(steps=4, method=method, guidance=2.0, eta=0.5 if method == "ddim" else 0.0)
    own = sample(generator.denoiser, schedule, start, conditions, null, how, generators)

    scheduler = theirs(**schedule.config(method))
    scheduler.set_timesteps(4)
    latents, (_, again) = start, start_noise(range(2), generator.codec.shape)
    states = torch.cat([null.text.expand_as(conditions.text), conditions.text])
    for timestep in scheduler.timesteps:
        with torch.no_grad():
            both = generator.denoiser.net(torch.cat([latents] * 2), timestep, encoder_hidden_states=states).sample
        nothing, conditional = both.chunk(2)
        further = {"eta": 0.5} if method == "ddim" else {}
        said = nothing + 2.0 * (conditional - nothing)
        latents = scheduler.step(said, timestep, latents, generator=again, **further).prev_sample
    assert torch.allclose(own, latents, atol=1e-5)


@pytest.mark.parametrize("method", ["ddim", "ddpm", "dpm"])
def test_all_samplers_bear_a_level_of_noise_alone(generator, method):
    assert generator.schedule.rescale_betas_zero_snr
    start, conditions, null, generators = inputs(generator)
    how = Sampling(steps=2, method=method, guidance=2.0)
    assert sample(generator.denoiser, generator.schedule, start, conditions, null, how, generators).isfinite().all()


def test_a_picture_is_a_function_of_its_prompt_and_seed_alone(generator):
    how = Sampling(steps=2, method="ddpm")
    together = draw_pictures(generator, ["a red square", "a blue square", "a square"], [3, 4, 3], how, batch_size=2)
    alone = draw_pictures(generator, ["a square"], [3], how)
    assert together[0].size == (16, 16) and together[2].tobytes() == alone[0].tobytes()
    assert together[0].tobytes() != together[1].tobytes()


def test_a_prompt_that_is_too_long_is_cut_and_counted(generator, caplog):
    words = "a red square and a blue square and a green square"
    generator.conditions([words, "a square"], [0, 1])
    assert "1 of 2 captions are longer than 8 tokens and lose their end" in caplog.text


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"guidance": float("nan")}, "guidance nan: a number from 0 on"),
        ({"guidance": -1.0}, "guidance -1.0"),
        ({"steps": 0}, "steps 0: pictures are drawn in 1 to 1000 steps"),
        ({"steps": 1001}, "in 1 to 1000 steps"),
        ({"method": "euler"}, "unknown sampler 'euler'; there are ddim, ddpm, dpm"),
        ({"rescale": 2.0}, "rescale 2.0: a number from 0 to 1"),
        ({"eta": float("nan")}, "eta nan"),
    ],
)
def test_what_cannot_be_drawn_with_is_a_line(changes, told):
    with pytest.raises(UserError, match=told):
        Sampling(**changes).checked(1000)


def test_rescaled_guidance_has_the_conditional_contrast_and_bears_a_flat_prediction():
    start, levels = torch.zeros(1, 1, 2, 2), torch.tensor([1])
    flat, steep = (Conditions(text=torch.full((1, 1, 1), scale)) for scale in (0.0, 1.0))
    pattern = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])

    def denoise(noised, timesteps, given):
        return given.text.reshape(-1, 1, 1, 1) * pattern

    said = guided(denoise, start, levels, steep, flat, 4.0, rescale=1.0)
    assert torch.allclose(said.std(), pattern.std()) and torch.allclose(
        guided(denoise, start, levels, steep, flat, 4.0, rescale=0.5).std(), pattern.std() * 2.5
    )
    assert torch.equal(guided(denoise, start, levels, flat, flat, 4.0, rescale=1.0), torch.zeros(1, 1, 2, 2))
