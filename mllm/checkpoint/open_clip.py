"""Directories of open_clip: `open_clip_config.json` beside weights, and a tokenizer where it isn't CLIP's own."""

import gzip
import json
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPModel, CLIPTokenizer, PreTrainedTokenizerBase
from transformers.initialization import no_init_weights

from mllm.checkpoint.open_clip_config import (
    CONFIG_FILE,
    CONTEXT,
    VOCABULARY,
    clip_config,
    open_clip_config,
    read_config,
)
from mllm.checkpoint.open_clip_names import from_open_clip, to_open_clip
from mllm.checkpoint.parts import first_line
from mllm.errors import UserError

WEIGHTS = "open_clip_model.safetensors"
BPE_FILE = "bpe_simple_vocab_16e6.txt.gz"
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
PICKLES = (".bin", ".pt", ".pth")
START, END = "<|startoftext|>", "<|endoftext|>"


def load_open_clip(directory: Path, reads_pickles: bool = False) -> tuple[CLIPModel, PreTrainedTokenizerBase]:
    """Load a directory of open_clip as a `CLIPModel` in float32 and evaluation mode, and its tokenizer.

    reads_pickles: whether weights may be a `.bin` or `.pt`, which torch reads without running code in it. Raises UserError
    for what a `CLIPModel` can't be, and for weights or a tokenizer that are missing.
    """
    config = read_config(directory)
    tokenizer = _tokenizer(directory, config["model_cfg"]["text_cfg"])
    weights = from_open_clip(_weights(directory, reads_pickles))
    try:
        described = clip_config(config, tokenizer.eos_token_id)
        with no_init_weights():
            model = CLIPModel(described)
        # SigLIP's has a dimension, CLIP's none.
        weights["logit_scale"] = weights["logit_scale"].reshape(model.logit_scale.shape)
        model.load_state_dict(weights)
    except (RuntimeError, KeyError, ValueError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{directory}: its weights are not those of {CONFIG_FILE}: {reason[:200]}") from None
    tokenizer.model_max_length = described.text_config.max_position_embeddings
    return model.float().eval(), tokenizer


def save_open_clip(
    directory: Path, model: CLIPModel, tokenizer: PreTrainedTokenizerBase, processor: dict[str, Any]
) -> None:
    """Write a `CLIPModel` as a directory that open_clip's `local-dir:` reads, into a directory that is there.

    processor: the values of its image processor. Raises UserError for what open_clip's `CLIP` can't be.
    """
    is_clips = isinstance(tokenizer, CLIPTokenizer) and len(tokenizer) == VOCABULARY
    described = open_clip_config(model.config, processor, is_clips)
    save_file({name: t.contiguous() for name, t in to_open_clip(model.state_dict()).items()}, directory / WEIGHTS)
    (directory / CONFIG_FILE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    tokenizer.save_pretrained(directory)


def read_pickle(path: Path) -> dict[str, torch.Tensor]:
    """Read the weights of a `.bin` or `.pt` by torch's `weights_only`, which runs nothing of what is in it."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path} holds more than weights, or is broken: {first_line(error)}") from None
    found = found.get("state_dict", found) if isinstance(found, dict) else {}
    if not found or not all(isinstance(tensor, torch.Tensor) for tensor in found.values()):
        raise UserError(f"{path} holds no weights by name; expected a state dict, or a checkpoint with state_dict")
    return found


def _weights(directory: Path, reads_pickles: bool) -> dict[str, torch.Tensor]:
    files = sorted(directory.glob("*.safetensors"), key=lambda path: (path.name != WEIGHTS, path.name))
    if files:
        try:
            return load_file(files[0])
        except SafetensorError as error:
            raise UserError(f"{files[0]} can't be read: {first_line(error)}; get the file again") from None
    pickles = sorted(path for path in directory.iterdir() if path.suffix in PICKLES)
    if not pickles:
        raise UserError(f"{directory} holds no weights beside {CONFIG_FILE}; expected {WEIGHTS}")
    if not reads_pickles:
        raise UserError(pickle_hint(directory, pickles[0]))
    return read_pickle(pickles[0])


def pickle_hint(directory: Path, found: Path) -> str:
    """Say how weights that are a pickle become a directory that is loaded."""
    return (
        f"{directory} holds {found.name} and no safetensors, and pickles are not loaded; write it as safetensors: "
        f"mllm clip export {directory} NEW_DIRECTORY"
    )


def _tokenizer(directory: Path, text: dict[str, Any]) -> PreTrainedTokenizerBase:
    if any((directory / name).is_file() for name in TOKENIZER_FILES):
        try:
            found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory)
            return found
        except (OSError, ValueError) as error:
            raise UserError(f"{directory}: its tokenizer can't be read: {first_line(error)}") from None
    name = text.get("hf_tokenizer_name")
    if name:
        raise UserError(f"{directory} has no tokenizer; put the files of {name} into it")
    spec = find_spec("open_clip")
    folders = [directory, *([Path(spec.origin).parent] if spec is not None and spec.origin else [])]
    for path in (folder / BPE_FILE for folder in folders):
        if path.is_file():
            return clip_tokenizer(path, text.get("context_length", CONTEXT))
    raise UserError(
        f"{directory} has no tokenizer; put vocab.json and merges.txt of openai/clip-vit-base-patch32 into it, or "
        f"{BPE_FILE}, which pip install open_clip_torch brings along"
    )


def clip_tokenizer(path: Path, length: int) -> CLIPTokenizer:
    """Build CLIP's tokenizer of `length` tokens from the merges of its authors' file."""
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    merges = [tuple(line.split()) for line in lines[1 : VOCABULARY - 512 - 2 + 1]]
    # The letters that stand for bytes: those that can be printed first, then the rest, each also as the end of a word.
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(byte) for byte in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    words = chain(letters, (f"{letter}</w>" for letter in letters), ("".join(pair) for pair in merges), (START, END))
    vocabulary = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length)
