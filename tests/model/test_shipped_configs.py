"""Every training config that ships loads, follows another or its parts, and plans as many image tokens as were published."""

import re
from functools import cache
from pathlib import Path

import pytest
import torch

from mllm.checkpoint.ours import save
from mllm.checkpoint.start import begin_model
from mllm.commands.train import read_run
from mllm.media.planner import Planner
from mllm.media.tilings import Tiling
from mllm.media.visual import Clip, Size
from mllm.model.planning import build_planner, encoder_geometry, overlaid
from mllm.model.projectors.base import resized_positions
from mllm.model.projectors.resampler import sine_cosine_positions
from mllm.model.settings import ImageSettings, ModelSettings, VideoSettings, VisionEncoderSettings
from mllm.model.tile_tokens import projected
from mllm.resources import find_ds_config
from mllm.settings import read_yaml
from tests.helpers.tiny import tiny_settings

ROOT = Path(__file__).parents[2]
CONFIGS = {
    path.stem: read_run(str(path))
    for path in sorted((ROOT / "train/configs").glob("*.yaml"))
    if "recipe" in read_yaml(path).get("data", {})  # the others train no multimodal LLM
}
BY_END = {f"{config.run_dir}/final": config for config in CONFIGS.values()}
# Pixels of the input's side, and of a patch's, of the encoders that configs name.
ENCODERS = {
    "openai/clip-vit-large-patch14-336": (336, 14),
    "google/siglip-so400m-patch14-384": (384, 14),
    "google/siglip2-so400m-patch16-512": (512, 16),
    "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k": (224, 14),
}


def chain(model: ModelSettings) -> list[ModelSettings]:
    """The model's settings after those of the configs that its run begins with."""
    return [*(chain(BY_END[model.init_from].model) if model.init_from else []), model]


def encoder_of(stages: list[ModelSettings]) -> str:
    assert stages[0].vision_encoder is not None and stages[0].vision_encoder.class_token == "drop"
    return stages[0].vision_encoder.path


# Those of models that were published, or that are too large to be trained here.
NOT_RUN = [name for name in CONFIGS if encoder_of(chain(CONFIGS[name].model)) in ENCODERS]


def planner_of(name: str) -> Planner:
    stages = chain(CONFIGS[name].model)
    image, video = ImageSettings(), VideoSettings()
    for stage in stages:
        image, video = overlaid(image, stage.image), overlaid(video, stage.video)
    trained, patch = ENCODERS[encoder_of(stages)]
    side = next((stage.image_size_px for stage in reversed(stages) if stage.image_size_px), trained)
    geometry = projected(encoder_geometry(side, patch, "drop"), stages[0].projector)
    return build_planner(geometry, image, video)


@cache
def most_tokens(tiling: Tiling) -> int:
    return tiling.longest().token_count


def clip_of(seconds: int, fps: int = 30) -> Clip:
    return Clip(360, 640, tuple(frame / fps for frame in range(seconds * fps)))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_begins_with_parts_or_with_the_end_of_another_and_names_files_that_ship(name: str) -> None:
    config = CONFIGS[name]
    assert config.model.init_from is None or config.model.init_from in BY_END
    assert (ROOT / config.data.recipe).is_file()
    assert config.engine.ds_config is None or find_ds_config(config.engine.ds_config).is_file()


@pytest.mark.parametrize("name", NOT_RUN)
def test_a_config_says_that_it_was_not_run_and_its_longest_image_fits_its_rows(name: str) -> None:
    head = (ROOT / f"train/configs/{name}.yaml").read_text(encoding="utf-8").partition("run_dir")[0]
    assert "Not run by us" in " ".join(head.replace("#", " ").split())
    assert most_tokens(planner_of(name).tiling) < CONFIGS[name].data.max_length_tokens


def test_no_two_configs_write_to_one_directory() -> None:
    assert len(BY_END) == len(CONFIGS)


