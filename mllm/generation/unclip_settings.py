"""Settings of what draws from CLIP's image embeddings: the prior, the decoder, and cues of neighbours."""

from typing import Literal

from pydantic import Field, model_validator

from mllm.generation.settings import DrawingSettings, GenerationSettings, HeldoutSettings, TextSettings
from mllm.settings import PathText, Settings


class PriorNetSettings(Settings):
    """The transformer of a prior."""

    layers: int = Field(default=4, ge=1)
    """Layers. 4 by default; unCLIP's had 24, Karlo's 20."""
    heads: int = Field(default=4, ge=1)
    """Attention heads. 4 by default."""
    head_width: int = Field(default=32, ge=1)
    """Width of a head; the transformer is heads × head_width wide. 32 by default."""


class PriorSettings(GenerationSettings):
    """Everything that `mllm generate train` reads for a prior: image embeddings from captions."""

    kind: Literal["prior"] = "prior"
    """What is trained: `prior`, which samples the image embedding of a caption."""
    text: TextSettings
    """The CLIP between whose sides it goes, and how much of a caption is read."""
    network: PriorNetSettings = PriorNetSettings()
    """The transformer."""
    levels: int = Field(default=1000, ge=2)
    """Number of levels of noise, of the cosine schedule. 1000 by default."""
    caption_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of captions that are replaced by an empty one, which guidance needs. 0.1 by default."""
    heldout: HeldoutSettings = HeldoutSettings()
    """When the loss on held-out pairs is measured, where there are some."""


class DecoderSettings(DrawingSettings):
    """Everything that `mllm generate train` reads for a decoder: pictures from image embeddings, and text beside."""

    kind: Literal["decoder"] = "decoder"
    """What is trained: `decoder`, which draws from an image embedding."""
    text: TextSettings
    """The CLIP whose image embeddings it draws from and whose text states it attends to."""
    caption_dropout: float = Field(default=0.5, ge=0, lt=1)
    """Share of captions that are replaced by an empty one, so that an embedding alone is enough. 0.5 by default."""
    image_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of image embeddings that are replaced by none, which guidance needs. 0.1 by default."""

    @model_validator(mode="after")
    def _adds_to_the_timestep(self) -> "DecoderSettings":
        if self.denoiser.kind != "unet":
            raise ValueError("a decoder adds image embeddings to the timestep's, which denoiser.kind unet alone does")
        return self


class RetrievalSettings(DrawingSettings):
    """Everything that `mllm generate train` reads for pictures from retrieval cues, without captions."""

    kind: Literal["retrieval"] = "retrieval"
    """What is trained: `retrieval`, which draws beside the embeddings of neighbours."""
    clip: PathText
    """Directory of the CLIP that the index was made with."""
    index: PathText
    """Directory of an index of images that `mllm clip index` wrote."""
    neighbours: int = Field(default=4, ge=1)
    """Neighbours of a picture, which are never the picture itself. 4 by default."""
    cue_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of pictures that are drawn without cues, which guidance needs. 0.1 by default."""
