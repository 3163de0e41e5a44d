"""How far loss and gradient move when the same samples are packed in another way, in float32 and in bfloat16.

    python benchmarks/exactness.py

A language model of SmolLM2-135M's width with 6 layers, an encoder of CLIP-B/16's width with 3, random weights, ten
conversations on two images. Held against a row a sample.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from measuring import machine, markdown_table
from workloads import CLIP_B16, SMOLLM2_135M, prepare, save_parts, save_recipe, settings_of

PACKINGS = {"samples": "samples in rows", "shared_prefix": "samples in rows, trunks shared"}


def loss_and_gradient(root: Path, dtype: str, packing: str) -> tuple[float, torch.Tensor]:
    """Mean loss over the global batch's targets, and the gradient of every parameter that learns, in one line."""
    settings = settings_of(
        root,
        root / "data" / "recipe.yaml",
        root / "run",
        train={"dtype": dtype, "global_batch_size": 10},
        data={"packing": packing, "max_length_tokens": 1280},
    )
    task, engine = prepare(settings)
    batches = task.window(0, 0, 1).micro_batches
    targets, total = sum(batch.target_count for batch in batches), 0.0
    for number, batch in enumerate(batches):
        with engine.autocast():
            loss = task.loss(engine.module, batch).loss_sum
        engine.backward(loss, 1.0 / targets, last=number == len(batches) - 1)
        total += float(loss.detach())
    gradients = [p.grad.flatten() for p in engine.module.parameters() if p.grad is not None]
    return total / targets, torch.cat(gradients)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        save_parts(root, SMOLLM2_135M | {"num_hidden_layers": 6}, CLIP_B16 | {"num_hidden_layers": 3})
        save_recipe(root / "data", images=2, conversations_per_image=5, text_tokens=(30, 110))
        for dtype in ("float32", "autocast"):
            loss, gradient = loss_and_gradient(root, dtype, "none")
            for packing, name in PACKINGS.items():
                other, moved = loss_and_gradient(root, dtype, packing)
                far = float((moved - gradient).norm() / gradient.norm())
                rows.append([dtype, name, f"{abs(other - loss) / loss:.1e}", f"{far:.1e}"])
    print(machine() + "\n")
    print(markdown_table(["dtype", "packing", "loss, relative", "gradient, relative"], rows))


if __name__ == "__main__":
    main()
