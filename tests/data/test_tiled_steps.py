"""Steps of samples whose images are measured: laid out alike on every rank, nothing opened that may not be, odd input."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from mllm.checkpoint.geometry import layout_of_settings
from mllm.checkpoint.start import build, load_processor
from mllm.cli import _command
from mllm.data.counts import can_be_counted
from mllm.data.dataset import Mixture
from mllm.data.example import render_example
from mllm.data.recipe import RecipeSettings, SourceSettings
from mllm.data.settings import DataSettings
from mllm.data.show import coloured_tokens
from mllm.data.sizes import estimated_image_tokens
from mllm.errors import UserError
from mllm.finetune.task import InstructionTask
from mllm.model.settings import ModelSettings
from mllm.settings import validate_settings
from mllm.training.settings import LoopSettings
from tests.helpers.layouts import LAYOUTS, make_up_clips, tiled_settings
from tests.helpers.tiny import save_image, tiny_settings

SIZES = {"small": (16, 16), "wide": (60, 16), "high": (16, 40), "large": (40, 40)}


def record(name, files, words="what is this", kinds=None):
    """A sample of a question about `files`, which are images unless `kinds` says otherwise."""
    kinds = kinds or ["image"] * len(files)
    content = [*({"type": kind} for kind in kinds), {"type": "text", "text": words}]
    answer = {"role": "assistant", "content": "yes " * (len(name) + 1)}
    lists = {f"{kind}s": [file for file, own in zip(files, kinds, strict=True) if own == kind] for kind in set(kinds)}
    return {"id": name, "images": [], "messages": [{"role": "user", "content": content}, answer]} | lists


def mixture_of(root, records):
    (root / "s.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    source = SourceSettings(path=str(root / "s.jsonl"), image_root=str(root))
    return Mixture(RecipeSettings(name="test", sources=(source,)), 0, False)


@pytest.fixture
def images(tmp_path):
    for name, size in SIZES.items():
        save_image(tmp_path / f"{name}.png", (len(name) * 20, 90, 10), size)
    return tmp_path


def task_of(mixture, processor, **data):
    settings = DataSettings(recipe="-", max_length_tokens=500, workers=0, **data)
    return InstructionTask(mixture, processor, settings, LoopSettings(global_batch_size=12, micro_batch_size=2))


@pytest.mark.parametrize("packing", ["none", "samples", "shared_prefix"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranks_share_a_steps_tiles_targets_and_tokens_whatever_their_number(tiny_parts, images, layout, packing):
    names = [f"{name}.png" for name in SIZES]
    shown = [names[n % 4 : n % 4 + n % 3] for n in range(12)]
    mixture = mixture_of(images, [record(f"s{n}", own) for n, own in enumerate(shown)])
    processor = load_processor(tiled_settings(tiny_parts, layout))
    seen = set()
    for ranks in (1, 2, 3):
        windows = [task_of(mixture, processor, packing=packing).window(0, rank, ranks) for rank in range(ranks)]
        assert len({len(window.micro_batches) for window in windows}) == 1
        assert len({(window.sample_ids, window.layout) for window in windows}) == 1
        real = [m for window in windows for m in window.micro_batches if m.target_count]
        tiles = sorted(tile.sum().item() for m in real if m.inputs.tiles is not None for tile in m.inputs.tiles)
        seen.add((sum(m.target_count for m in real), tuple(tiles) if packing == "none" else ()))
    assert len(seen) == 1


def test_an_image_outside_the_root_is_not_opened_to_be_measured(tiny_parts, images, monkeypatch):
    (images / "root").mkdir()
    (images / "root" / "link.png").symlink_to(images / "large.png")
    save_image(images / "root" / "own.png")
    mixture = mixture_of(images / "root", [record("bad", ["link.png"]), record("good", ["own.png"])])
    opened = []
    monkeypatch.setattr("mllm.processor.read_image_size", lambda source: opened.append(source) or (12, 20))
    task = task_of(mixture, load_processor(tiled_settings(tiny_parts, "anyres")), on_bad_sample="skip")
    ((name, kind, reason),) = task.window(0, 0, 1).skipped
    assert (name, kind) == ("bad", "image") and "leaves the image root" in reason
    assert opened == [str(images / "root" / "own.png")]


def test_a_rank_that_cannot_measure_an_image_is_told_by_its_layout(tiny_parts, images, monkeypatch):
    mixture = mixture_of(images, [record("a", ["small.png"]), record("b", ["large.png"])])
    processor = load_processor(tiled_settings(tiny_parts, "grid"))
    task = task_of(mixture, processor, on_bad_sample="skip")
    whole = task.window(0, 0, 2)

    def fail(source):
        raise UserError("the disk is away")

    monkeypatch.setattr(
        "mllm.processor.read_image_size", lambda source: fail(source) if "large" in source else (16, 16)
    )
    without = task.window(0, 1, 2)
    assert whole.layout != without.layout and [kind for _, kind, _ in without.skipped] == ["image"]


def test_counts_on_the_disk_are_for_what_no_file_decides(tiny_parts, images, index_cache):
    processors = [load_processor(tiled_settings(tiny_parts, layout)) for layout in ("square", "grid")]
    squares = mixture_of(images, [record("a", ["small.png"], 'a "type":"video"')])
    assert [can_be_counted(squares, processor) for processor in processors] == [True, False]
    (images / "film").mkdir()
    clips = mixture_of(images / "film", [record("b", ["film.mp4"], kinds=["video"])])
    assert not can_be_counted(clips, processors[0])


def test_samples_are_grouped_by_the_tokens_of_their_images_own_sizes(tiny_parts, images, monkeypatch):
    make_up_clips(monkeypatch)
    (images / "film.mp4").write_bytes(b"a clip")
    records = [
        record("one", ["small.png"]),
        record("two", ["small.png", "large.png"]),
        record("none", []),
        record("film", ["film.mp4"], kinds=["video"]),
    ]
    for layout in ("square", "grid"):
        processor = load_processor(tiled_settings(tiny_parts, layout))
        mixture = mixture_of(images, records)
        task = task_of(mixture, processor, packing="none", group_by_length=True)
        assert sorted(task.sample_indices(0)) == [0, 1, 2, 3]
        found = estimated_image_tokens(mixture, processor).tolist()
        planned = [processor.planner.plan(sizes) for sizes in ([(16, 16)], [(16, 16), (40, 40)], [])]
        wanted = [sum(visual.token_count for visual in visuals) for visuals in planned]
        assert found[:3] == wanted and (layout == "square" or found[3] == processor.planner.longest_clip().token_count)


@pytest.mark.parametrize("layout", ["anyres", "anyres_original", "anyres_max", "grid"])
@pytest.mark.parametrize("size", [(1, 1), (4000, 4), (3, 3000), (1000, 1), (17, 16)])
def test_an_image_of_any_shape_is_trained_on(tiny_parts, tmp_path, layout, size):
    Image.new("RGB", size, (9, 99, 199)).save(tmp_path / "odd.png")
    model, processor = build(tiled_settings(tiny_parts, layout))
    task = task_of(mixture_of(tmp_path, [record("odd", ["odd.png"])]), processor)
    (micro_batch,) = task.window(0, 0, 1).micro_batches
    loss = model.train()(micro_batch.inputs)
    loss.backward()
    assert torch.isfinite(loss) and all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("image", "projector", "said"),
    [
        (
            {"tiling": "anyres", "pinpoints": [[16, 40]]},
            {},
            r"pinpoints: \[16, 40\] is no multiple of the encoder's 16 px",
        ),
        ({"tiling": "anyres", "max_tiles": 1}, {}, r"max_tiles is 1, and every one of model.image.pinpoints has more"),
        ({"tiling": "anyres"}, {"shuffle": 3}, r"projector.shuffle: a grid of 4×4 patches can't be shuffled by 3"),
        ({"tiling": "mosaic"}, {}, r"unknown tiling 'mosaic'.*anyres.*grid"),
    ],
)
def test_settings_that_do_not_fit_the_encoder_are_one_line_before_anything_is_read(tiny_parts, image, projector, said):
    settings = tiny_settings(tiny_parts, **projector)
    changed = validate_settings(ModelSettings, settings.model_dump() | {"image": image}, "test")
    for read in (layout_of_settings, load_processor):
        with pytest.raises(UserError, match=said) as caught:
            read(changed)
        assert "\n" not in str(caught.value)


def test_validate_lists_what_has_too_many_image_tokens_and_a_report_shows_tiles(tiny_parts, images):
    mixture_of(images, [record("fits", ["small.png"]), record("over", ["small.png", "large.png"])])
    recipe, config, found, page = (str(images / name) for name in ("r.yaml", "c.yaml", "found.jsonl", "page.html"))
    source = {"path": str(images / "s.jsonl"), "image_root": str(images)}
    (images / "r.yaml").write_text(yaml.safe_dump({"name": "r", "sources": [source]}))
    model = tiny_settings(tiny_parts).model_dump(exclude_unset=True)
    model["image"] = {"tiling": "grid", "max_image_tokens": 150}
    values = {"run_dir": "run", "model": model, "data": {"recipe": recipe}, "optim": {"lr": 1e-3}}
    (images / "c.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match="1 problems"):
        _command(["data", "validate", recipe, "--config", config, "--list", found])
    (problem,) = map(json.loads, Path(found).read_text().splitlines())
    assert problem["kind"] == "too_many_image_tokens" and "16 + 160 = 176 image tokens" in problem["reason"]
    _command(["data", "report", recipe, "--out", page, "--config", config])
    written = (images / "page.html").read_text()
    assert "tiles of an image" in written and "1 images become more image tokens" in written


def test_tiles_and_frames_are_shown_with_the_tokens_that_they_become(tiny_parts, images, monkeypatch):
    make_up_clips(monkeypatch)
    (images / "film.mp4").write_bytes(b"a clip")
    processor = load_processor(tiled_settings(tiny_parts, "grid"))
    samples = mixture_of(
        images, [record("a", ["small.png", "film.mp4", "wide.png"], kinds=["image", "video", "image"])]
    )
    example = render_example(samples.samples[0], processor, 500)
    shown = coloured_tokens(example, processor).plain
    assert "[image × 16][video × 32, 2 frame(s)][image × 64, 4 tiles]what" in shown.replace("↵\n", "")
