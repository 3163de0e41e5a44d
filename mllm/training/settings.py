"""Settings of the loop, whatever it trains: optimizer, schedule, portions, checkpoints, engine."""

from typing import Literal

from pydantic import Field, model_validator

from mllm.kernels.names import Attention, FusedLayers
from mllm.settings import PathText, Settings


class OptimizerSettings(Settings):
    """AdamW with linear warm-up, then cosine or constant.

    `lr_…` and `weight_decay_…` of a part default to `lr` and `weight_decay`; token_embeddings are those of the language
    model, at both ends. Weight decay leaves vectors alone. kind: `adamw_8bit` keeps the moments in 8 bits (Dettmers et
    al. 2022), `paged_…` lets a GPU's driver move them to main memory when the GPU's is short.
    """

    kind: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"] = "adamw"
    lr: float = Field(gt=0)
    lr_projector: float | None = Field(default=None, gt=0)
    lr_vision_encoder: float | None = Field(default=None, gt=0)
    lr_token_embeddings: float | None = Field(default=None, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    weight_decay_projector: float | None = Field(default=None, ge=0)
    weight_decay_vision_encoder: float | None = Field(default=None, ge=0)
    weight_decay_token_embeddings: float | None = Field(default=None, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    warmup_ratio: float = Field(default=0.03, ge=0, le=1)
    schedule: Literal["cosine", "constant"] = "cosine"
    max_grad_norm: float = Field(default=1.0, gt=0)


class LoopSettings(Settings):
    """How long and in what portions.

    A step consumes `global_batch_size` samples, whatever the number of ranks. They are laid out in rows;
    `micro_batch_size` rows go through a rank at once, and as many micro-batches are accumulated as the rows need.
    dtype: `float32`; `autocast` = float32 weights, matrix products in bfloat16; `bfloat16` = weights and activations in
    bfloat16 and, under DeepSpeed, float32 masters in the optimizer (one process of plain torch has none: there it is
    autocast); `auto` = bfloat16 on a GPU that has it, autocast on a CPU that multiplies it natively, float32 elsewhere.
    The run's saved config says which it was. gradient_dtype: of the gradients of bfloat16 weights under DeepSpeed,
    which add up over micro-batches and ranks: `weights` = in bfloat16, too, as LLaVA's did, or `float32`.
    attention: `auto` = on a CPU calls of segments; on a GPU in 16 bits flash-attn 3, 4 or 2 where it is installed and made
    for the GPU, else the variable-length kernel in torch (`torch_varlen`), and in float32 a dense mask (`sdpa`);
    `flash_attention` is any of flash-attn's, `flash_attention_2`, `_3` and `_4` that one; `flex_attention` is there by
    name only. fused_layers: norms, gates and rotary embeddings of the language model as single kernels; `auto` = on a
    GPU Liger's where `liger_kernel` is installed, else such that torch compiles; none on a CPU. neftune_alpha: strength
    of the noise that NEFTune puts on words while training (Jain et al. 2023 tried 5 to 15); 0 for none.
    A checkpoint is written at the end, on a signal, every `save_every_steps` and every `save_every_minutes` (of the
    clock). The newest `keep_checkpoints` stay, and the best by the metric `keep_best_by` of the periodic evaluation
    (`heldout_loss`), which is saved as soon as it is measured; `best_is` says in which direction.
    """

    epochs: float = Field(default=1.0, gt=0)
    max_steps: int | None = Field(default=None, ge=1)
    global_batch_size: int = Field(default=128, ge=1)
    micro_batch_size: int = Field(default=1, ge=1)
    dtype: Literal["float32", "autocast", "bfloat16", "auto"] = "float32"
    gradient_dtype: Literal["weights", "float32"] = "weights"
    attention: Attention = "auto"
    fused_layers: FusedLayers = "auto"
    gradient_checkpointing: bool = False
    neftune_alpha: float = Field(default=0.0, ge=0)
    save_every_steps: int | None = Field(default=None, ge=1)
    save_every_minutes: float | None = Field(default=None, gt=0)
    keep_checkpoints: int = Field(default=2, ge=1)
    keep_best_by: str | None = None
    best_is: Literal["lowest", "highest"] = "lowest"
    log_every_steps: int = Field(default=10, ge=1)
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)


class EngineSettings(Settings):
    """`auto` takes DeepSpeed under its launcher (or torchrun) and plain torch in a single process.

    `fsdp` is torch's own fully sharded data parallelism, which needs no DeepSpeed. `world_size`, when given, is held
    against what the launcher started. `timeout_minutes`: how long ranks wait for each other before the run ends with an
    error. A rank that has ended is noticed at once, so this only bounds one that is alive and stuck; it has to be longer
    than rank 0 takes to write a checkpoint on a slow disk or to answer samples.
    """

    kind: Literal["auto", "torch", "deepspeed", "fsdp"] = "auto"
    ds_config: PathText | None = None
    world_size: int | None = Field(default=None, ge=1)
    timeout_minutes: float = Field(default=120.0, gt=0)

    @model_validator(mode="after")
    def _ds_config_is_deepspeed_s(self) -> "EngineSettings":
        if self.ds_config is not None and self.kind in ("torch", "fsdp"):
            raise ValueError(f"ds_config is for DeepSpeed, and kind is {self.kind}; remove one of them")
        return self
