"""What ways to adapt learn: by which settings, whether it is the same once it is loaded, and how it stands attacks."""

import json
import random
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from mllm.cli import build_parser
from mllm.contrastive.augment_settings import AugmentSettings
from mllm.errors import UserError
from mllm.inference.dual_features import load_encoder
from mllm.studies.adapt.attacks import ATTACKS, BOUND, Attack, attacked, robust_accuracy
from mllm.studies.adapt.clap import Clap
from mllm.studies.adapt.classifier import TextClassifier, ZeroShot
from mllm.studies.adapt.coop import CoCoOp, CoOp
from mllm.studies.adapt.heads import DisentanglingHead, HeadClassifier, HeadTraining
from mllm.studies.adapt.probe import GRID, LinearProbe, logistic_regression
from mllm.studies.adapt.problem import LabelledFeatures, encode_labelled, labelled_files
from mllm.studies.adapt.run import Extras, Result, few_shot
from mllm.studies.adapt.saved import load_adapted, save_adapted
from mllm.studies.adapt.search import searched
from mllm.studies.adapt.tables import robust_table, table
from mllm.studies.adapt.tip import FineTunedTipAdapter, TipAdapter
from mllm.studies.adapt.tsne import neighbour_probabilities, tsne
from mllm.studies.adapt.views import ImageHead, with_views

NAMES = ["red square", "blue square"]
SHORT = HeadTraining(steps=2)
METHODS = (
    ZeroShot(("a {}", "{}")),
    LinearProbe(),
    TipAdapter(),
    FineTunedTipAdapter(epochs=2),
    CoOp(context_count=2, epochs=2, position="middle"),
    CoOp(context_count=2, epochs=2, class_specific=True),
    CoCoOp(start="a", epochs=1),
    ImageHead(SHORT, view_count=2, scale=None),
    Clap(SHORT, prompts_per_class=4, scale=0.3),
)


@pytest.fixture(scope="module")
def encoder(trained):
    return load_encoder(trained / "run")


@pytest.fixture(scope="module")
def images(encoder, trained):
    """Four images of each of two colours, of one file each."""
    return encode_labelled(
        encoder, *labelled_files(trained / "pairs.jsonl", trained, NAMES), NAMES, str(trained / "run"), None
    )


def test_a_linear_probe_has_the_weights_of_scikit_learns_logistic_regression():
    """By scikit-learn 1.9.1, LogisticRegression(C=0.316, tol=1e-12), less their mean over classes."""
    numbers = torch.arange(1, 61, dtype=torch.float64)
    features, labels = (10 * torch.sin(numbers * numbers)).reshape(12, 5).float(), torch.arange(12) % 3
    weight, bias = logistic_regression(features, labels, 3, 0.316)
    expected = torch.tensor([[-0.1044, -0.03951, 0.03009, -0.03003, -0.13083],
                             [-0.03204, 0.00874, 0.04633, -0.09115, -0.08989],
                             [0.13644, 0.03077, -0.07642, 0.12118, 0.22072]])  # fmt: skip
    assert torch.allclose(weight - weight.mean(0), expected, atol=2e-5)
    assert torch.allclose(bias - bias.mean(), torch.tensor([-0.06686, 0.25104, -0.18417]), atol=2e-5)
    few, _ = logistic_regression(features.repeat(1, 4), labels, 3, 0.316)  # fewer images than features
    assert torch.allclose(few[:, :5], few[:, 5:10], atol=1e-5) and few.shape == (3, 20)


def test_a_setting_is_searched_on_a_grid_and_then_between_the_neighbours_of_its_peak():
    asked = []

    def score(strength):
        asked.append(strength)
        return -abs(torch.tensor(strength).log10().item() - 0.7)

    assert searched(score, GRID, 10.0) == pytest.approx(10**0.7, rel=0.02)
    assert asked[:8] == [*GRID, pytest.approx(0.1)] and len(set(asked)) == len(asked)


