"""Writing a model for others: a layout, a number format, and a card that says what it is."""

from pathlib import Path
from typing import Literal

import torch

from mllm.checkpoint import ours, public
from mllm.checkpoint.card import README, model_card, read_run_config
from mllm.checkpoint.layouts import layout_of
from mllm.checkpoint.llava_export import special_ids, write_llava
from mllm.checkpoint.load import DTYPES, load
from mllm.checkpoint.mmproj import FILE_NAME, write_mmproj
from mllm.checkpoint.modelfile import MODELFILE, modelfile
from mllm.checkpoint.parts import local_directory
from mllm.checkpoint.peft_export import learned_of_parts, learned_of_public, write_peft
from mllm.errors import UserError
from mllm.files import atomic_directory
from mllm.model.interface import VisionLanguageModel
from mllm.model.lora import merge_lora, remove_lora
from mllm.model.multimodal import MultimodalLM
from mllm.model.public import PublicProcessor
from mllm.outputs import check_directory

Layout = Literal["hf", "gguf", "mllm", "peft"]
BY = "mllm export"


def export(
    source: str,
    out: Path,
    layout: Layout,
    dtype: str = "float32",
    merge: bool = False,
    *,
    base: str | None = None,
    without_lora: bool = False,
) -> None:
    """Write the model of `source` to `out`, atomically, with a README.md.

    layout: `hf` is transformers' LLaVA layout, which has no LoRA, so that it is merged; `gguf` is the same with encoder and
    projector as llama.cpp's `mmproj.gguf` beside it, for llama.cpp's own script to convert the language model from, and a
    Modelfile; `mllm` is ours, where `merge` says whether LoRA is merged; `peft` is what was learned over `base`, a directory
    or hub id (None: what the run began with). without_lora: leave low-rank updates out, as of a base for them. dtype: of the
    weights. Raises UserError for a model that the layout can't hold, and for an `out` that isn't an earlier export.
    """
    directory = local_directory(source)
    check_directory(out, BY, [directory, *([base] if base is not None else [])])
    path = ours.model_directory(directory)
    if layout == "peft":
        if merge or without_lora:
            raise UserError("an adapter is the low-rank updates: leave --merge-lora and --without-lora out")
        _export_adapter(path, out, base or _begun_with(path), dtype)
        return
    if base is not None:
        raise UserError(f"--base is for --layout peft, and this is {layout}; leave it out")
    model, processor = load(path)
    if not isinstance(model, MultimodalLM):
        raise UserError(
            f"{path} is a model of transformers, whose own files it is: copy the directory as it is, or take --layout peft "
            "for the adapter of a run with LoRA"
        )
    card = model_card(path, model, processor, layout)
    if without_lora:
        remove_lora(model)
    elif merge or layout != "mllm":
        merge_lora(model)
    elif dtype != "float32" and any(adapter["kind"] == "qlora" for adapter in model.adapters.values()):
        raise UserError("the weights are in 4 bits; merge them (--merge-lora) to write them in another dtype")
    for name, value in special_ids(processor).items():
        setattr(model.language_model.config, name, value)
    with atomic_directory(out, BY) as directory:
        if layout != "mllm":
            write_llava(directory, model, processor, DTYPES[dtype])
            if layout == "gguf":
                write_mmproj(directory / FILE_NAME, model, processor)
                (directory / MODELFILE).write_text(modelfile(model, processor), encoding="utf-8")
        else:
            ours.write(directory, model, processor, _state(model, dtype))
        (directory / README).write_text(card, encoding="utf-8")


def _state(model: MultimodalLM, dtype: str) -> dict[str, torch.Tensor]:
    """The weights of a model in `dtype`; buffers stay as they are."""
    state = model.state_dict()
    if dtype == "float32":
        return state
    weights = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return {name: tensor.to(DTYPES[dtype]) if name in weights else tensor for name, tensor in state.items()}


def _export_adapter(path: Path, out: Path, base: str, dtype: str) -> None:
    """Write what the run of the model at `path` learned over `base`, with the processor that its prompts take."""
    model: VisionLanguageModel
    if ours.is_ours(path):
        parts, processor = ours.load(path)
        model, card = parts, model_card(path, parts, processor, "peft", base)
        learned = learned_of_parts(path, parts, processor)
    else:
        learned = learned_of_public(path)
        begun = public.begin(path)
        model, processor = begun.model, begun.processor
        card = model_card(path, model, processor, "peft", base)
    with atomic_directory(out, BY) as directory:
        write_peft(directory, learned, base, DTYPES[dtype])
        if isinstance(model, MultimodalLM):
            layout = layout_of(model)
            layout.save_processor(directory, model, processor, layout.tokenizer(processor))
        elif isinstance(processor, PublicProcessor):
            processor.peer.save_pretrained(directory)
        (directory / README).write_text(card, encoding="utf-8")


def _begun_with(path: Path) -> str:
    """What the run of a model began with, by its settings. Raises UserError where that is no model of transformers."""
    source = read_run_config(path).get("model", {}).get("init_from")
    if source is None or (Path(source).is_dir() and ours.is_ours(ours.model_directory(Path(source)))):
        raise UserError(
            f"{path} doesn't say which model of transformers its adapter is for: name it by --base; mllm export RUN BASE "
            "--without-lora writes one"
        )
    return str(source)
