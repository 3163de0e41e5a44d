"""Weights of a CLIP under transformers' names and under open_clip's: q, k and v in one matrix there, projections transposed.

W width of a side, E embedding width.
"""

import re
from collections.abc import Mapping

import torch

# transformers' and open_clip's; the longer of two that begin alike stands first.
NAMES = (
    ("vision_model.embeddings.patch_embedding.", "visual.conv1."),
    ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("vision_model.pre_layrnorm.", "visual.ln_pre."),
    ("vision_model.post_layernorm.", "visual.ln_post."),
    ("vision_model.encoder.layers.", "visual.transformer.resblocks."),
    ("visual_projection.weight", "visual.proj"),
    ("text_model.embeddings.token_embedding.", "token_embedding."),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.final_layer_norm.", "ln_final."),
    ("text_model.encoder.layers.", "transformer.resblocks."),
    ("text_projection.weight", "text_projection"),
    ("logit_scale", "logit_scale"),
)
IN_LAYERS = (
    (".self_attn.out_proj.", ".attn.out_proj."),
    (".layer_norm1.", ".ln_1."),
    (".layer_norm2.", ".ln_2."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
)
PROJECTIONS = ("visual.proj", "text_projection")  # [W, E] there, [E, W] here
TOGETHER = re.compile(r"(.*)\.attn\.in_proj_(weight|bias)")


def to_open_clip(ours: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Name the weights of a `CLIPModel` as open_clip's `CLIP` does."""
    theirs: dict[str, torch.Tensor] = {}
    for name, tensor in ours.items():
        if name.endswith("position_ids") or ".k_proj." in name or ".v_proj." in name:
            continue
        if ".q_proj." in name:
            layer, kind = name.split(".self_attn.q_proj.")
            tensor = torch.cat([ours[f"{layer}.self_attn.{part}_proj.{kind}"] for part in "qkv"])
            name = f"{layer}.attn.in_proj_{kind}"
        name = _renamed(name, dict(NAMES + IN_LAYERS))
        theirs[name] = tensor.T.contiguous() if name in PROJECTIONS else tensor
    return theirs


def from_open_clip(theirs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Name the weights of open_clip's `CLIP` as transformers' `CLIPModel` does.

    A `CustomTextCLIP` has the same under names that begin with `text.`, and a training checkpoint with `module.`.
    """
    back = {there: here for here, there in NAMES + IN_LAYERS}
    ours: dict[str, torch.Tensor] = {}
    for name, tensor in theirs.items():
        name = name.removeprefix("module.").removeprefix("text.")
        if name == "attn_mask":
            continue
        if name in PROJECTIONS:
            tensor = tensor.T.contiguous()
        together = TOGETHER.fullmatch(name)
        if together is None:
            ours[_renamed(name, back)] = tensor
            continue
        layer = _renamed(together[1], back)
        for part, rows in zip("qkv", tensor.chunk(3), strict=True):
            ours[f"{layer}.self_attn.{part}_proj.{together[2]}"] = rows.contiguous()
    return ours


def _renamed(name: str, names: Mapping[str, str]) -> str:
    """`name` with its beginning, and what is within a layer, in the other's words."""
    for old, new in names.items():
        if old.startswith("."):
            name = name.replace(old, new)
        elif name.startswith(old):
            name = new + name.removeprefix(old)
    return name