def test_no_strength_of_the_grid_tells_more_of_what_is_held_back_than_the_searched_one():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 8, generator=generator)

    def drawn(count):
        labels = torch.arange(3).repeat_interleave(count)
        raw = centres[labels] + 2 * torch.randn(3 * count, 8, generator=generator)
        return LabelledFeatures(raw, labels, ("a", "b", "c"))

    train, other = drawn(4), drawn(30)

    def told(weight, bias):
        return ((other.raw @ weight.T + bias).argmax(1) == other.labels).float().mean()

    found = LinearProbe().fit(None, replace(train, held_back=other), 0)
    of_grid = [told(*logistic_regression(train.raw, train.labels, 3, strength)) for strength in GRID[2:]]
    assert told(found.weight, found.bias) >= max(of_grid) > min(of_grid)
    plain = LinearProbe().fit(None, train, 0)
    assert torch.equal(plain.weight, logistic_regression(train.raw, train.labels, 3, 0.316)[0])


def test_shots_are_held_back_from_what_is_not_drawn_or_from_what_was_held_back_before():
    raw, labels = torch.arange(12.0)[:, None], torch.arange(12) // 6
    whole = LabelledFeatures(raw, labels, ("a", "b"))
    drawn = whole.shots(2, seed=0)
    assert drawn.held_back.labels.tolist() == [0, 0, 1, 1]
    assert not set(drawn.raw.flatten().tolist()) & set(drawn.held_back.raw.flatten().tolist())
    assert whole.shots(6, seed=0).held_back is None
    other = replace(whole, raw=-raw - 1)
    drawn = replace(whole, held_back=other).shots(6, seed=0)
    assert len(drawn.held_back.labels) == 8 and (drawn.held_back.raw < 0).all()
    four = LabelledFeatures(raw, torch.arange(12) // 3, ("a", "b", "c", "d"))
    base, new = replace(four, held_back=four).base_and_new()
    assert new.held_back.labels.tolist() == [0, 0, 0, 1, 1, 1] and new.held_back.raw.min() > base.held_back.raw.max()


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_what_was_learned_scores_the_same_once_it_is_loaded(method, encoder, images, tmp_path):
    fitted = method.fit(encoder, images.shots(2, 0), 0)
    save_adapted(fitted, NAMES, encoder, tmp_path)
    loaded = load_adapted(tmp_path, encoder)
    assert list(loaded.names) == NAMES
    with torch.no_grad():
        assert torch.equal(loaded.classifier.scores(images.raw, NAMES), fitted.scores(images.raw, NAMES))


def test_an_adapter_of_another_model_or_fit_and_a_broken_one_are_one_clear_line(encoder, images, tmp_path):
    save_adapted(ZeroShot().fit(encoder, images, 0), NAMES, encoder, tmp_path)
    bias = encoder.model.visual_projection.weight
    with torch.no_grad():
        bias += 1
        with pytest.raises(UserError, match="learned on a model with other weights"):
            load_adapted(tmp_path, encoder)
        bias -= 1
    with pytest.raises(UserError, match="made square by pad: give --fit pad"):
        load_adapted(tmp_path, replace(encoder, preparer=replace(encoder.preparer, fit="crop")))
    (tmp_path / "adapter.json").write_text("{}")
    with pytest.raises(UserError, match=r"is no adapter .*mllm clip adapt"):
        load_adapted(tmp_path, encoder)


def test_the_command_keeps_results_and_adapters_that_classify_uses(trained, tmp_path, capsys):
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))

    def run(*arguments):
        options = build_parser().parse_args(["clip", *map(str, arguments)])
        options.run(options)
        return capsys.readouterr().out

    pairs, out = trained / "pairs.jsonl", tmp_path / "out"
    source = ["--train", pairs, "--test", pairs, "--image-root", trained, "--class-file", tmp_path / "classes.txt"]
    common = [*source, "--cache", tmp_path / "cache", "--seeds", 2, "--shots", 1]
    told = run("adapt", "linear_probe", trained / "run", *common, "--out", out, "--picture", tmp_path / "tsne.png")
    assert "100.0 ± 0.0" in told and (tmp_path / "tsne.png").stat().st_size > 5000
    (result,) = json.loads((out / "results.json").read_text())["results"]
    assert result["accuracies"] == [1.0, 1.0] and result["fit_s"] > 0
    images = [trained / "images" / f"{name}.png" for name in ("blue", "red")]
    for seed in (0, 1):
        kept = out / f"linear_probe-1-shots-seed-{seed}"
        first, second = run("classify", trained / "run", *images, "--adapted", kept).splitlines()
        assert first.startswith(f"{images[0]}: blue square ") and second.startswith(f"{images[1]}: red square ")
    with pytest.raises(UserError, match="linear_probe knows only the classes"):
        run("classify", trained / "run", *images, "--adapted", kept, "--classes", "red,blue")
    with pytest.raises(UserError, match="give classes: --classes NAME,NAME or --class-file FILE"):
        run("classify", trained / "run", *images)


