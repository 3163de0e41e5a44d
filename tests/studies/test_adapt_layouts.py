"""Data sets in the layouts of CoOp's and CLAP's authors, made tiny, and what of them is refused."""

import json

import pytest
import torch

from mllm.errors import UserError
from mllm.studies.adapt.layouts import ZHOU, read_domains, read_layout
from mllm.studies.adapt.problem import LabelledFeatures
from mllm.studies.adapt.sources import read_problems
from tests.helpers.tiny import save_image


def images(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        save_image(root / path, (0, 0, 0), (4, 4))


def encode(found, names):
    files, labels = found
    return LabelledFeatures(torch.ones(len(files), 2), torch.tensor(labels), tuple(names), tuple(files))


@pytest.mark.parametrize("name", [*ZHOU, "OfOnesOwn"])
def test_split_files_of_coop_name_parts_classes_and_prompts(name, tmp_path):
    folder, template = ZHOU.get(name, ("", "a photo of a {}."))
    rows = {
        part: [[f"{part}/{n}.jpg", n, word] for n, word in enumerate(("sea_lion", "cat"))]
        for part in ("train", "val", "test")
    }
    images(tmp_path / folder, *(row[0] for part in rows.values() for row in part))
    (tmp_path / f"split_zhou_{name}.json").write_text(json.dumps(rows))
    found = read_layout(tmp_path)
    assert found.names == ("sea lion", "cat") and found.template == template
    assert found.parts["test"] == ([tmp_path / folder / f"test/{n}.jpg" for n in (0, 1)], [0, 1])
    (problem,) = read_problems(str(tmp_path), [], ".", None, encode)
    assert problem.template == template and list(problem.tests) == [tmp_path.name]
    assert [f.parent.name for f in problem.train.held_back.files] == ["val", "val"]
    (tmp_path / folder / "test/1.jpg").unlink()
    with pytest.raises(UserError, match=f"split_zhou_{name}.json names .*test/1.jpg, which does not exist"):
        read_layout(tmp_path)


def test_aircraft_and_imagenets_are_read_as_their_authors_lay_them_out(tmp_path):
    air, net, two, sketch = (tmp_path / name for name in ("fgvc_aircraft", "imagenet", "imagenetv2", "imagenet-sketch"))
    images(air, "images/1.jpg", "images/2.jpg")
    (air / "variants.txt").write_text("707-320\nAn-12\n")
    for part in ("train", "val", "test"):
        (air / f"images_variant_{part}.txt").write_text("1 An-12\n2 707-320\n")
    assert read_layout(air).parts["val"] == ([air / "images/1.jpg", air / "images/2.jpg"], [1, 0])
    images(net, *(f"images/{part}/{folder}/1.jpg" for part in ("train", "val") for folder in ("n01", "n02")))
    images(two / "imagenetv2-matched-frequency-format-val", "0/a.jpg", "1/b.jpg", "1/c.jpg")
    images(sketch / "images", "n02/1.jpg", "n01/1.jpg")
    for root in (net, two, sketch):
        (root / "classnames.txt").write_text("n01 goldfish\nn02 great white shark\n")
        assert read_layout(root).names == ("goldfish", "great white shark")
    assert read_layout(two).parts["test"][1] == [0, 1, 1] and set(read_layout(net).parts) == {"train", "test"}
    (problem,) = read_problems(str(net), [str(net), str(two), str(air)], ".", None, encode)
    assert {name: len(test.labels) for name, test in problem.tests.items()} == {
        "imagenet": 2,
        "imagenetv2": 3,
        "fgvc_aircraft": 2,
    }
    with pytest.raises(UserError, match="is a data set for testing only; name it as --test"):
        read_problems(str(two), [], ".", None, encode)
    (air / "images_variant_val.txt").write_text("1 Boeing\n")
    with pytest.raises(UserError, match=r"names the class 'Boeing', which variants.txt lacks"):
        read_layout(air)


def test_a_folder_of_domains_is_a_problem_for_each_and_their_classes_are_in_small_letters(tmp_path):
    images(tmp_path, *(f"{domain}/{name}/1.jpg" for domain in ("Art", "Real World") for name in ("Alarm_Clock", "bed")))
    assert read_domains(tmp_path)["Art"].names == ("alarm clock", "bed") and read_domains(tmp_path / "Art") == {}
    problems = read_problems(str(tmp_path), [], ".", None, encode)
    assert [list(problem.tests) for problem in problems] == [["Art"], ["Real World"]]
    (problem,) = read_problems(str(tmp_path / "Art"), [str(tmp_path)], ".", ["Alarm Clock", "bed"], encode)
    assert list(problem.tests) == ["Art", "Real World"]
    with pytest.raises(UserError, match="is a folder of domains: name one of them, or leave --test out"):
        read_problems(str(tmp_path), [str(tmp_path)], ".", None, encode)


@pytest.mark.parametrize("text", ["{", '{"train": []}', '{"train": [["a.jpg", "x", "cat"]], "val": [], "test": []}'])
def test_a_split_file_that_is_none_is_one_clear_line(text, tmp_path):
    (tmp_path / "split_zhou_Food101.json").write_text(text)
    with pytest.raises(UserError, match=r'is no split of CoOp .* it holds "train", "val" and "test"'):
        read_layout(tmp_path)
