"""A DeepSpeed JSON (`ds_configs/…`): read, filled from our settings, refused where it contradicts them."""

import copy
import json
import logging
from collections.abc import Iterator
from typing import Any

import torch

from mllm.errors import UserError
from mllm.resources import find_ds_config
from mllm.training.settings import LoopSettings, OptimizerSettings

DEFAULT_DS_CONFIG: dict[str, Any] = {"zero_optimization": {"stage": 2}}
# Elements, not bytes: 100 MB buckets in bfloat16.
ZERO_DEFAULTS: dict[str, Any] = {
    "reduce_bucket_size": 50_000_000,
    "allgather_bucket_size": 50_000_000,
    "stage3_prefetch_bucket_size": 50_000_000,
    "stage3_param_persistence_threshold": 10_000,
    "overlap_comm": False,
}
# On GPUs communication runs beside computation, which takes larger buckets to hide.
GPU_ZERO_DEFAULTS: dict[str, Any] = {
    "reduce_bucket_size": 200_000_000,
    "allgather_bucket_size": 200_000_000,
    "overlap_comm": True,
}
OTHER_PRECISIONS = ("fp16", "amp", "torch_autocast")

logger = logging.getLogger(__name__)


def read_ds_config(path: str | None) -> dict[str, Any]:
    """The JSON of a path or of a shipped file's name, such as `zero2`; ZeRO-2 when none is named."""
    if path is None:
        return copy.deepcopy(DEFAULT_DS_CONFIG)
    file = find_ds_config(path)
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"engine.ds_config {path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"engine.ds_config {path}: expected a JSON object, found {type(value).__name__}")
    return value


def zero_stage(ds_config: dict[str, Any]) -> int:
    return int(ds_config.get("zero_optimization", {}).get("stage", 0))


def offloads(ds_config: dict[str, Any], what: str) -> bool:
    """Whether `what`, offload_optimizer or offload_param, goes to main memory or disk."""
    return _section(ds_config.get("zero_optimization", {}), what).get("device", "none") != "none"