def test_the_cache_may_be_learned_further_and_its_settings_are_searched(encoder):
    generator = torch.Generator().manual_seed(0)
    centres, labels = torch.randn(3, 16, generator=generator), torch.arange(3).repeat_interleave(40)
    raw = centres[labels] + torch.randn(120, 16, generator=generator)
    whole = LabelledFeatures(raw, labels, ("alpha", "beta", "gamma"))
    train = whole.shots(4, 0)
    given, found = (TipAdapter(is_searched=s).fit(encoder, train, 0) for s in (False, True))
    assert (given.residual_ratio, given.sharpness) == (1.0, 5.5) != (found.residual_ratio, found.sharpness)
    tuned = FineTunedTipAdapter(epochs=5).fit(encoder, train, 0)
    assert tuned.keys.shape == found.keys.shape and not torch.equal(tuned.keys, found.keys)

    def loss(keys):
        scores = replace(found, keys=keys).scores(train.raw, train.names)
        return F.cross_entropy(scores, train.labels)

    assert loss(tuned.keys) < loss(found.keys)
    whole_views = replace(train, views=torch.stack([train.raw + 1, train.raw - 1]))
    assert torch.allclose(TipAdapter().fit(encoder, whole_views, 0).keys, given.keys, atol=1e-6)  # of the views' mean


def test_views_are_drawn_by_the_seed_and_learned_from_in_turn(encoder, images):
    settings = AugmentSettings(kinds=("random_resized_crop", "color_jitter"), scale=(0.2, 1.0))
    one, again, other = (with_views(encoder, images, settings, 3, seed).views for seed in (0, 0, 1))
    assert one.shape == (3, 8, 16) and torch.equal(one, again) and not torch.allclose(one, other)
    shown = replace(images, views=torch.stack([images.raw, -images.raw]))
    drawn = shown.viewed(torch.tensor([0] * 40), torch.Generator().manual_seed(0))
    assert {row[0].sign().item() for row in drawn} == {1.0, -1.0}
    with pytest.raises(UserError, match="take images"):
        with_views(encoder, replace(images, files=()), settings, 1, 0)