@pytest.mark.parametrize(
    ("name", "media", "counts"),
    [
        ("llava15_7b_stage2", [(480, 640)], [576]),
        # LLaVA-1.6: 576 and a map of 48 columns, a newline behind each row; 2,880 at most, and newlines.
        ("llava16_7b_stage2", [(480, 640), (1024, 899), (672, 672)], [2340, 2640, 2928]),
        ("onevision_7b_stage1", [(480, 640)], [729]),
        ("onevision_7b_stage1_5", [(768, 768), (3000, 3000)], [3699, 3699]),
        ("onevision_7b_stage2_si", [(384, 384)], [1485]),
        ("onevision_7b_stage2_si", [(480, 640), (1256, 950), (1157, 947)], [2929, 7332, 8765]),
        # LLaVA-OneVision: 729 and a newline for each of several images, 196 a frame and one newline for a video.
        ("onevision_7b_stage2_ov", [(480, 640)], [2929]),
        ("onevision_7b_stage2_ov", [(480, 640), (1157, 947), (9, 9)], [730, 730, 730]),
        ("onevision_7b_stage2_ov", [clip_of(60)], [32 * 196 + 1]),
        ("onevision_7b_stage2_ov", [clip_of(10)], [10 * 196 + 1]),
        ("llava_video_7b", [clip_of(600)], [64 * 14 * 15]),
        ("llava_video_7b", [(480, 640)], [2929]),
        # InternVL: 256 a tile, and a thumbnail where there is more than one.
        ("grid_1b_stage2", [(512, 512)], [256]),
        ("grid_1b_stage1", [(1536, 2048)], [13 * 256]),
        ("grid_1b_stage2", [(1536, 2048)] * 2, [7 * 256] * 2),
        # Qwen-VL: 256 queries at 224 px and at 448.
        *((f"qwen_vl_7b_stage{number}", [(480, 640), (9, 9)], [256, 256]) for number in (1, 2, 3)),
    ],
)
def test_a_config_plans_the_tokens_that_were_published(name: str, media: list[Size | Clip], counts: list[int]) -> None:
    assert [visual.token_count for visual in planner_of(name).plan(media)] == counts


@pytest.mark.parametrize("stage", ["stage1", "stage1_5", "stage2_si", "stage2_ov"])
def test_the_sizes_of_llava_onevision_differ_in_the_language_model_and_the_engine_alone(stage: str) -> None:
    small, large = (CONFIGS[f"onevision_{size}_{stage}"].model_dump() for size in ("0.5b", "7b"))
    small["engine"]["ds_config"] = large["engine"]["ds_config"]
    if small["model"]["language_model"]:
        small["model"]["language_model"]["path"] = large["model"]["language_model"]["path"]
    assert {**small, "run_dir": "", "model": ""} == {**large, "run_dir": "", "model": ""}
    assert str(small["model"]).replace("onevision_0.5b", "onevision_7b") == str(large["model"])