def fill_ds_config(
    ds_config: dict[str, Any], optim: OptimizerSettings, loop: LoopSettings, on_gpu: bool | None = None
) -> dict[str, Any]:
    """`ds_config` with every "auto" and every missing key set from our settings.

    on_gpu: whether the run is on GPUs, for sizes that depend on it; by default whether there is one here.
    Raises UserError, naming both values, when the file contradicts the settings.
    """
    filled = copy.deepcopy(ds_config)
    ours: dict[str, Any] = {
        "train_batch_size": loop.global_batch_size,
        "train_micro_batch_size_per_gpu": loop.micro_batch_size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optim.max_grad_norm,
        # Our own optimizer; without these DeepSpeed refuses it, or compiles one of its own.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    for key, value in ours.items():
        _agree(key, filled.get(key, "auto"), value)
        filled[key] = value
    # DeepSpeed would take it for rows × ranks × accumulation; a step of ours lays out its samples in as many rows as fit.
    del filled["train_batch_size"]
    _fill_precision(filled, loop)
    _remove_optimizer(filled, optim)
    _fill_zero(filled, optim, loop, torch.cuda.is_available() if on_gpu is None else on_gpu)
    _fill_gradients(filled, loop)
    filled.setdefault("steps_per_print", 10**9)
    left = next(_autos(filled), None)
    if left is not None:
        raise UserError(f'ds_config says {left}="auto", for which our settings have no value; write one, or remove it')
    return filled


def _section(values: dict[str, Any], key: str) -> dict[str, Any]:
    value = values.get(key)
    return value if isinstance(value, dict) else {}


def _agree(key: str, given: Any, ours: Any) -> None:
    if given not in ("auto", ours):
        raise UserError(f'ds_config says {key}={given}, our settings say {ours}; write "auto" in the ds_config')


def _fill_precision(filled: dict[str, Any], loop: LoopSettings) -> None:
    wanted = loop.dtype == "bfloat16"
    bf16 = filled.get("bf16", {})
    bf16 = bf16 if isinstance(bf16, dict) else {"enabled": bf16}
    enabled = bf16.get("enabled", "auto")
    if enabled not in ("auto", wanted):
        raise UserError(f"ds_config says bf16.enabled={enabled}, train.dtype says {loop.dtype}; make them agree")
    filled["bf16"] = {**bf16, "enabled": wanted}
    for key in OTHER_PRECISIONS:
        enabled = _section(filled, key).get("enabled", "auto")
        if enabled not in ("auto", False):
            raise UserError(
                f"ds_config says {key}.enabled={enabled}, train.dtype says {loop.dtype} (it offers float32, autocast "
                f"and bfloat16); remove the section {key}"
            )
        filled.pop(key, None)


def _remove_optimizer(filled: dict[str, Any], optim: OptimizerSettings) -> None:
    """Take the sections away that `optim` decides, once they say nothing else."""
    section = _section(filled, "optimizer")
    kind = section.get("type", "AdamW")
    if kind not in ("Adam", "AdamW"):
        raise UserError(f"ds_config says optimizer.type={kind}, our settings say optim.kind={optim.kind}; remove it")
    for key, given in section.get("params", {}).items():
        if given != "auto" and not hasattr(optim, key):
            raise UserError(
                f"ds_config says optimizer.params.{key}={given}, for which our settings have no name; remove it"
            )
        ours = getattr(optim, key, None)
        _agree(f"optimizer.params.{key}", given, list(ours) if isinstance(ours, tuple) else ours)
    if "scheduler" in filled:
        kind = _section(filled, "scheduler").get("type")
        raise UserError(
            f"ds_config says scheduler.type={kind}, our settings say optim.schedule={optim.schedule}; remove the "
            "section scheduler"
        )
    filled.pop("optimizer", None)


def _fill_zero(filled: dict[str, Any], optim: OptimizerSettings, loop: LoopSettings, on_gpu: bool) -> None:
    zero = filled.setdefault("zero_optimization", {})
    stage = zero.get("stage", 0)
    if stage not in (0, 1, 2, 3):
        raise UserError(f"ds_config says zero_optimization.stage={stage}; it can be 0, 1, 2 or 3")
    if stage == 0 and loop.dtype == "bfloat16":
        # DeepSpeed's optimizer for this case takes a step on zeros first, so that AdamW's corrections are a step late: the
        # first update is 0.74 of what it should be.
        logger.info("ds_config says zero_optimization.stage=0, train.dtype is bfloat16: ZeRO-1 takes its place")
        zero["stage"] = 1
    for key, value in (ZERO_DEFAULTS | GPU_ZERO_DEFAULTS if on_gpu else ZERO_DEFAULTS).items():
        if zero.get(key) == "auto":
            zero[key] = value
    for what, lowest in (("offload_optimizer", 1), ("offload_param", 3)):
        if offloads(filled, what) and stage < lowest:
            raise UserError(
                f"ds_config says zero_optimization.{what} and stage={stage}; it needs stage {lowest} or more"
            )
    if offloads(filled, "offload_optimizer") and optim.kind.startswith("paged"):
        raise UserError(
            f"ds_config says zero_optimization.offload_optimizer, our settings say optim.kind={optim.kind}: both move "
            "the moments out of the GPU; drop one"
        )


def _fill_gradients(filled: dict[str, Any], loop: LoopSettings) -> None:
    """Have gradients added up and sent in the dtype that `loop.gradient_dtype` says."""
    wide = loop.dtype != "bfloat16" or loop.gradient_dtype == "float32"
    ours = "fp32" if wide else "bf16"
    for section, key in ((_section(filled, "data_types"), "grad_accum_dtype"), (filled, "communication_data_type")):
        given = section.get(key)
        if given == "auto":
            del section[key]
        elif given not in (None, ours):
            raise UserError(
                f"ds_config says {key}={given}, our settings say {ours} (train.dtype {loop.dtype}, train.gradient_dtype "
                f"{loop.gradient_dtype}); make them agree"
            )
    if loop.dtype != "bfloat16" or loop.gradient_dtype == "weights":
        return
    if zero_stage(filled) < 2:
        raise UserError(
            "train.gradient_dtype is float32, which DeepSpeed does for bfloat16 weights at stages 2 and 3; this ds_config "
            f"has stage {zero_stage(filled)}: take ds_configs/zero2.json"
        )
    filled["data_types"] = {**_section(filled, "data_types"), "grad_accum_dtype": ours}
    filled["communication_data_type"] = ours


def _autos(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _autos(inner, f"{path}.{key}" if path else key)
    elif value == "auto":
        yield path