def test_attacks_on_a_linear_model_are_the_closed_form():
    """Of two classes every loss falls along the difference of their weights, so the worst image is a corner of the box."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 3 * 4 * 4, generator=generator)
    pixels, labels = torch.rand(5, 3, 4, 4, generator=generator), torch.tensor([0, 1, 0, 1, 1])
    away = (weight[1 - labels] - weight[labels]).sign().reshape(pixels.shape)
    corner = (pixels + BOUND * away).clamp(0, 1)
    for name, attack in ATTACKS.items():
        changed = attacked(lambda x: x.flatten(1) @ weight.T, pixels, labels, attack, generator)
        assert torch.allclose(changed, corner, atol=1e-6), name
    stopped = attacked(lambda x: x.flatten(1) @ weight.T, pixels, labels, Attack(3), generator)
    assert (stopped - pixels).abs().max() <= BOUND + 1e-6 and stopped.min() >= 0 and stopped.max() <= 1


def test_an_attacked_encoder_does_no_better_and_the_table_says_it(encoder, images):
    rows = few_shot(
        "zero_shot", ZeroShot(("a {}",)), encoder, images, {"t": images}, [1], [0], Extras(attacks=["fgsm"])
    )
    assert rows[0].accuracy == 1.0 >= rows[0].robust["fgsm"][0]
    head, cells = robust_table(rows)
    assert head[-2:] == ["natural", "fgsm"] and cells[0][3] == "100.0"
    broken = robust_accuracy(encoder, TextClassifier(encoder, ("a {}",)), images, Attack(20), 0)
    assert broken <= 1.0 and all(p.grad is None for p in encoder.model.parameters())


def test_tables_have_the_columns_of_the_papers():
    def row(method, shots, test, *accuracies):
        return Result(method, shots, test, accuracies, {}, 1.25, None)

    head, rows = table([row("coop", 1, "pets", 0.5, 0.7), row("coop", 16, "pets", 0.8), row("clap", 1, "pets", 0.4)])
    assert head == ["method", "1 shot", "16 shots", "fit s", "fit MiB"]
    assert rows == [["coop", "60.0 ± 14.1", "80.0", "1.2", "–"], ["clap", "40.0", "", "1.2", "–"]]
    head, rows = table(
        [row("coop", 16, "base", 0.8), row("coop", 16, "new", 0.6), row("linear_probe", 16, "base", 0.9)]
    )
    assert head[:5] == ["method", "shots", "base", "new", "H"] and rows[0][2:5] == ["80.0", "60.0", "68.6"]
    assert rows[1][2:5] == ["90.0", "", ""]
    head, rows = table([row("clap", 1, "art", 0.8), row("clap", 1, "photo", 0.6)])
    assert head[2:5] == ["art", "photo", "mean"] and rows[0][2:5] == ["80.0", "60.0", "70.0"]


def test_the_share_of_a_head_is_searched_by_labelled_images(encoder, images):
    head = DisentanglingHead(16).requires_grad_(False)
    head.layers[1].weight.zero_()
    head.layers[1].bias.fill_(1.0)
    head.layers[2].weight.copy_(-100 * torch.ones(16, 16))  # all features become one, so the less of it the better
    whole = HeadClassifier(encoder, head, 1.0, ("a {}",))
    assert whole.searched(images).scale < 0.04


def test_prompts_of_clap_may_come_from_files_of_each_class(encoder, tmp_path):
    (tmp_path / "red square.txt").write_text("a sketch of a red square\na photo of one red square\n")
    (tmp_path / "blue square.txt").write_text("a sketch of a blue square\na blue square\nblue\n")
    plain, augmented = Clap(SHORT, sources=(str(tmp_path),))._views(encoder, NAMES, random.Random(0))
    assert plain.shape == augmented.shape == (2, 2, 16)  # as many as the class with fewest has
    both = Clap(SHORT, sources=(str(tmp_path), "template"), prompts_per_class=5)
    assert both._views(encoder, NAMES, random.Random(0))[0].shape == (2, 5, 16)
    with pytest.raises(UserError, match=r"prompt file .*green.txt does not exist"):
        Clap(SHORT, sources=(str(tmp_path),))._views(encoder, ["green"], random.Random(0))
    with pytest.raises(UserError, match="folder of prompts nowhere does not exist"):
        Clap(SHORT, sources=("nowhere",))._views(encoder, NAMES, random.Random(0))


def test_tsne_has_the_perplexity_asked_for_and_keeps_groups_apart():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat_interleave(20)
    points = 4 * torch.eye(3, 10)[labels] + torch.randn(60, 10, generator=generator)
    pairs = neighbour_probabilities(points.double(), 10.0)
    assert pairs.sum().item() == pytest.approx(1.0, abs=1e-6) and torch.equal(pairs, pairs.T)
    placed = tsne(points, perplexity=10.0)
    distances = torch.cdist(placed, placed).fill_diagonal_(torch.inf)
    nearest = labels[distances.argmin(1)]
    assert (nearest == labels).float().mean() > 0.95