def shrunken(model: ModelSettings, side: int, start: Path) -> ModelSettings:
    """A later stage's settings for an encoder of `side` pixels instead of 384, beginning with the model at `start`."""
    pinpoints = tuple((a * side // 384, b * side // 384) for a, b in model.image.pinpoints)
    image = model.image.model_copy(update={"pinpoints": pinpoints} if pinpoints else {})
    return model.model_copy(update={"init_from": str(start), "image": image})


def test_the_stages_of_llava_onevision_follow_each_other_on_a_tiny_model(tiny_parts: Path, tmp_path: Path) -> None:
    stages = chain(CONFIGS["onevision_7b_stage2_ov"].model)
    first = tiny_settings(tiny_parts, "siglip", stages[0].prompt_format).model_copy(update={"image": stages[0].image})
    newlines: list[torch.Tensor] = []
    counts: list[list[int]] = []
    settings = first
    for number in range(len(stages)):
        model, processor = begin_model(settings, {}, seed=number).filled()
        newline = model.projector.image_newline
        assert (newline is None) == (number == 0)
        newlines += [] if newline is None else [newline.detach().clone()]
        counts.append([v.token_count for v in processor.planner.plan([(32, 32), (32, 32)])])
        save(tmp_path / str(number), model, processor)
        if number + 1 < len(stages):
            settings = shrunken(stages[number + 1], processor.geometry.image_size_px, tmp_path / str(number))
    assert all(torch.equal(newlines[0], later) for later in newlines)  # drawn with the first tiles
    whole = processor.geometry.tokens_per_tile
    rows = 2 * processor.geometry.side  # of a map of 2 × 2 tiles
    assert counts[0] == [whole] * 2 and counts[3] == [whole + 1] * 2
    assert counts[1] == counts[2] == [whole + rows**2 + rows] * 2


def test_the_stages_of_qwen_vl_see_larger_tiles_through_the_same_queries_on_a_tiny_model(
    tiny_parts: Path, tmp_path: Path
) -> None:
    stages = [CONFIGS[f"qwen_vl_7b_stage{number}"] for number in (1, 2, 3)]
    assert chain(stages[2].model) == [stage.model for stage in stages]
    assert [planner_of(f"qwen_vl_7b_stage{number}").geometry.grid for number in (1, 2, 3)] == [16, 32, 32]
    learns = [(s.trainable.vision_encoder, s.trainable.projector, s.trainable.language_model) for s in stages]
    assert learns == [("full", "full", "frozen"), ("full", "full", "full"), ("frozen", "full", "full")]
    assert [s.optim.layer_decay_vision_encoder for s in stages] == [0.95, 0.95, 1.0]
    first = stages[0].model
    assert first.vision_encoder is not None and first.vision_encoder.feature_layer == -1
    settings = tiny_settings(tiny_parts, "clip", first.prompt_format, kind=first.projector.kind, tokens=9)
    tables: list[torch.Tensor] = []
    for number, stage in enumerate(stages):
        if number:
            # 4 × 4 patches of 16 px stand for 16 × 16 of 224, 8 × 8 of 32 px for 32 × 32 of 448.
            shrunk = stage.model.image_size_px and stage.model.image_size_px // 14
            changes = {"init_from": str(tmp_path / str(number - 1)), "vision_encoder": None}
            if shrunk:
                changes["vision_encoder"] = VisionEncoderSettings(image_size_px=shrunk)
            settings = stage.model.model_copy(update=changes)
        model, processor = begin_model(settings, {}, seed=number).filled()
        assert [v.token_count for v in processor.planner.plan([(32, 32), (9, 9)])] == [9, 9]
        assert processor.geometry.image_size_px == (16 if number == 0 else 32)
        tables.append(model.projector.attention.key_positions)  # type: ignore[union-attr]
        save(tmp_path / str(number), model, processor)
    assert [len(table) for table in tables] == [16, 64, 64]
    assert torch.equal(tables[1], resized_positions(sine_cosine_positions(32, 3), 8))


def test_the_pages_table_of_costs_is_what_the_configs_plan() -> None:
    page = (ROOT / "docs/how-to/any_resolution.md").read_text(encoding="utf-8")
    head, _, *rows = page.partition("<!-- counts: ")[2].partition("<!-- /counts")[0].splitlines()[1:]
    names = re.findall(r": (\w+) \|", head)
    assert len(rows) == 9 and len(names) == 4
    for row in rows:
        number, width, height = re.match(r"\| (?:(\d+) × )?(\d+)×(\d+) \|", row).groups()  # type: ignore[union-attr]
        planned = [planner_of(name).plan([(int(height), int(width))] * int(number or 1)) for name in names]
        costs = [f"{sum(v.tile_count for v in each)} · {sum(v.token_count for v in each):,}" for each in planned]
        assert row.endswith(f" | {' | '.join(costs)} |")
