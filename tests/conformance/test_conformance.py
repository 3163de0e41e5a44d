"""Models of transformers compute on packed rows what transformers alone computes of each sample; what doesn't is told."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

import mllm.model.public.model as packed_model
from mllm.batch import NO_PARENT, SegmentBounds
from mllm.conformance.checks import CHECKS, TOLERANCE
from mllm.conformance.families import families
from mllm.conformance.table import page
from mllm.conformance.trying import Conformance, of_family
from tests.helpers.commands import command

# One of each kind: positions along one axis and three, patches of any size, spans that see both ways beside windows.
QUICK = ["llava_next", "qwen2_5_vl", "gemma3", "idefics3"]
LISTED_OF = "5.24."
ROOT = Path(__file__).parents[2]
# Layouts, box formats and readers of data are called what those who published them call them.
NAMED_FORMATS = {"llava", "llava_next", "llava_next_video", "llava_onevision", "internvl", "qwen2_vl"}
ENGLISH = {"git", "aria"}
# A help text says what a layout opens with; a scorer says whose code it follows.
SAID = {"mllm/commands/export.py: LlavaForConditionalGeneration", "mllm/evaluation/benchmarks/chartqa.py: pix2struct"}


@pytest.mark.parametrize("name", QUICK)
def test_a_family_computes_on_packed_rows_what_transformers_alone_computes(name):
    result = of_family(families()[name])
    assert result.conforms, (result.refused, result.failed, result.broken, result.figures)
    assert result.figures.keys() == CHECKS.keys()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("t5gemma2", "encoder–decoder"),
        ("qwen3_5", "linear_attention"),
        ("hy_v4_vl", "indexed_attention"),
        ("florence2", "encoder–decoder"),
    ],
)
def test_a_model_that_packing_cannot_keep_apart_is_refused_in_a_sentence(name, why):
    result = of_family(families()[name])
    assert not result.conforms and result.refused is not None
    assert why in result.refused and "\n" not in result.refused


def test_rows_without_bounds_are_found_to_leak(monkeypatch):
    lay_out = packed_model.lay_out

    def leaking(kernel, batch, dtype):
        width = batch.input_ids.shape[1]
        whole = SegmentBounds.of([[width]] * len(batch.input_ids), [[NO_PARENT]] * len(batch.input_ids), width)
        segments, parents = torch.zeros_like(batch.segment_ids), torch.full_like(batch.parent_segment[:, :1], NO_PARENT)
        return lay_out(kernel, replace(batch, bounds=whole, segment_ids=segments, parent_segment=parents), dtype)

    monkeypatch.setattr(packed_model, "lay_out", leaking)
    result = of_family(families()["llava"])
    assert not result.conforms
    assert {"packed", "gradients", "isolated"} <= set(result.broken)
    assert result.figures["alone"] <= TOLERANCE


@pytest.mark.skipif(not transformers.__version__.startswith(LISTED_OF), reason=f"the list is of {LISTED_OF}x")
def test_every_family_of_transformers_is_on_the_list():
    assert families().keys() == MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.keys()


def test_no_code_knows_a_family_by_its_name():
    names = families().keys() - NAMED_FORMATS - ENGLISH
    words = re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, sorted(names, key=len, reverse=True)))})(?![\w-])")
    classes = re.compile(r"\b\w+(?:ForConditionalGeneration|ForVision2Seq)\b")
    found = {
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in (ROOT / "mllm").rglob("*.py")
        for text in [path.read_text(encoding="utf-8")]
        for pattern in (words, *([classes] if "layouts" not in path.parts else []))
        for match in pattern.finditer(text)
    }
    assert found <= SAID


def test_the_page_holds_a_row_for_each_and_counts_them():
    right, wrong = dict.fromkeys(CHECKS, 0.0), {**dict.fromkeys(CHECKS, 0.0), "packed": 0.5}
    results = [
        Conformance("good", figures=right),
        Conformance("bad", figures=wrong),
        Conformance("other", refused="it is | another"),
        Conformance("odd", failed="it fell"),
    ]
    text = page(results)
    assert "**1 conform, 1 are refused, 2 neither, of 4**" in text
    assert "| good | yes |" in text and "| bad | no |" in text and "| other | it is \\| another |" in text
    assert results[1].broken == ["packed"]


def test_the_command_prints_a_line_of_json_and_ends_with_1_where_a_model_differs(monkeypatch):
    found = {
        "a": Conformance("a", refused="why"),
        "b": Conformance("b", figures={**dict.fromkeys(CHECKS, 0.0), "text": 1}),
    }
    monkeypatch.setattr("mllm.conformance.trying.conformance_of", found.__getitem__)
    out, _ = command("conformance", "a", "--json")
    assert json.loads(out) == {"family": "a", "conforms": False, "refused": "why", "failed": None}
    out, _ = command("conformance", "a", "b", "--json", code=1)
    assert json.loads(out.splitlines()[1])["conforms"] is False


@pytest.mark.parametrize("words", [[], ["nosuch"], ["llava", "--all"]])
def test_a_mistake_is_a_line(words):
    _, said = command("conformance", *words, code=2)
    assert said.startswith("error: ") and len(said.strip().splitlines()) == 1
