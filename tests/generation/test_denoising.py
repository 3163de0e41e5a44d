"""Training text-conditioned diffusion: resumes bit for bit, is rank-invariant, and learns what its settings say."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from safetensors.torch import load_file

from mllm.errors import UserError
from mllm.generation.conditions import Conditions
from mllm.generation.data import EpochOrder, read_captioned
from mllm.generation.denoiser import build_denoiser
from mllm.generation.kinds import train_generator
from mllm.generation.noise import draws
from mllm.generation.schedule import Schedule, build_schedule, split, target
from mllm.generation.settings import DenoiserSettings, GenerationDataSettings, ScheduleSettings
from mllm.generation.task import NoisedBatch, denoising_loss
from mllm.training.averages import Averages
from tests.helpers.generation import settings_of
from tests.helpers.runs import metrics, series

PREDICTIONS = ("epsilon", "sample", "v_prediction")


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_as_if_it_never_was_its_averages_included(run, pairs, clip, tmp_path):
    settings = settings_of(pairs, clip, tmp_path / "parts")
    assert train_generator(settings, stop_after=2) is None
    assert train_generator(settings) == tmp_path / "parts" / "final"
    assert series(tmp_path / "parts") == series(run)
    assert [step.get("heldout_loss") for step in metrics(tmp_path / "parts")] == [
        step.get("heldout_loss") for step in metrics(run)
    ]
    for file in ("final/unet/diffusion_pytorch_model.safetensors",):
        whole, parts = load_file(run / file), load_file(tmp_path / "parts" / file)
        assert all(torch.equal(parts[name], tensor) for name, tensor in whole.items())
    last, averaged = (
        torch.load(run / "checkpoints/step_00000004/state" / name, weights_only=True)
        for name in ("engine.pt", "callbacks_rank0.pt")
    )
    name = "net.conv_in.weight"
    assert torch.equal(averaged["Averages"][name], whole["conv_in.weight"])
    assert not torch.equal(last["weights"][name], whole["conv_in.weight"])


def test_averages_have_a_decay_that_grows_to_its_cap_and_can_be_put_on_and_off():
    module = torch.nn.Linear(1, 1, bias=False)
    averages = Averages(module, cap=0.3)
    mean = module.weight.item()
    for step in range(1, 6):
        torch.nn.init.constant_(module.weight, step)
        averages.measure(step)
        decay = min(0.3, (1 + step) / (10 + step))
        mean = decay * mean + (1 - decay) * step
    assert float(averages.weights()["weight"]) == pytest.approx(mean, abs=1e-6)
    with averages.applied():
        assert module.weight.item() == pytest.approx(mean, abs=1e-6)
    assert module.weight.item() == 5


def test_noise_and_level_are_a_function_of_seed_step_and_sample():
    one, other = (draws(0, 3, 7, (2, 4, 4), 1000) for _ in range(2))
    assert one.timestep == other.timestep and torch.equal(one.noise, other.noise) and one.uniforms == other.uniforms
    for key in ((1, 3, 7), (0, 4, 7), (0, 3, 8)):
        assert not torch.equal(draws(*key, (2, 4, 4), 1000).noise, one.noise)
    levels = torch.tensor([draws(0, step, 0, (1,), 4).timestep for step in range(400)])
    assert levels.bincount(minlength=4).min() > 70


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_noised_pictures_targets_and_weights_are_those_of_diffusers(prediction):
    schedule = Schedule(prediction_type=prediction)
    theirs = DDPMScheduler(**schedule.config("ddpm"))
    picture, noise, levels = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.tensor([0, 500, 999])
    alpha, sigma = (scale.reshape(-1, 1, 1, 1) for scale in schedule.scales(levels))
    noised = alpha * picture + sigma * noise
    assert torch.allclose(noised, theirs.add_noise(picture, noise, levels), atol=1e-6)
    wanted = target(prediction, picture, noise, alpha, sigma)
    if prediction == "v_prediction":
        assert torch.allclose(wanted, theirs.get_velocity(picture, noise, levels), atol=1e-6)
    told = split(prediction, wanted, noised, alpha, sigma)
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(told, (picture, noise), strict=True))
    snr = (alpha / sigma).square().flatten()
    known = {"epsilon": 1 / snr, "sample": 1.0, "v_prediction": 1 / (snr + 1)}[prediction]
    assert torch.allclose(schedule.weights(levels, 5.0), snr.clamp(max=5.0) * known, rtol=1e-4)


def test_at_zero_terminal_snr_the_last_level_is_noise_alone_and_samplers_begin_there():
    schedule = build_schedule(ScheduleSettings(), is_pixels=True)
    assert schedule.scales(torch.tensor([999])) == (torch.tensor([0.0]), torch.tensor([1.0]))
    for method in ("ddim", "ddpm", "dpm"):
        scheduler = schedule.scheduler(method)
        scheduler.set_timesteps(10)
        assert scheduler.timesteps[0] == 999


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"prediction": "epsilon"}, "needs prediction v_prediction or sample"),
        ({"min_snr_gamma": 5}, "weighs the level of noise alone with 0"),
    ],
)
def test_what_could_not_be_learned_at_zero_terminal_snr_is_refused(changes, told):
    with pytest.raises(ValueError, match=told):
        ScheduleSettings(**changes)


def test_withheld_words_take_a_picture_with_all_its_captions(pairs):
    data = {"pairs": str(pairs), "image_root": str(pairs.parent), "withheld": [["red", "square"], ["Blue"]]}
    left = read_captioned(GenerationDataSettings(**data), 0)
    assert {path.stem for path in left.images} == {"green", "black"} and len(left) == 4
    assert set(left.captions) == {"a green square", "a black square", "a square"}
    for changes, told in (
        ({"sources": ["photos"]}, "there are squares"),
        ({"withheld": [["square"]]}, "leave no pair"),
    ):
        with pytest.raises(UserError, match=told):
            read_captioned(GenerationDataSettings(**data | changes), 0)


def test_an_epoch_visits_every_sample_once_at_most():
    order = EpochOrder(10, 3, seed=0)
    epochs = [[i for step in range(3) for i in order.indices(3 * epoch + step)] for epoch in range(2)]
    assert all(len(set(epoch)) == 9 for epoch in epochs) and epochs[0] != epochs[1]
    assert order.indices(0) == epochs[0][:3]
    with pytest.raises(UserError, match="over the 2 samples"):
        EpochOrder(2, 3, 0)


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_both_denoisers_have_gradients_everywhere_and_their_loss_is_the_plain_error(kind):
    torch.manual_seed(0)
    settings = DenoiserSettings(kind=kind, widths=(16, 32), norm_groups=8, heads=2, dit_width=16, dit_layers=1)
    denoiser = build_denoiser(settings, 12, 4, context_width=24)
    schedule = Schedule(prediction_type="v_prediction")
    conditions = Conditions(text=torch.randn(2, 5, 24))
    picture, noise, levels = torch.randn(2, 12, 4, 4), torch.randn(2, 12, 4, 4), torch.tensor([10, 900])
    batch = NoisedBatch.of(picture, noise, levels, conditions, schedule)
    loss = denoising_loss(denoiser, batch, "v_prediction")
    loss.sum().backward()
    assert not [name for name, p in denoiser.named_parameters() if p.grad is None]
    theirs = DDIMScheduler(**schedule.config())
    noised = theirs.add_noise(picture, noise, levels)
    net = denoiser.net
    said = net(noised, encoder_hidden_states=conditions.text, timestep=levels).sample
    wanted = (said - theirs.get_velocity(picture, noise, levels)).square().mean(dim=(1, 2, 3))
    assert loss.shape == (2,) and torch.allclose(loss, wanted, atol=1e-5)
    with torch.no_grad():
        low = denoising_loss(denoiser.to(torch.bfloat16), batch, "v_prediction")
    assert low.dtype == torch.float32 and torch.allclose(low, loss, rtol=0.05)


def test_conditions_that_are_not_kept_become_those_of_nothing():
    text, null = torch.arange(1.0, 5.0).reshape(4, 1, 1), Conditions(text=torch.zeros(1, 1, 1))
    kept = torch.tensor([True, False, True, False])
    assert Conditions(text=text).where(kept, ~kept, null).text.flatten().tolist() == [1, 0, 3, 0]
