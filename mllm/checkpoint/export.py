"""Writing a model for others: a layout, a number format, and a card that says what it is."""

from pathlib import Path
from typing import Literal

from mllm.checkpoint import ours
from mllm.checkpoint.card import model_card
from mllm.checkpoint.llava_export import special_ids, write_llava
from mllm.checkpoint.load import DTYPES, load
from mllm.checkpoint.mmproj import FILE_NAME, write_mmproj
from mllm.checkpoint.parts import local_directory
from mllm.errors import UserError
from mllm.files import atomic_directory
from mllm.model.lora import merge_lora
from mllm.model.multimodal import MultimodalLM
from mllm.outputs import check_directory

Layout = Literal["hf", "gguf", "mllm"]
BY = "mllm export"


def export(source: str, out: Path, layout: Layout, dtype: str = "float32", merge: bool = False) -> None:
    """Write the model of `source` to `out`, atomically, with a README.md.

    layout: `hf` is transformers' LLaVA layout, which has no LoRA, so that it is merged; `gguf` is the same with encoder and
    projector as llama.cpp's `mmproj.gguf` beside it, for llama.cpp's own script to convert the language model from; `mllm`
    is ours, where `merge` says whether LoRA is merged. dtype: of the weights.
    Raises UserError for a model that the layout can't hold, and for an `out` that isn't an earlier export.
    """
    directory = local_directory(source)
    check_directory(out, BY, [directory])
    path = ours.model_directory(directory)
    model, processor = load(path)
    if not isinstance(model, MultimodalLM):
        raise UserError(f"{path} is a model of transformers, whose own files it is: copy the directory as it is")
    card = model_card(path, model, processor, layout)
    if merge or layout != "mllm":
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
        else:
            state = model.state_dict()
            if dtype != "float32":
                weights = {name for name, _ in model.named_parameters(remove_duplicate=False)}
                state = {n: tensor.to(DTYPES[dtype]) if n in weights else tensor for n, tensor in state.items()}
            ours.write(directory, model, processor, state)
        (directory / "README.md").write_text(card, encoding="utf-8")
