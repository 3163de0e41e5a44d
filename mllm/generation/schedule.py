"""Levels of noise: how a picture is noised, what is predicted of it, how levels weigh, and the samplers that go back.

x_t = α_t x_0 + σ_t ε with α_t² = ᾱ_t, σ_t² = 1 − ᾱ_t; SNR_t = α_t² / σ_t². b pictures of shape [c, h, w].
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from mllm.errors import UserError
from mllm.generation.settings import ScheduleSettings

Method = Literal["ddim", "ddpm", "dpm"]
SCHEDULERS: dict[str, Any] = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler, "dpm": DPMSolverMultistepScheduler}
PREDICTIONS = ("epsilon", "sample", "v_prediction")


@dataclass(frozen=True)
class Schedule:
    """Levels of noise, and how samplers visit them. Names are those of diffusers' schedulers.

    clip_sample: whether samplers keep the picture that they foresee within ±1, as pixels are.
    """

    num_train_timesteps: int = 1000
    beta_schedule: str = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    prediction_type: str = "epsilon"
    rescale_betas_zero_snr: bool = False
    timestep_spacing: str = "leading"
    steps_offset: int = 1
    set_alpha_to_one: bool = False
    clip_sample: bool = False

    @property
    def alphas_cumprod(self) -> torch.Tensor:
        """ᾱ of every level, float32 [num_train_timesteps]."""
        return _alphas_cumprod(self)

    def scales(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """α and σ, float32 [b], of levels int64 [b]."""
        kept = self.alphas_cumprod[timesteps]
        return kept**0.5, (1 - kept) ** 0.5

    def weights(self, timesteps: torch.Tensor, min_snr_gamma: float | None) -> torch.Tensor:
        """Return what the squared error at levels int64 [b] is multiplied by: min-SNR's weights (Hang et al. 2023), or 1."""
        if min_snr_gamma is None:
            return torch.ones(len(timesteps))
        kept = self.alphas_cumprod[timesteps]
        snr = kept / (1 - kept)
        divisor = {"epsilon": snr, "sample": torch.ones_like(snr), "v_prediction": snr + 1}[self.prediction_type]
        return snr.clamp(max=min_snr_gamma) / divisor

    def config(self, method: Method = "ddim") -> dict[str, Any]:
        """Return the configuration of diffusers' scheduler of this method."""
        config = {name: getattr(self, name) for name in self.__dataclass_fields__}
        if method != "ddim":
            del config["set_alpha_to_one"]
        if method == "dpm":
            del config["clip_sample"]
        return config

    def scheduler(self, method: Method = "ddim") -> Any:
        """Return diffusers' sampler: DDIM (Song et al. 2020), DDPM (Ho et al. 2020) or DPM-Solver++ (Lu et al. 2022)."""
        return SCHEDULERS[method](**self.config(method))


@cache
def _alphas_cumprod(schedule: Schedule) -> torch.Tensor:
    return schedule.scheduler("ddim").alphas_cumprod


def target(
    prediction_type: str, picture: torch.Tensor, noise: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor:
    """Return what the denoiser should say of a picture that was noised: ε, x_0 or v = α ε − σ x_0.

    alpha, sigma: of shapes that fit the picture's.
    """
    if prediction_type == "epsilon":
        return noise
    return picture if prediction_type == "sample" else alpha * noise - sigma * picture


def split(
    prediction_type: str, prediction: torch.Tensor, noised: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the picture x_0 and the noise ε that a prediction says a noised picture is made of."""
    if prediction_type == "epsilon":
        return (noised - sigma * prediction) / alpha, prediction
    if prediction_type == "sample":
        return prediction, (noised - alpha * prediction) / sigma
    return alpha * noised - sigma * prediction, alpha * prediction + sigma * noised


def build_schedule(settings: ScheduleSettings, is_pixels: bool) -> Schedule:
    """Build the schedule of these settings.

    Its samplers visit the last level, and in pixels keep what they foresee within ±1.
    """
    return Schedule(
        num_train_timesteps=settings.steps,
        beta_schedule=settings.betas,
        beta_start=settings.beta_start,
        beta_end=settings.beta_end,
        prediction_type=settings.prediction,
        rescale_betas_zero_snr=settings.zero_terminal_snr,
        timestep_spacing="trailing",
        steps_offset=1,
        set_alpha_to_one=True,
        clip_sample=is_pixels,
    )


def read_schedule(config: Mapping[str, Any], origin: str) -> Schedule:
    """Read a `scheduler_config.json` of diffusers, of whatever sampler; what it leaves out has diffusers' defaults.

    Raises UserError for levels or a prediction that aren't known here.
    """
    if config.get("trained_betas") is not None:
        raise UserError(f"{origin} has trained_betas, which are not read")
    clips = config.get("clip_sample", config.get("_class_name") in ("DDIMScheduler", "DDPMScheduler"))
    schedule = Schedule(
        num_train_timesteps=config.get("num_train_timesteps", 1000),
        beta_schedule=config.get("beta_schedule", "linear"),
        beta_start=config.get("beta_start", 0.0001),
        beta_end=config.get("beta_end", 0.02),
        prediction_type=config.get("prediction_type", "epsilon"),
        rescale_betas_zero_snr=config.get("rescale_betas_zero_snr", False),
        timestep_spacing=config.get("timestep_spacing", "leading"),
        steps_offset=config.get("steps_offset", 0),
        set_alpha_to_one=config.get("set_alpha_to_one", True),
        clip_sample=bool(clips),
    )
    if schedule.prediction_type not in PREDICTIONS:
        raise UserError(f"{origin}: prediction_type {schedule.prediction_type!r}; known are {', '.join(PREDICTIONS)}")
    if schedule.prediction_type == "epsilon" and schedule.rescale_betas_zero_snr:
        raise UserError(f"{origin}: rescale_betas_zero_snr with prediction_type epsilon says nothing of the picture")
    try:
        _ = schedule.alphas_cumprod
    except (NotImplementedError, ValueError) as error:
        raise UserError(f"{origin}: {error}") from None
    return schedule
