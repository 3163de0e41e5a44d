"""Settings of the loop, whatever it trains: optimizer, schedule, portions, checkpoints, engine."""

from typing import Literal

from pydantic import Field, model_validator

from mllm.kernels.names import Attention, FusedLayers
from mllm.settings import PathText, Settings


class OptimizerSettings(Settings):
    """AdamW, with linear warm-up and then a cosine or constant rate."""

    kind: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"] = "adamw"
    """The optimizer: `adamw` (the default); `adamw_8bit` keeps its moments in 8 bits (Dettmers et al. 2022);
    `paged_adamw` and `paged_adamw_8bit` let a GPU's driver move them to main memory when the GPU's is short.
    """
    lr: float = Field(gt=0)
    """Learning rate after warm-up, of every part that isn't given its own."""
    lr_projector: float | None = Field(default=None, gt=0)
    """Learning rate of the projector. `lr` by default."""
    lr_vision_encoder: float | None = Field(default=None, gt=0)
    """Learning rate of the vision encoder. `lr` by default."""
    layer_decay_vision_encoder: float = Field(default=1.0, gt=0, le=1)
    """Factor from one layer of the vision encoder to the one in front of it: of L layers, layer l (from 0) learns at its
    rate times factor^(L-l), embeddings at that of a layer in front of the first. The default, 1.0, is the same rate for
    all; BEiT and Qwen-VL take less.
    """
    lr_token_embeddings: float | None = Field(default=None, gt=0)
    """Learning rate of the language model's input and output embeddings. `lr` by default."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay of matrices; vectors have none. 0 by default."""
    weight_decay_projector: float | None = Field(default=None, ge=0)
    """Weight decay of the projector. `weight_decay` by default."""
    weight_decay_vision_encoder: float | None = Field(default=None, ge=0)
    """Weight decay of the vision encoder. `weight_decay` by default."""
    weight_decay_token_embeddings: float | None = Field(default=None, ge=0)
    """Weight decay of the language model's input and output embeddings. `weight_decay` by default."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's two moments. 0.9 and 0.999 by default."""
    eps: float = Field(default=1e-8, gt=0)
    """Term that AdamW adds to a denominator, so that none is zero. 1e-8 by default."""
    warmup_ratio: float = Field(default=0.03, ge=0, le=1)
    """Share of the steps in which the rate rises from 0, from 0 to 1. The default, 0.03, is LLaVA's."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """The rate after warm-up: `cosine` (the default) falls to `min_lr_ratio`, `constant` stays."""
    min_lr_ratio: float = Field(default=0.0, ge=0, le=1)
    """Share of every rate that a cosine ends at, from 0 to 1. 0 by default."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Norm to which a step's gradient is clipped. 1.0 by default."""


