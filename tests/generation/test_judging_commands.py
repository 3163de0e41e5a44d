"""`mllm generate eval` and `data` from a generator to files, and mistakes as lines."""

import json
import shutil

import pytest

from tests.helpers.commands import command

RULE = """
from PIL import Image


def judge(caption, attempt):
    red, _, blue = Image.open(attempt.images[-1]).convert("RGB").resize((1, 1)).getpixel((0, 0))
    return {"reddish": red >= blue, "seen": 1}
"""


@pytest.fixture
def rule(tmp_path):
    (tmp_path / "rule.py").write_text(RULE)
    return f"{tmp_path / 'rule.py'}:judge"


@pytest.fixture
def questions(tmp_path):
    asked = [{"question": "what colour is it?", "answer": "red", "type": "color"}]
    lines = [{"prompt": f"a {name} square", "questions": asked} for name in ("red", "blue")]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return tmp_path / "questions.jsonl"


def test_a_generator_is_drawn_from_and_scored_once_and_its_own_clip_is_warned_of(
    saved, clip, pairs, rule, questions, tmp_path
):
    words = ("generate", "eval", saved, tmp_path / "out", "--clip", clip, "--questions", questions, "-n", "3")
    words += ("--guidance", "0", "2", "--steps", "2", "--real", pairs, "--training", pairs, "--rule", rule)
    printed, _ = command(*words)
    assert "warning: The judging CLIP is the one that" in printed and "judge/reddish" in printed
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    assert list(scores["sets"]) == ["guidance 0", "guidance 2", "real images"]
    drawn = scores["sets"]["guidance 2"]
    assert drawn["figures"]["pictures"]["value"] == 6 and drawn["figures"]["r_candidates"]["value"] == 5
    assert {"clip_t", "clip_i", "kid", "cmmd", "precision", "diversity", "copies"} <= drawn["figures"].keys()
    assert {"gap", "accuracy_of_worst_prompt"} <= drawn["feature_space"].keys()
    assert drawn["captions"]["a red square"]["judge/seen"] == 1
    assert scores["sets"]["real images"]["figures"]["copies"]["value"] == 1
    page = (tmp_path / "out/index.html").read_text()
    assert "over guidance" in page and "data:image/png" in page
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.png")}
    assert len(before) == 12
    command(*words, "--show", f"once more={tmp_path / 'out/guidance_2'}")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.png")} == before
    assert "once more" in (tmp_path / "out/index.html").read_text()


def test_pictures_become_data_and_a_second_time_nothing_is_drawn(saved, rule, questions, tmp_path):
    words = ("generate", "data", saved, tmp_path / "out", "--questions", questions, "-n", "2", "--steps", "2")
    words += ("--rule", rule, "--least", "judge/seen=1")
    printed, _ = command(*words)
    assert "4 of 4 pictures kept: 4 in captions.jsonl, 4 in instruct.jsonl" in printed
    command("data", "validate", tmp_path / "out/recipe.yaml", "--jobs", "1")
    lines = (tmp_path / "out/pictures.jsonl").read_text()
    assert command(*words)[0].splitlines()[-2:] == printed.splitlines()[-2:]
    assert (tmp_path / "out/pictures.jsonl").read_text() == lines
    _, said = command(*words[:-1], "judge/seen=2", code=2)
    assert "made.json holds other settings: least is" in said


def test_mistakes_are_lines(saved, clip, pairs, rule, questions, tmp_path):
    wrong = tmp_path / "wrong_clip"
    shutil.copytree(clip, wrong)
    config = json.loads((wrong / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 2
    (wrong / "config.json").write_text(json.dumps(config))
    evaluate = ("generate", "eval", pairs, tmp_path / "out", "--clip")
    make = ("generate", "data", saved, tmp_path / "data")
    for words, reason in (
        ((*evaluate, wrong), "reads the feature of a text at its highest id"),
        ((*evaluate, clip, "--show", "edits"), "--show edits: give TITLE=DIR"),
        ((*evaluate, clip, "--judge", "nobody"), "--judge asks questions; give them with --questions, or --vqa-score"),
        ((*evaluate, clip, "--vqa-score"), "--vqa-score asks a multimodal LLM; name it with --judge"),
        ((*evaluate, clip, "--rule", "rule.py"), "rule rule.py: give it as path.py:function"),
        (
            ("generate", "eval", saved, tmp_path / "out", "--clip", clip),
            "it needs prompts: give --prompts or --questions",
        ),
        ((*make,), "nothing to draw: give --prompts or --questions"),
        ((*make, "--questions", questions, "--least", "both"), "--least both: give NAME=NUMBER"),
        ((*make, "--questions", questions, "--guidance", "nan"), "'nan' is no finite number"),
        (
            (*make, "--questions", questions, "--rule", rule, "--least", "both=1"),
            "threshold on both, which nobody judges",
        ),
        (
            ("generate", "invert", saved, pairs, "--token", "<a>", "--score-prompt", "a {}"),
            "name who scores with --clip",
        ),
        (("generate", "lora", saved, "a.png"), "--prompt: say what IMAGES show"),
        (("generate", "lora", saved), "give IMAGES with --prompt, or --pairs"),
    ):
        _, said = command(*words, code=2)
        assert reason in said and "Traceback" not in said, said
