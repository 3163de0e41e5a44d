"""Zero-shot classification as published: prompts, names, layouts, measures and frequencies of concepts."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from mllm.cli import build_parser
from mllm.contrastive.class_names import named_folders
from mllm.contrastive.class_scores import classification_scores, f1_of_classes, macro_f1
from mllm.contrastive.concepts import Concept, by_frequency, caption_files, count_concepts, read_captions, read_concepts
from mllm.contrastive.labelled import read_captioned, read_groups, read_labelled
from mllm.contrastive.prompts import imagenet_names, published_ensembles, read_templates
from mllm.contrastive.zeroshot import check_templates
from mllm.errors import UserError
from tests.helpers.clip import COLOURS
from tests.helpers.open_clip import open_clip
from tests.helpers.tiny import save_image

__all__ = ["open_clip"]


def clip(*arguments):
    options = build_parser().parse_args(["clip", *map(str, arguments)])
    options.run(options)


def save_classes(root, names=tuple(COLOURS), prefix=""):
    for name in names:
        (root / f"{prefix}{name}").mkdir(parents=True)
        save_image(root / f"{prefix}{name}" / "one.png", COLOURS[name], (16, 16))
    return root


def test_the_published_ensembles_have_a_place_for_the_name_and_imagenets_are_open_clips(open_clip):
    counts = {"imagenet": 80, "imagenet_7": 7, "cifar10": 18, "caltech101": 34, "ucf101": 48, "oxford_pets": 1}
    for name, templates in published_ensembles().items():
        check_templates(templates)
        assert len(templates) == len(set(templates)) == counts.get(name, len(templates))
    theirs = open_clip("zero_shot_metadata")
    assert read_templates("imagenet") == [template("{}") for template in theirs.OPENAI_IMAGENET_TEMPLATES]
    names = imagenet_names()
    assert list(names.values()) == list(theirs.IMAGENET_CLASSNAMES)


def test_folders_are_named_by_a_file_whatever_its_form_and_fewer_than_the_names(tmp_path):
    folders = ["n01440764", "n01443537"]
    forms = {
        "tab.txt": "n01440764\ttench\nn01443537\tgold fish\nn9\tx\n",
        "synsets.txt": "n01440764 tench, Tinca tinca\nn01443537 gold fish, Carassius auratus\n",
        "map.json": json.dumps({"n01440764": "tench", "n01443537": "gold fish"}),
        "index.json": json.dumps({"0": ["n01440764", "tench"], "1": ["n01443537", "gold_fish"], "2": ["n2", "x"]}),
        "names.txt": "tench\ngold fish\n",
    }
    for name, text in forms.items():
        (tmp_path / name).write_text(text)
        assert named_folders(folders, tmp_path / name) == ["tench", "gold fish"], name
    assert named_folders(["1", "0"], tmp_path / "names.txt") == ["gold fish", "tench"]  # ImageNet-V2's folders
    assert named_folders(["big_cat"], None) == ["big cat"]
    with pytest.raises(UserError, match=r"tab\.txt has no name for the class 'n01'"):
        named_folders(["n01", *folders], tmp_path / "tab.txt")


def test_measures_are_those_worked_out_by_hand_and_intervals_hold_them():
    truth, guess = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 0, 2]
    scores = torch.eye(5)[guess] + 0.1 * torch.eye(5)[truth]
    found = classification_scores(scores, truth, [1, 2])
    assert found["accuracy@1"].value == 4 / 6 and found["accuracy@2"].value == 1.0
    assert found["mean_per_class"].value == pytest.approx((2 / 3 + 1 / 2 + 1) / 3, abs=1e-12)
    # scikit-learn's f1_score(truth, guess, average="macro"): 2/3, 1/2 and 1; classes nobody has or names don't count
    assert found["macro_f1"].value == pytest.approx((2 / 3 + 1 / 2 + 1) / 3, abs=1e-12)
    assert (found["accuracy@1"].chance, found["accuracy@2"].chance, found["macro_f1"].chance) == (0.2, 0.4, None)
    assert all(score.low <= score.value <= score.high for score in found.values())
    assert np.isnan(f1_of_classes(np.array([0]), np.array([0]), np.ones(1), 2)[1])
    assert macro_f1(np.array([0, 1]), np.array([1, 1]), np.array([1.0, 1.0])) == pytest.approx(
        1 / 3
    )  # guessed never: 0


def test_a_folder_is_scored_with_names_prompts_and_a_picture(trained, tmp_path, capsys):
    folder = save_classes(tmp_path / "data", prefix="c_")
    (folder / "c_red" / "broken.png").write_bytes(b"no image")
    (tmp_path / "names.txt").write_text("".join(f"c_{name}\t{name}\n" for name in (*COLOURS, "teal")))
    (tmp_path / "counts.csv").write_text("concept,group,count,percent\nred,,9,1\nblue,,2,1\nteal,,1,1\n")
    common = [trained / "run", "--folder", folder, "--class-file", tmp_path / "names.txt"]
    clip("eval", *common, "--template", "a {} square", "--frequencies", tmp_path / "counts.csv")
    result = json.loads(capsys.readouterr().out)
    assert result["accuracy@1"] == result["mean_per_class"] == result["macro_f1"] == 1.0
    assert (result["images"], result["unreadable"], result["chance@1"]) == (4, 1, 0.25)
    assert result["accuracy@1_interval"] == [1.0, 1.0]
    assert result["by_frequency"]["classes"] == 2 and result["by_frequency"]["rank_correlation"] is None
    clip("eval", *common, "--bare", "-k", 2, "--table", "--confusion", tmp_path / "confusion.png")
    out = capsys.readouterr().out
    assert "accuracy@2" in out and "50.0" in out and Image.open(tmp_path / "confusion.png").width > 100


def test_groups_are_choices_of_their_own_in_the_authors_layout(trained, tmp_path, capsys):
    save_classes(tmp_path / "common" / "Warm", ["red", "black"])
    save_classes(tmp_path / "common" / "Cold", ["blue", "green"])
    assert {name: own.names for name, own in read_groups(tmp_path).items()} == {
        "Cold": ["blue", "green"],
        "Warm": ["black", "red"],
    }
    assert read_groups(tmp_path / "common").keys() == {"Cold", "Warm"}
    clip("eval", trained / "run", "--folder", tmp_path, "--groups", "--template", "a {} square")
    result = json.loads(capsys.readouterr().out)
    assert result["mean_macro_f1_of_groups"] == 1.0 and result["groups"]["Cold"]["chance@1"] == 0.5
    save_classes(tmp_path / "sole" / "One", ["red"])
    with pytest.raises(UserError, match=r"the group One has 1 class folder"):
        read_groups(tmp_path)


def write_shard(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def png(colour):
    out = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(out, "png")
    return out.getvalue()


def test_clip_benchmarks_webdatasets_are_read_with_their_names_and_prompts(trained, tmp_path, capsys):
    root = tmp_path / "wds"
    for number, (name, colour) in enumerate(COLOURS.items()):
        write_shard(root / "test" / f"{number}.tar", {f"s{name}.png": png(colour), f"s{name}.cls": b"%d" % number})
    (root / "classnames.txt").write_text("\n".join(COLOURS) + "\n")
    (root / "zeroshot_classification_templates.txt").write_text("a {c} square\n")
    data = read_labelled(root)
    assert data.labels == [0, 1, 2, 3] and data.templates == ["a {} square"]
    clip("eval", trained / "run", "--folder", root)
    assert json.loads(capsys.readouterr().out)["accuracy@1"] == 1.0
    write_shard(root / "test" / "9.tar", {"x.png": png("red"), "x.cls": b"4"})
    with pytest.raises(UserError, match=r"9\.tar:x: class '4' is no place in 4 class names"):
        read_labelled(root)
    captions = tmp_path / "captions"
    for name, colour in COLOURS.items():
        write_shard(
            captions / "test" / f"{name}.tar", {"a.png": png(colour), "a.txt": f"{name}\na {name} square".encode()}
        )
    (captions / "dataset_type.txt").write_text("retrieval\n")
    assert len(read_captioned(captions)) == 8
    clip("eval", trained / "run", "--folder", captions, "-k", 1)
    result = json.loads(capsys.readouterr().out)
    assert (result["images"], result["captions"], result["image_to_text_recall@1"]) == (4, 8, 1.0)
    with pytest.raises(UserError, match="--groups is of classes"):
        clip("eval", trained / "run", "--folder", captions, "--groups")


def test_concepts_are_counted_once_a_caption_as_whole_words(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("Ice-cream for the team\nice, cream\n\nTEA tea\nPuppy and dog\n")
    (tmp_path / "b.jsonl").write_text('{"caption": "a dog"}\n{"TEXT": "dogs"}\n')
    (tmp_path / "c.yaml").write_text("Food:\n  ice cream: []\n  tea: [chai]\nAnimal:\n  dog: [puppy]\n")
    concepts = read_concepts(tmp_path / "c.yaml")
    assert concepts[2] == Concept("dog", "Animal", ("dog", "puppy"))
    captions = list(read_captions([tmp_path / "a.txt", tmp_path / "b.jsonl"]))
    found, total = count_concepts(captions, concepts)
    assert total == 6 and [f.count for f in found] == [2, 1, 2]
    with pytest.raises(UserError, match=r"captions .*nowhere\.txt does not exist"):
        caption_files([tmp_path / "nowhere.txt"])
    (tmp_path / "d.csv").write_text("image,words\n1.png,a dog\n")
    with pytest.raises(UserError, match="no caption; expected one of the fields caption, TEXT"):
        list(read_captions(caption_files([tmp_path / "d.csv"])))
    within, _ = count_concepts(captions, concepts, within_words=True)
    assert [f.count for f in within] == [0, 2, 3]
    clip(
        "concepts",
        tmp_path / "a.txt",
        tmp_path / "b.jsonl",
        "--concepts",
        tmp_path / "c.yaml",
        "--out",
        tmp_path / "f.csv",
    )
    assert "3 concepts in 6 captions" in capsys.readouterr().out
    assert "dog,Animal,2,33.3333" in (tmp_path / "f.csv").read_text()
    recalls = {"dog": 0.9, "tea": 0.2, "ice cream": 0.8, "unknown": 0.0}
    compared = by_frequency(recalls, {"dog": 9, "tea": 1, "ice cream": 5})
    assert compared["rank_correlation"] == 1.0 and [q["captions"] for q in compared["quarters"]] == [
        [1, 1],
        [5, 5],
        [9, 9],
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--folder", "EMPTY"], "empty holds no image files"),
        (["--folder", "DATA", "--templates", "TEXT"], r"prompt template 'a photo' must hold \{\} once"),
        (["--folder", "DATA", "--templates", "cifar"], "the published ensembles are birdsnap, caltech101, cifar10"),
        (["--folder", "DATA", "--frequencies", "TEXT"], "is no file of concepts' frequencies"),
        (["--folder", "DATA", "-k", "0"], "-k 0: give at least 1"),
        (["--pairs", "TEXT", "--class-file", "TEXT"], "--class-file is of classes"),
    ],
)
def test_bad_zero_shot_input_is_one_clear_line(trained, tmp_path, arguments, message):
    save_classes(tmp_path / "data", ["red", "blue"])
    (save_classes(tmp_path / "some", ["red"]) / "empty").mkdir()
    (tmp_path / "text.txt").write_text("a photo\n")
    places = {"EMPTY": tmp_path / "some", "DATA": tmp_path / "data", "TEXT": tmp_path / "text.txt"}
    with pytest.raises(UserError, match=message):
        clip("eval", trained / "run", *(places.get(argument, argument) for argument in arguments))
