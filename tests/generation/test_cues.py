"""Retrieval cues: neighbours without the image itself, training without captions, another index at inference."""

import json
import shutil

import pytest
import torch

from mllm.contrastive.catalogue import as_table, save_table
from mllm.contrastive.index import open_index
from mllm.contrastive.indexing import build_index
from mllm.errors import UserError
from mllm.generation.cues import open_neighbours
from mllm.generation.data import GenerationDataSettings
from mllm.generation.kinds import read_kind, train_generator
from mllm.generation.opening import load_generator
from mllm.generation.pictures import draw_pictures
from mllm.generation.sampler import Sampling
from mllm.generation.unclip_generators import with_index
from mllm.generation.unclip_runs import read_images
from mllm.inference.dual_features import load_encoder
from tests.helpers.tiny import save_image
from tests.helpers.unclip import CAPTIONS, run_values, write_clip, write_colours

faiss = pytest.importorskip("faiss")
HOW = Sampling(steps=3, guidance=2.0)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A directory with images/, clip/, an index of the images, and a run of cues on images without captions."""
    root = tmp_path_factory.mktemp("cues")
    write_colours(root)
    clip = write_clip(root / "clip")
    build_index(load_encoder(clip), str(clip), root / "images", root / "index")
    lines = [json.dumps({"image": f"images/{path.name}"}) for path in sorted((root / "images").iterdir())]
    (root / "images.jsonl").write_text("\n".join([*lines, lines[0]]), encoding="utf-8")
    values = run_values("retrieval", root / "images.jsonl", clip, root / "run", index=str(root / "index"), neighbours=2)
    train_generator(read_kind(values, "test"))
    return root


@pytest.fixture(scope="module")
def encoder(root):
    return load_encoder(root / "clip")


def brute_force(encoder, paths, k):
    """Each image's nearest others by all cosines."""
    features = encoder.images(paths)
    cosines = (features @ features.T).fill_diagonal_(-2)
    return features[cosines.topk(k).indices]


def test_the_neighbours_of_an_image_are_its_nearest_others(root, encoder):
    paths = sorted((root / "images").iterdir())
    neighbours = open_neighbours(root / "index", encoder)
    found = neighbours.of_images(encoder.images(paths), paths, 3)
    assert torch.equal(found, brute_force(encoder, paths, 3))
    # Of a query that is no file of the index, the nearest of all is among them.
    assert torch.allclose(neighbours.of(encoder.images(paths[:1]), 1)[0, 0], encoder.images(paths[:1])[0], atol=1e-6)


def test_a_copy_of_an_image_is_no_neighbour_of_it_either(root, encoder, tmp_path):
    (tmp_path / "images").mkdir()
    paths = sorted((root / "images").iterdir())
    for path in paths[:4]:
        shutil.copy(path, tmp_path / "images" / path.name)
    for number in range(6):  # more copies than are asked for at first
        shutil.copy(paths[0], tmp_path / f"images/copy{number}.png")
    build_index(encoder, str(root / "clip"), tmp_path / "images", tmp_path / "index")
    neighbours = open_neighbours(tmp_path / "index", encoder)
    own = encoder.images(paths[:1])
    assert torch.allclose(neighbours.of_images(own, paths[:1], 3)[0], brute_force(encoder, paths[:4], 3)[0], atol=1e-6)
    with pytest.raises(UserError, match="fewer than 4 images that are neither"):
        neighbours.of_images(own, paths[:1], 4)
    with pytest.raises(UserError, match="the index has 10 images, and 11 are needed"):
        neighbours.of(own, 11)


def test_images_are_read_without_captions_and_each_once(root):
    images = read_images(GenerationDataSettings(pairs=str(root / "images.jsonl"), image_root=str(root)), seed=0)
    assert images == sorted((root / "images").iterdir())


def test_a_text_or_an_image_prompts_and_another_index_is_another_domain(root, encoder, tmp_path):
    (tmp_path / "images").mkdir()
    for shade in (90, 120, 150):
        save_image(tmp_path / f"images/{shade}.png", (shade, shade // 2, shade), (16, 16))
    build_index(encoder, str(root / "clip"), tmp_path / "images", tmp_path / "index")
    model = load_generator(root / "run")
    with pytest.raises(UserError, match="name an index of images with --index"):
        model.conditions(CAPTIONS[:1], [0])
    own, other = with_index(model, root / "index"), with_index(model, tmp_path / "index")
    pictures = [draw_pictures(one, CAPTIONS[:1], [0], HOW)[0].tobytes() for one in (own, other)]
    assert pictures[0] != pictures[1]
    mean, deviation = model.further["image_mean"], model.further["image_std"]
    purple = encoder.images(sorted((tmp_path / "images").iterdir()))
    for query in (encoder.texts(CAPTIONS[:1]), encoder.images([root / "images/red0.png"])):
        cues = other.of_queries(query).cues[0] * deviation + mean
        wanted = purple[(purple @ query[0]).topk(2).indices]
        assert torch.allclose(cues, wanted, atol=1e-4)
    assert bool((own.null().cues == 0).all()) and own.null().cues.shape == (1, 2, 32)


def test_indexes_of_another_clip_or_of_compressed_features_are_refused(root, encoder, tmp_path):
    other = load_encoder(write_clip(tmp_path / "other", seed=1))
    with pytest.raises(UserError, match="an index of other features"):
        open_neighbours(root / "index", other)
    # An index whose images are gone says nothing of whose features it holds.
    shutil.copytree(root / "index", tmp_path / "gone")
    paths = open_index(root / "index").paths
    save_table(as_table(["gone.png"] * len(paths), [{} for _ in paths]), tmp_path / "gone/images.arrow")
    with pytest.raises(UserError, match="none of its images can be read"):
        open_neighbours(tmp_path / "gone", encoder)
    compressed = faiss.index_factory(32, "SQ8", faiss.METRIC_INNER_PRODUCT)
    compressed.train(encoder.images(paths).numpy())
    compressed.add(encoder.images(paths).numpy())
    shutil.copytree(root / "index", tmp_path / "compressed")
    faiss.write_index(compressed, str(tmp_path / "compressed/index.faiss"))
    with pytest.raises(UserError, match="keeps them compressed"):
        open_neighbours(tmp_path / "compressed", encoder)
    ivf = faiss.index_factory(32, "IVF1,Flat", faiss.METRIC_INNER_PRODUCT)
    ivf.train(encoder.images(paths).numpy())
    ivf.add(encoder.images(paths).numpy())
    faiss.write_index(ivf, str(tmp_path / "compressed/index.faiss"))
    vectors = open_index(tmp_path / "compressed").vectors(torch.tensor([3, 0]))
    assert torch.equal(vectors, encoder.images([paths[3], paths[0]]))
