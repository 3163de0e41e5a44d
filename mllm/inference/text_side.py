"""Where the text side of a CLIP reads a text's feature: at the token that ends it, or, unnoticed, elsewhere."""

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from mllm.errors import UserError

# With this id of an end token, transformers reads at the highest id of a text, as the first CLIPs were exported.
READS_AT_HIGHEST_ID = 2
PROBE = "a red circle and a blue rectangle"


def read_place(ids: torch.Tensor, end_id: int) -> torch.Tensor:
    """The places [B] that transformers' CLIP reads in rows of ids [B, T], for the end token's id in its configuration."""
    if end_id == READS_AT_HIGHEST_ID:
        return ids.argmax(-1)
    return (ids == end_id).int().argmax(-1)  # the first, and the first place of all where there is none


def check_reads_end(config: Any, tokenizer: PreTrainedTokenizerBase, path: object) -> None:
    """Raise UserError for a CLIP that reads a text's feature elsewhere than at the token that ends it.

    config: of a text side, or of a model with `text_config`. Hidden states are unharmed by it, so cross-attention may use
    such a CLIP; its embeddings of texts are nearly alike. A SigLIP reads the last place, whatever stands there.
    """
    text = getattr(config, "text_config", config)
    if not text.model_type.startswith("clip"):
        return
    ids = torch.tensor([tokenizer(PROBE)["input_ids"]])
    place, last = int(read_place(ids, text.eos_token_id)[0]), ids.shape[1] - 1
    if place != last:
        what = "its highest id" if text.eos_token_id == READS_AT_HIGHEST_ID else f"token {text.eos_token_id}"
        raise UserError(
            f"{path} reads the feature of a text at {what}, place {place} of {last}, and not at the token that ends it "
            f"(text_config.eos_token_id is {text.eos_token_id}, the tokenizer ends with {int(ids[0, -1])}): texts that "
            "differ in other words have one feature. Train the CLIP again, or use another"
        )
