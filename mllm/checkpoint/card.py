"""A model card out of what lies beside a model: the settings of its run, and its scores."""

import json
from pathlib import Path
from typing import Any

import yaml

from mllm.model.multimodal import MultimodalLM
from mllm.processor import Processor

_USE = {
    "hf": """    from transformers import pipeline
    ask = pipeline("image-text-to-text", model="THIS DIRECTORY")
    parts = [{"type": "image", "url": "cat.png"}, {"type": "text", "text": "What is this?"}]
    print(ask(text=[{"role": "user", "content": parts}], max_new_tokens=64))""",
    "gguf": """    python convert_hf_to_gguf.py "THIS DIRECTORY" --outfile model.gguf        # a script of llama.cpp
    llama-server -m model.gguf --mmproj "THIS DIRECTORY/mmproj.gguf\"""",
    "mllm": """    mllm chat "THIS DIRECTORY" --image cat.png -p "What is this?\"""",
}


def model_card(path: Path, model: MultimodalLM, processor: Processor, layout: str) -> str:
    """Write README.md for the model loaded from `path`: parts, data, recipe and scores, as far as they are on disk."""
    language_model, encoders = model.language_model.config, model.vision_encoder.encoders
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    parts = [
        *(
            f"- vision encoder: {encoder.config.model_type}, {encoder.image_size_px} px in patches of "
            f"{encoder.patch_size_px}, layer {encoder.feature_layer}"
            for encoder in encoders
        ),
        f"- projector: {model.projector_settings.kind}; an image is {_image_tokens(model, processor)}",
        f"- language model: {language_model.model_type}, width {language_model.hidden_size}, "
        f"{language_model.num_hidden_layers} layers",
        f"- prompt format: {processor.format_name}; images are fitted by: {processor.preparer.fit}",
        f"- box format: {processor.box_format}",
    ]
    sections = [
        "---\nlibrary_name: transformers\npipeline_tag: image-text-to-text\ntags: [llava, mllm]\n---",
        f"# A multimodal language model of {millions:,.1f} million parameters",
        "\n".join(parts),
        f"## Use\n\n{_USE[layout]}",
        f"## Data and recipe\n\n{_recipe(path)}",
        f"## Scores\n\n{_scores(path)}",
    ]
    return "\n\n".join(sections) + "\n"


def _image_tokens(model: MultimodalLM, processor: Processor) -> str:
    """How many tokens an image is, and in how many tiles where that depends on its size."""
    planner, side = processor.planner, processor.geometry.image_size_px
    (image,) = planner.plan([(side, side)])
    if not planner.depends_on_size:
        return f"{image.token_count} tokens"
    longest = planner.longest()
    return (
        f"cut into tiles ({model.image_settings.tiling}): {image.token_count} tokens for one of {side}×{side} px, at most "
        f"{longest.token_count} tokens in {longest.tile_count} tiles"
    )


def _recipe(path: Path) -> str:
    file = path / "run_config.yaml"
    if not file.is_file():
        return "Not recorded beside the model."
    settings: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).rstrip()
    return f"Trained on the recipe `{settings['data']['recipe']}` with these settings:\n\n```yaml\n{text}\n```"


def _scores(path: Path) -> str:
    """Make a table of `eval/results.json`, which the evaluation writes beside a run's model."""
    file = next((f for f in (path / "eval/results.json", path.parent / "eval/results.json") if f.is_file()), None)
    if file is None:
        return "Not measured."
    results = json.loads(file.read_text(encoding="utf-8"))
    lines = ["| benchmark | condition | questions | score, % | 95% interval |", "| --- | --- | --- | --- | --- |"]
    for benchmark, entries in results["scores"].items():
        for entry in entries:
            if entry["type"] == "overall":
                interval = f"{100 * entry['low']:.1f}–{100 * entry['high']:.1f}"
                cells = (benchmark, entry["condition"], entry["count"], f"{100 * entry['score']:.1f}", interval)
                lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)