class LoopSettings(Settings):
    """How long a run trains, in what portions and precision, and when it is saved."""

    epochs: float = Field(default=1.0, gt=0)
    """Number of passes over the recipe; 0.5 is half of one. 1 by default."""
    max_steps: int | None = Field(default=None, ge=1)
    """Number of steps at most, whatever the epochs say. None, the default, sets no limit."""
    global_batch_size: int = Field(default=128, ge=1)
    """Number of samples of a step, over all ranks; gradients are accumulated as needed. 128 by default."""
    micro_batch_size: int = Field(default=1, ge=1)
    """Number of rows that go through a rank at once. A row is a sample, or several that are packed. 1 by default."""
    dtype: Literal["float32", "autocast", "bfloat16", "auto"] = "float32"
    """Precision: `float32` (the default); `autocast` has float32 weights and matrix products in bfloat16; `bfloat16`
    has weights and activations in bfloat16 and, under DeepSpeed, float32 masters in the optimizer (one process of
    plain torch takes autocast instead); `auto` is bfloat16 on a GPU that has it, autocast on a CPU that multiplies it
    natively, and float32 elsewhere. The run's saved config says which it was.
    """
    gradient_dtype: Literal["weights", "float32"] = "weights"
    """Precision in which gradients of bfloat16 weights add up over micro-batches and ranks under DeepSpeed: that of
    the `weights` (the default, as LLaVA's did) or `float32`.
    """
    attention: Attention = "auto"
    """Kernel of attention within packed rows. `auto` (the default) is, on a CPU, calls of segments; on a GPU in 16
    bits, flash-attn 3, 4 or 2 where it is installed and made for the GPU, else torch's variable-length kernel
    (`torch_varlen`); on a GPU in float32, a dense mask (`sdpa`). `flash_attention` is any version of flash-attn.
    `flex_attention` is taken by name only. A model of transformers with masks of its own (windows, spans of images)
    takes a dense mask, or `flex_attention`'s of blocks.
    """
    fused_layers: FusedLayers = "auto"
    """How norms, gates and rotary embeddings of the language model become single kernels on a GPU: by `liger`, which
    needs liger_kernel, by `compile` (torch compiles them), or `none`. `auto` (the default) is Liger's where it is
    installed, else compiled; none on a CPU.
    """
    gradient_checkpointing: bool = False
    """Whether activations are computed again in the backward pass and not kept: less memory, more time. False by
    default.
    """
    neftune_alpha: float = Field(default=0.0, ge=0)
    """Strength of the noise that NEFTune puts on word embeddings while training (Jain et al. 2023 tried 5 to 15). The
    default, 0, puts none.
    """
    tiles_together: int | None = Field(default=None, ge=1)
    """Number of image tiles and frames that go through the encoder at once, at most: fewer take less memory and more
    calls. Without effect where ZeRO-3 or FSDP spreads the encoder over ranks, which have to call it equally often. All
    of a micro-batch by default (null).
    """
    save_every_steps: int | None = Field(default=None, ge=1)
    """Number of steps between checkpoints. By default there is one at the end and on a signal only."""
    save_every_minutes: float | None = Field(default=None, gt=0)
    """Minutes, by the clock, between checkpoints. None by default."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Number of the newest checkpoints that stay. 2 by default."""
    keep_best_by: str | None = None
    """Metric of the periodic evaluation, such as `heldout_loss` or `benchmark/NAME`, whose best checkpoint stays, too;
    it is saved as soon as it is measured. None by default.
    """
    best_is: Literal["lowest", "highest"] = "lowest"
    """Whether the `lowest` (the default) or the `highest` value of `keep_best_by` is the best."""
    log_every_steps: int = Field(default=10, ge=1)
    """Number of steps between lines of the log; metrics.jsonl has every step. 10 by default."""
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)
    """Programs that are sent every step's figures: `tensorboard` (the default), `wandb`, both or none."""


class EngineSettings(Settings):
    """What computes the steps, over how many processes."""

    kind: Literal["auto", "torch", "deepspeed", "fsdp"] = "auto"
    """The engine: `auto` (the default) takes DeepSpeed under a launcher and plain torch in a single process; `torch`,
    `deepspeed`, or `fsdp`, which is torch's own fully sharded data parallelism and needs no DeepSpeed.
    """
    ds_config: PathText | None = None
    """DeepSpeed's settings: one of ours by name, such as `zero2` or `zero3_offload`, or a JSON file. ZeRO 2 by
    default.
    """
    world_size: int | None = Field(default=None, ge=1)
    """Number of processes that the run is meant for; an error when the launcher started another. None, the default,
    takes any.
    """
    timeout_minutes: float = Field(default=120.0, gt=0)
    """Minutes that ranks wait for each other before the run ends with an error. 120 by default. A rank that has ended
    is noticed at once, so this only bounds one that is alive and stuck; it has to be longer than rank 0 takes to write
    a checkpoint on a slow disk or to answer samples.
    """

    @model_validator(mode="after")
    def _ds_config_is_deepspeed_s(self) -> "EngineSettings":
        if self.ds_config is not None and self.kind in ("torch", "fsdp"):
            raise ValueError(f"ds_config is for DeepSpeed, and kind is {self.kind}; remove one of them")
        return self
