"""One set of weights twice, for the benchmarks of inference: as our model, and as transformers' LLaVA with its processor."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor
from workloads import save_parts

import mllm
from mllm.checkpoint.llava_export import export_llava
from mllm.checkpoint.start import build
from mllm.conversation.schema import Message
from mllm.model.multimodal import MultimodalLM
from mllm.model.settings import ModelSettings
from mllm.processor import Processor
from mllm.settings import validate_settings


@dataclass(frozen=True)
class Pair:
    """Our model and transformers' of equal weights, each with its processor, and the directory it was exported to."""

    model: MultimodalLM
    processor: Processor
    peer: LlavaForConditionalGeneration
    peer_processor: LlavaProcessor
    directory: Path

    def inputs(self, conversations: Sequence[Sequence[Message]], images: Sequence[str]) -> dict[str, torch.Tensor]:
        """What the peer's processor makes of conversations and their images, in reading order: padded on the left."""
        texts = [
            self.peer_processor.apply_chat_template(
                [{"role": m.role, "content": [part.model_dump() for part in m.content]} for m in conversation],
                add_generation_prompt=True,
            )
            for conversation in conversations
        ]
        pictures = [Image.open(path).convert("RGB") for path in images]
        made = self.peer_processor(
            text=texts, images=pictures, padding=True, return_tensors="pt", add_special_tokens=False
        )
        return {name: tensor.to(self.peer.device) for name, tensor in made.items()}


def make_pair(root: Path, device: str = "cpu") -> Pair:
    """A SmolLM2-135M-shaped language model behind a CLIP-B/16-shaped encoder (196 image tokens).

    In float32 on a CPU, in bfloat16 on any other device.
    """
    save_parts(root)
    values = {
        "vision_encoder": {"path": str(root / "clip")},
        "language_model": {"path": str(root / "lm")},
        "image": {"fit": "crop"},
        "prompt_format": "chatml",
    }
    export_llava(*build(validate_settings(ModelSettings, values, "benchmark")), root / "hf")
    peer_processor = AutoProcessor.from_pretrained(root / "hf")
    peer_processor.tokenizer.padding_side = "left"
    dtype = "float32" if device == "cpu" else "bfloat16"
    peer = LlavaForConditionalGeneration.from_pretrained(root / "hf", dtype=dtype).to(device).eval()
    return Pair(*mllm.load(root / "hf", dtype=dtype, device=device), peer, peer_processor, root / "hf")


def words(rng: random.Random, count: int) -> str:
    """A text of so many tokens."""
    return " ".join(f"w{rng.randrange(1000)}" for _ in range(count))


def picture(path: Path, rng: random.Random) -> str:
    """Save a picture of random pixels; returns its path."""
    pixels = Image.frombytes("RGB", (32, 24), rng.randbytes(32 * 24 * 3))
    pixels.resize((320, 240)).save(path)
    return str(path)
