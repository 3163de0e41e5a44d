"""The measures of a space."""

import json
import math

import pytest
import torch
from torch.nn import functional as F

from mllm.cli import build_parser
from mllm.contrastive.loss import gathered, infonce_sum
from mllm.errors import UserError
from mllm.studies.asymptotics import decompose, minus_entropy
from mllm.studies.diagnose import diagnose, prompt_sensitivity, space, uniformity


def test_measures_of_a_space_by_hand():
    images, texts = torch.eye(4)[:2], F.normalize(torch.eye(4)[:2] + torch.eye(4)[2:], dim=1)
    found = diagnose(space(images, texts))
    assert found.alignment == pytest.approx(2 - math.sqrt(2), rel=1e-5)
    assert found.uniformity_images == pytest.approx(-4.0, rel=1e-5)  # one pair at squared distance 2
    assert found.gap == pytest.approx((images.mean(0) - texts.mean(0)).norm().item())
    assert found.cosine_of_pairs == pytest.approx(math.sqrt(0.5)) and found.cosine_of_others == 0
    assert found.linear_separability == 1.0
    assert uniformity(images[[0, 0]]) == pytest.approx(0.0)
    prompts = torch.stack([images, images.flip(0)])
    assert prompt_sensitivity(images, torch.tensor([0, 1]), prompts) == (0.0, 0.5, 1.0)


def test_others_are_the_captions_of_other_images_by_image():
    images = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), dim=1)
    texts = F.normalize(torch.tensor([[1.0, 0.1], [1.0, -0.1], [0.1, 1.0]]), dim=1)
    pairs = space(images, texts, ["a.png", "a.png", "b.png"])
    assert sorted(pairs.other_cosines().tolist()) == pytest.approx([-0.0995, 0.0995, 0.0995, 0.0995], abs=1e-3)
    with pytest.raises(UserError, match=r"3 pair\(s\) of one image"):
        diagnose(space(images, texts, ["a.png"] * 3))


def test_the_loss_less_log_k_is_its_alignment_and_its_cross_modal_term_at_every_k():
    torch.manual_seed(0)
    images = F.normalize(torch.randn(300, 8), dim=1)
    texts = F.normalize(images + 0.3 * torch.randn(300, 8), dim=1)
    small, large = decompose(images, texts, 10.0)
    assert (small.k, small.batches, large.k, large.batches) == (64, 4, 256, 1)
    for part in (small, large):
        assert part.loss_less_log_k == pytest.approx(part.alignment + part.cross_modal, abs=1e-4)
        assert part.entropy_form == pytest.approx(part.alignment + part.minus_half_entropies, abs=1e-9)
        assert part.difference == pytest.approx(part.loss_less_log_k - part.entropy_form, abs=1e-9)
    # The loss is the one that is trained.
    chosen = torch.randperm(300, generator=torch.Generator().manual_seed(0))[:256]
    features = gathered(images[chosen], texts[chosen])
    trained = infonce_sum(features, torch.tensor(10.0).log()).loss_sum / 256
    assert large.loss_less_log_k == pytest.approx(trained.item() - math.log(256), abs=1e-4)
    (few,) = decompose(images[:5], texts[:5], 10.0)
    assert few.k == 5


def test_both_forms_meet_where_modalities_coincide_and_candidates_are_many():
    torch.manual_seed(0)
    features = F.normalize(torch.randn(1024, 3), dim=1)
    differences = [abs(part.difference) for part in decompose(features, features, 5.0)]
    assert differences == sorted(differences, reverse=True) and differences[-1] < 0.02
    # The mean of exp(f · cosine) over the sphere is sinh(f) / f.
    assert minus_entropy(features, 5.0) == pytest.approx(math.log(math.sinh(5.0) / 5.0), abs=0.02)


def test_diagnose_writes_a_table_and_a_picture_of_two_models(trained, tmp_path, capsys):
    def clip(*arguments):
        options = build_parser().parse_args(["clip", *map(str, arguments)])
        options.run(options)

    pairs = ["--image-root", trained, "--picture", tmp_path / "space.png"]
    clip("diagnose", trained / "run", trained / "pairs.jsonl", *pairs)
    output = capsys.readouterr().out
    found = json.loads(output[: output.rindex("}") + 1])
    assert found["pairs"] == 16 and (tmp_path / "space.png").stat().st_size > 1000
    assert found["loss"][0]["k"] == 16 and "von Mises-Fisher" in found["entropy_estimator"]
    clip("diagnose", trained / "run", trained / "pairs.jsonl", *pairs, "--against", trained / "run" / "final")
    lines = {
        line.split("│")[1].strip(): line.split("│") for line in capsys.readouterr().out.splitlines() if "│" in line
    }
    assert float(lines["gap"][2]) == float(lines["gap"][3]) and float(lines["gap"][4]) == 0
    assert "cross_modal, k=16" in lines
    with pytest.raises(UserError, match="is the model itself; name another"):
        clip("diagnose", "m", "p", "--against", "m")
