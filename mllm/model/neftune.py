"""NEFTune (Jain et al. 2023): noise on the embeddings of words, while training.

B rows, T tokens, S segments of a row, D width.
"""

import torch

from mllm.batch import NO_PARENT, PADDING_SEGMENT, Batch


def sample_lengths(segment_ids: torch.Tensor, parent_segment: torch.Tensor) -> torch.Tensor:
    """Tokens [B, S] of the sample that each segment belongs to: a branch with its trunk.

    A trunk belongs to several samples and gets their mean length.
    """
    real = (segment_ids != PADDING_SEGMENT).float()
    own = torch.zeros_like(parent_segment, dtype=torch.float32).scatter_add_(1, segment_ids.clamp(min=0), real)
    parents, is_branch = parent_segment.clamp(min=0), (parent_segment != NO_PARENT).float()
    whole = own + own.gather(1, parents) * is_branch
    branches = torch.zeros_like(own).scatter_add_(1, parents, is_branch)
    total = torch.zeros_like(own).scatter_add_(1, parents, whole * is_branch)
    return torch.where(branches > 0, total / branches.clamp(min=1), whole)


def add_noise(embeddings: torch.Tensor, batch: Batch, image_token_id: int, alpha: float) -> torch.Tensor:
    """`embeddings` [B, T, D] plus uniform noise of ± alpha / √(L·D) on text tokens; L: tokens of the token's sample.

    Image tokens count in L and get no noise. Drawn from torch's global generator, whose state checkpoints hold.
    """
    lengths = sample_lengths(batch.segment_ids, batch.parent_segment)
    each = lengths.gather(1, batch.segment_ids.clamp(min=0)).clamp(min=1)
    is_text = (batch.input_ids != image_token_id) & (batch.segment_ids != PADDING_SEGMENT)
    scale = (alpha * is_text / (each * embeddings.shape[-1]).sqrt()).to(embeddings.dtype)
    return embeddings + (2 * torch.rand_like(embeddings) - 1) * scale[..., None]
