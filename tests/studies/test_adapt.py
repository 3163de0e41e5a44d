"""Adapting on frozen features: prompts with learned vectors, the methods, the protocols, the refusals."""

import math
import random

import pytest
import torch
from torch.nn import functional as F

from mllm.cli import build_parser
from mllm.errors import UserError
from mllm.inference.dual_features import load_encoder
from mllm.studies.adapt.clap import Clap
from mllm.studies.adapt.clap_prompts import PromptChanges, changed, prompts_of
from mllm.studies.adapt.classifier import ZeroShot
from mllm.studies.adapt.coop import CoCoOp, CoOp, _batches
from mllm.studies.adapt.heads import DisentanglingHead, HeadTraining, infonce
from mllm.studies.adapt.probe import LinearProbe
from mllm.studies.adapt.problem import LabelledFeatures, encode_labelled, labelled_files
from mllm.studies.adapt.prompts import LearnedPrompts, noisy_text_features, text_width, word_vectors
from mllm.studies.adapt.run import accuracy, base_to_new, few_shot
from mllm.studies.adapt.tip import TipAdapter

NAMES = ("alpha", "beta", "gamma", "delta")


@pytest.fixture(scope="module")
def encoder(trained):
    return load_encoder(trained / "run")


@pytest.fixture(scope="module")
def problem(encoder):
    """Four classes around random directions that no text is near to, 8 training and 20 test images each."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 16, generator=generator)
    sets = []
    for count in (8, 20):
        labels = torch.arange(4).repeat_interleave(count)
        noisy = centres[labels] + 0.5 * torch.randn(len(labels), 16, generator=generator)
        sets.append(LabelledFeatures(torch.nn.functional.normalize(noisy, dim=1), labels, NAMES))
    return sets


@pytest.mark.parametrize(
    ("position", "text"), [("end", "a square blue."), ("middle", "a blue square."), ("front", " blue a square.")]
)
def test_vectors_of_words_give_the_features_of_those_words(encoder, position, text):
    context = word_vectors(encoder, "a square" if position != "front" else " a square")
    prompts = LearnedPrompts(encoder, ["blue"], len(context), position)
    assert torch.allclose(prompts.features(context), encoder.texts([text]), atol=1e-5)


def test_noise_changes_a_text_and_none_leaves_it(encoder):
    texts = ["a red square"] * 130  # more than go through at once
    for position in ("end", "middle", "front"):
        plain, noisy = (noisy_text_features(encoder, texts, count, 0.02, position) for count in (0, 4))
        assert len(plain) == 130 and not torch.allclose(noisy[0], noisy[1], atol=1e-5)
    assert torch.allclose(plain, encoder.raw_texts([" a red square"]), atol=1e-4)


def test_the_encoder_is_as_before_after_a_fit(encoder, problem):
    before = {n: p.clone() for n, p in encoder.model.named_parameters()}
    feature = encoder.texts(["red"])
    CoOp(context_count=2, epochs=2).fit(encoder, problem[0].shots(1, 0), 0)
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in encoder.model.named_parameters())
    assert torch.equal(encoder.texts(["red"]), feature)


def test_learned_from_shots_beats_zero_shot_and_more_shots_beat_one(encoder, problem):
    train, test = problem
    base = accuracy(ZeroShot().fit(encoder, train, 0), test)
    for method in (LinearProbe(), TipAdapter(residual_ratio=50.0)):
        rows = few_shot("m", method, encoder, train, {"test": test}, [1, 8], [0, 1])
        assert rows[1].accuracy > base + 0.2, method
        assert rows[1].accuracy >= rows[0].accuracy - 0.05, method
    assert rows[0].shots == 1 and rows[0].deviation >= 0


@pytest.mark.parametrize(("class_specific", "share"), [(False, 0.97), (True, 0.8)])
def test_coop_fits_images_that_it_has_not_seen_better_than_zero_shot(encoder, problem, class_specific, share):
    """No context makes these names fit random directions, so it is the loss that tells."""
    train, test = problem

    def loss(method):
        scores = method.fit(encoder, train, 0).scores(test.features, test.names)
        return F.cross_entropy(scores, test.labels).item()

    assert loss(CoOp(context_count=4, epochs=40, class_specific=class_specific)) < share * loss(ZeroShot())


def test_class_specific_contexts_have_a_set_a_class_and_know_no_others(encoder, problem):
    train, test = problem
    fitted = CoOp(context_count=2, class_specific=True, epochs=3).fit(encoder, train, 0)
    assert fitted.context.shape == (4, 2, text_width(encoder))
    with pytest.raises(UserError, match="know only the classes"):
        fitted.scores(test.features, ["other", "names"])


def test_coop_may_start_from_words_and_follows_the_authors_schedule(encoder, problem):
    words = word_vectors(encoder, "a square")
    found = CoOp(start="a square")._first_context(encoder, 4, torch.Generator())
    each = CoOp(start="a square", class_specific=True)._first_context(encoder, 4, torch.Generator())
    assert torch.equal(found, words) and torch.equal(each, words.expand(4, -1, -1))
    optimizer, rates = torch.optim.SGD([words.requires_grad_()], lr=1.0), []
    for _ in _batches(3, 3, 4, optimizer, torch.Generator()):
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-5, 0.002, 0.001 * (1 + 0.5**0.5), 0.001])


def test_cocoops_contexts_depend_on_the_image(encoder, problem):
    train, test = problem
    fitted = CoCoOp(start="a", epochs=2).fit(encoder, train.shots(1, 0), 0)
    fitted.network.layers[0].bias.fill_(1.0)  # so that its one hidden unit isn't at rest for both images
    shifts = fitted.network(test.features[[0, 30]])
    assert not torch.allclose(shifts[0], shifts[1])
    prompts = LearnedPrompts(encoder, NAMES, 1, "end")
    one = encoder.factor * prompts.features(fitted.context + shifts[1]) @ test.features[30]
    assert torch.allclose(fitted.scores(test.features, NAMES)[30], one, atol=1e-4)


def test_claps_head_starts_as_nothing_and_its_prompts_have_the_papers_parts(encoder):
    features = torch.nn.functional.normalize(torch.randn(3, 16), dim=1)
    assert torch.allclose(DisentanglingHead(16)(features), features, atol=1e-6)
    text, swap = "an impressionistic sketch of a large red dog", PromptChanges(size=0, color=0, swap=1)
    assert text in prompts_of("template", "dog") and len(set(prompts_of("template", "dog"))) == 480
    assert changed(text, swap, random.Random(0)) == "a large red dog in an impressionistic sketch style"
    assert changed(text, PromptChanges(1, 1, 1, 0, 0), random.Random(0)) == "an impressionistic of a dog"
    assert changed(text, PromptChanges(0, 0, 0, 1, 0, replaced=True), random.Random(0)) in (
        "a realistic sketch of a large red dog",
        "a sketch of a large red dog",
    )
    train = LabelledFeatures(torch.zeros(0, 16), torch.zeros(0, dtype=torch.long), NAMES)
    one, two = (Clap(HeadTraining(steps=3), prompts_per_class=4).fit(encoder, train, 0).head for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.allclose(one(features), features, atol=1e-6)  # it has learned, and the same again


def test_claps_loss_has_the_other_view_as_positive_and_both_views_of_others_as_negatives():
    one, other = F.normalize(torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    both, expected = torch.cat([one, other]), 0.0
    for i in range(6):
        logits = [(both[i] @ both[j]).item() / 0.5 for j in range(6) if j != i]
        expected += math.log(sum(map(math.exp, logits))) - (both[i] @ both[(i + 3) % 6]).item() / 0.5
    assert infonce(one, other, 0.5).item() == pytest.approx(expected / 6, rel=1e-5)


def test_claps_head_drops_what_changes_between_the_views_of_a_class():
    """Features of content and style in dimensions of their own; style outweighs content, and is new in the test."""
    generator = torch.Generator().manual_seed(0)
    content = torch.eye(16)[:4]

    def views(count):
        style = torch.zeros(4, count, 16)
        style[..., 8:] = torch.randn(4, count, 8, generator=generator)
        return 10 * F.normalize(content[:, None] + style, dim=-1)  # of CLIP's own norm

    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = Clap(HeadTraining(steps=300, lr=3e-3)).learn_head(views(200), views(200), 10 * content, generator)
    one, other = views(50), views(50)[:, 0]  # the prompts of the classes, each in a style of its own
    labels = torch.arange(4)[:, None]

    def told(one, other):
        return ((one @ other.T).argmax(-1) == labels).float().mean().item()

    assert told(one, other) < 0.7 < 0.95 < told(head(one), head(other))


def test_base_to_new_scores_new_classes_only_where_the_method_can(encoder, problem):
    train, test = problem
    rows = base_to_new("coop", CoOp(context_count=2, epochs=2), encoder, train, test, 2, [0])
    assert [row.test for row in rows] == ["base", "new"]
    rows = base_to_new("linear_probe", LinearProbe(), encoder, train, test, 2, [0])
    assert [row.test for row in rows] == ["base"]
    base, new = train.base_and_new()
    assert base.names == NAMES[:2] and new.names == NAMES[2:] and set(new.labels.tolist()) == {0, 1}


def test_features_are_cached_and_computed_anew_when_an_image_changes(trained, encoder, tmp_path):
    names = ["red square", "blue square"]
    files, labels = labelled_files(trained / "pairs.jsonl", trained, names)
    assert len(files) == 8 and set(labels) == {0, 1}
    arguments = (encoder, files, labels, names, str(trained / "run"), tmp_path)
    first = encode_labelled(*arguments)
    (cached,) = tmp_path.iterdir()
    written = cached.stat().st_mtime_ns
    assert torch.equal(encode_labelled(*arguments).features, first.features)
    assert cached.stat().st_mtime_ns == written
    files[0].touch()
    encode_labelled(*arguments)
    assert len(list(tmp_path.iterdir())) == 2


def test_the_command_prints_a_table_and_refuses_too_few_images(trained, tmp_path, capsys):
    (tmp_path / "classes.txt").write_text("red square\nblue square\n")

    def run(method, *extra):
        source = ["--train", trained / "pairs.jsonl", "--test", trained / "pairs.jsonl", "--image-root", trained]
        common = ["--class-file", tmp_path / "classes.txt", "--cache", tmp_path / "cache", "--seeds", "1"]
        arguments = ["clip", "adapt", method, trained / "run", *source, *common, *extra]
        options = build_parser().parse_args([str(argument) for argument in arguments])
        options.run(options)

    run("tip_adapter", "--shots", "1", "2")
    assert capsys.readouterr().out.count("100.0") == 2
    with pytest.raises(UserError, match="class 'red square' has 4 training images, fewer than 16 shots"):
        run("coop", "--shots", "16")
    with pytest.raises(UserError, match="--base-to-new scores one --test, not 2"):
        run("coop", "--base-to-new", "--test", "one.jsonl", "two.jsonl")
    with pytest.raises(UserError, match=r"\d+ context vectors and class 'red square' make .* takes 48"):
        run("coop", "--shots", "1", "--start", "a square " * 30)
    with pytest.raises(UserError, match="words that a context starts from are empty"):
        run("coop", "--shots", "1", "--start", " ")
    with pytest.raises(UserError, match=r"60 context vectors and class 'red square' make .* takes 48"):
        run("coop", "--shots", "1", "--context", "60")
