"""Learning from the similarities that another dual encoder sees within a batch.

b pairs of a rank out of the global batch's B, E width of the teacher's embedding.
"""

import torch

from mllm.contrastive.data import PairBatch, TeacherInputs
from mllm.contrastive.loss import Features, gathered
from mllm.errors import UserError
from mllm.inference.dual_features import load_encoder
from mllm.media.prepare import ImagePreparer

LEAST = -1e4  # far below any logit


class Teacher:
    """A frozen dual encoder, which sees and reads, its own way, the pairs that the model does."""

    def __init__(self, path: str, preparer: ImagePreparer) -> None:
        """path: as of `load_encoder`. preparer: of the model that learns; where both see equal pixels they are made once."""
        self.encoder = load_encoder(path)
        own = self.encoder.preparer
        if not isinstance(own, ImagePreparer):
            raise UserError(
                f"loss.teacher {path}: its image processor has steps of its own; a CLIP or SigLIP can teach"
            )
        self.inputs = TeacherInputs(self.encoder.tokenizer, () if own == preparer else (own,))

    @torch.no_grad()
    def features(self, share: PairBatch, chunk: int, alive: torch.Tensor | None) -> Features:
        """Features of a rank's share, computed `chunk` pairs at a time and gathered."""
        model, device = self.encoder.model, self.encoder.device
        pixels = share.teacher_pixels if len(share.teacher_pixels) else share.pixel_values
        images = [model.get_image_features(pixel_values=part.to(device)).pooler_output for part in pixels.split(chunk)]
        parts = zip(share.teacher_ids.split(chunk), share.teacher_mask.split(chunk), strict=True)
        texts = [
            model.get_text_features(input_ids=ids.to(device), attention_mask=mask.to(device)).pooler_output
            for ids, mask in parts
        ]
        return gathered(torch.cat(images), torch.cat(texts), alive)


def distilled_sum(features: Features, factor: torch.Tensor, taught: Features, taught_factor: float) -> torch.Tensor:
    """Sum, over this rank's b pairs, the mean of both ways' cross-entropies of the teacher's probabilities and the model's.

    As `DistillClipLoss` of open_clip, whose value is the mean over pairs. Scalar float32.
    """
    unseen = features.unseen(None)
    taught_ways = taught.logits(torch.tensor(taught_factor, device=factor.device))
    total = torch.zeros((), device=factor.device)
    for own, theirs in zip(features.logits(factor), taught_ways, strict=True):
        if unseen is not None:
            # Not -inf: a share of zero times it would be no number.
            own, theirs = (logits.masked_fill(unseen, LEAST) for logits in (own, theirs))
        total = total - features.counted((theirs.softmax(1) * own.log_softmax(1)).sum(1)).sum()
    return total / 2
