"""Indexes that grow: kinds of FAISS, adding, metadata, another model's, the page in the browser."""

import json
import shutil
import threading
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mllm.cli import build_parser
from mllm.contrastive.catalogue import as_table, joined, open_table, read_metadata, rows_where, save_table
from mllm.contrastive.index import open_index
from mllm.contrastive.indexing import build_index
from mllm.errors import UserError
from mllm.evaluation.ranks import Ranks
from mllm.files import atomic_directory
from mllm.inference.dual_features import load_encoder
from tests.helpers.clip import COLOURS
from tests.helpers.tiny import save_image

faiss = pytest.importorskip("faiss")

from mllm.contrastive import vectors  # noqa: E402


def clip(capsys, *arguments):
    options = build_parser().parse_args(["clip", *map(str, arguments)])
    options.run(options)
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def encoder(trained):
    return load_encoder(trained / "run")


@pytest.fixture
def folder(tmp_path):
    """Four colours and what is known of three of them."""
    root = tmp_path / "photos"
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        save_image(root / name / "one.png", colour, (16, 16))
    known = {"red": {"year": 2019}, "blue": {"year": 2021, "by": "Ann"}, "green": {"year": 2022, "by": "Bob"}}
    lines = [json.dumps({"image": f"{name}/one.png", **values}) for name, values in known.items()]
    (root / "metadata.jsonl").write_text("\n".join(lines))
    return root


@pytest.fixture(scope="module")
def features():
    """Directions around forty centres."""
    generator = np.random.default_rng(0)
    found = generator.normal(size=(40, 32))[np.arange(1000) % 40] + 1.5 * generator.normal(size=(1000, 32))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(
    "factory", ["Flat", "HNSW16", "IVF16,Flat", "IVF16,SQ8", "IVF8,PQ8x4", "PCA16,IVF16,SQ8,RFlat"]
)
def test_every_kind_is_read_from_disk_as_it_was_and_finds_only_what_is_allowed(factory, features, tmp_path):
    made = vectors.filled_vectors(factory, features)
    vectors.save_vectors(made, tmp_path / "v")
    mapped = vectors.open_vectors(tmp_path / "v")
    queries = features[:20]
    for allowed in (None, np.arange(0, 1000, 3), np.arange(15)):
        scores, places = vectors.search_vectors(mapped, queries, 5, 16, allowed)
        again = vectors.search_vectors(made, queries, 5, 16, allowed)
        assert np.array_equal(places, again[1]) and np.allclose(scores, again[0])
        if allowed is not None:
            assert set(places.flatten()) <= set(allowed.tolist())
            best = allowed[np.argmax(queries @ features[allowed].T, 1)]
            if factory not in ("IVF8,PQ8x4", "PCA16,IVF16,SQ8,RFlat"):
                assert (places[:, 0] == best).mean() >= 0.95


def test_effort_is_the_least_that_finds_enough_of_what_exact_search_finds(features):
    exact = vectors.exact_places(features, features[:50], 10)
    assert np.array_equal(exact, np.argsort(-(features[:50] @ features.T), 1, kind="stable")[:, :10])
    lists = vectors.filled_vectors("IVF32,Flat", features)
    effort, recall = vectors.sufficient_effort(lists, features, 0.9)
    assert 0.999 > recall >= 0.9
    more, all_found = vectors.sufficient_effort(lists, features, 1.0)
    assert effort < more <= 32 and all_found == vectors.recall_of(lists, features[:50], exact, 32) == 1.0


def test_exact_search_goes_through_parts_as_through_the_whole(features, monkeypatch):
    whole = vectors.exact_places(features, features[:9], 7)
    monkeypatch.setattr(vectors, "ADDED_AT_ONCE", 3)  # fewer than are asked for
    assert np.array_equal(
        vectors.exact_places(features[:101], features[:9], 7), vectors.exact_places(features[:101], features[:9], 7)
    )
    monkeypatch.setattr(vectors, "ADDED_AT_ONCE", 64)
    assert np.array_equal(vectors.exact_places(features, features[:9], 7), whole)


def test_the_kind_is_exact_for_few_and_of_lists_for_many():
    assert vectors.chosen_factory(50_000) == "Flat" and vectors.chosen_factory(1_000_000) == "IVF4096,SQ8"
    with pytest.raises(UserError, match="--factory Bogus: FAISS makes no index of it for 32 numbers"):
        vectors.empty_vectors("Bogus", 32)
    with pytest.raises(UserError, match=r"--factory IVF64,Flat can't be learned of 10 vectors"):
        vectors.filled_vectors("IVF64,Flat", np.eye(10, 32, dtype=np.float32))


def test_an_index_grows_by_what_it_lacks_and_is_then_as_one_made_at_once(trained, folder, tmp_path, capsys):
    part, whole = tmp_path / "part", tmp_path / "whole"
    red = folder / "red" / "one.png"
    hidden = red.rename(tmp_path / "one.png")
    assert "3 images (Flat)" in clip(capsys, "index", trained / "run", folder, part)
    hidden.rename(red)
    assert "4 images, 1 of them new (Flat)" in clip(capsys, "index", trained / "run", folder, part, "--add")
    assert "4 images, 0 of them new (Flat)" in clip(capsys, "index", trained / "run", folder, part, "--add")
    clip(capsys, "index", trained / "run", folder, whole)
    one, other = (open_index(index) for index in (part, whole))
    order = [other.table["image"].to_pylist().index(path) for path in one.table["image"].to_pylist()]
    assert one.table.equals(other.table.take(order)) and one.record == other.record
    assert all(torch.allclose(one.vector(n), other.vector(row), atol=1e-6) for n, row in enumerate(order))


def test_conditions_choose_among_what_is_known(trained, folder, tmp_path, capsys):
    clip(capsys, "index", trained / "run", folder, tmp_path / "index")

    def found(*conditions):
        words = [word for condition in conditions for word in ("--where", condition)]
        told = clip(capsys, "search", tmp_path / "index", "--text", "a red square", *words)
        return {name for name in COLOURS if f"/{name}/" in told}

    assert found("year<2020") == {"red"} and found("year >= 2019", "by=Bob") == {"green"}
    assert found("by~AN") == {"blue"} and found("image~black") == {"black"} and found("year!=2019") == {"blue", "green"}
    assert (
        clip(capsys, "search", tmp_path / "index", "--text", "red", "--where", "year>3000")
        == "no image meets the conditions\n"
    )
    for condition, message in (
        ("year", "the condition 'year' is none; write FIELD=VALUE"),
        ("month=1", "no image of the index has a 'month'; known are: image, year, by"),
        ("year=soon", "year is of kind int64, and 'soon' is none"),
    ):
        with pytest.raises(UserError, match=message):
            found(condition)


def test_columns_of_unlike_values_become_text_and_tables_join(tmp_path):
    one = as_table(["a", "b"], [{"n": 1, "tags": ["x"]}, {"n": "two"}])
    assert one["n"].to_pylist() == ["1", "two"] and one["tags"].to_pylist() == [["x"], None]
    other = as_table(["c"], [{"n": 3, "new": True}])
    save_table(joined(one, other), tmp_path / "t")
    table = open_table(tmp_path / "t")
    assert table["n"].to_pylist() == ["1", "two", "3"] and table["new"].to_pylist() == [None, None, True]
    assert rows_where(table, ["n=3"]).tolist() == [2] and rows_where(table, []) is None
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "n": 1}\n\n{"n": 1}\n')
    with pytest.raises(UserError, match=r'metadata.jsonl:3: expected an object of JSON with "image"'):
        read_metadata(tmp_path, None)


def test_an_index_of_other_weights_or_another_fit_is_refused(trained, folder, tmp_path, capsys, encoder):
    clip(capsys, "index", trained / "run", folder, tmp_path / "index")
    record = json.loads((tmp_path / "index" / "index.json").read_text())
    for change, arguments, message in (
        ({"fingerprint": "0"}, ["search", tmp_path / "index", "--text", "red"], "is of another model than"),
        (
            {"fingerprint": "0"},
            ["index", trained / "run", folder, tmp_path / "index", "--add"],
            "is of another model than",
        ),
        (
            {"fit": "crop"},
            ["index", trained / "run", folder, tmp_path / "index", "--add"],
            "made square by crop: give --fit",
        ),
    ):
        with atomic_directory(tmp_path / "index", "mllm clip index") as changed:
            for name in ("images.arrow", "index.faiss"):
                shutil.copy(tmp_path / "index" / name, changed)
            (changed / "index.json").write_text(json.dumps(record | change))
        with pytest.raises(UserError, match=message):
            clip(capsys, *arguments)
    with pytest.raises(UserError, match="--add goes on with the index's own kind"):
        clip(capsys, "index", trained / "run", folder, tmp_path / "new", "--add", "--factory", "Flat")


def test_ranks_that_share_the_images_make_the_index_of_one_process(trained, encoder, folder, tmp_path):
    made, meet, told = {}, threading.Barrier(3), [None] * 3

    class Together(Ranks):
        def gather(self, value):
            told[self.rank] = value
            meet.wait(60)
            found = list(told)
            meet.wait(60)
            return found

    model = str(trained / "run" / "final")
    build = partial(build_index, encoder, model, folder, tmp_path / "ranks")
    threads = [threading.Thread(target=lambda n=n: made.update({n: build(ranks=Together(n, 3))})) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    build_index(encoder, model, folder, tmp_path / "one")
    one, other = (open_index(tmp_path / name) for name in ("one", "ranks"))
    assert [made[1], made[2]] == [None, None] and made[0].images == 4
    assert one.table.equals(other.table) and torch.allclose(one.vector(3), other.vector(3), atol=1e-6)
    assert not list(tmp_path.glob(".*"))


def test_the_page_finds_by_text_by_image_and_by_what_was_found(encoder, folder, trained, tmp_path):
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    from mllm.contrastive.browse.app import build_app

    build_index(encoder, str(trained / "run" / "final"), folder, tmp_path / "index", "IVF2,SQ8")
    index = open_index(tmp_path / "index")
    with TestClient(build_app(index, encoder, "photos")) as client:
        page = client.get("/")
        assert "sha256-" in page.headers["Content-Security-Policy"] and "<script>" in page.text
        assert client.get("/about").json()["fields"] == ["image", "year", "by"]
        first, *_ = client.get("/search", params={"text": "a green square", "k": 2}).json()["hits"]
        assert "/green/" in first["path"] and first["known"] == {"year": 2022, "by": "Bob"}
        assert client.get(f"/like/{first['row']}").json()["hits"][0]["row"] == first["row"]
        sent = (folder / "red" / "one.png").read_bytes()
        hits = client.post("/search?where=year<2022&where=", content=sent).json()["hits"]
        assert "/red/" in hits[0]["path"] and len(hits) == 2
        assert client.get(f"/image/{first['row']}").headers["Content-Type"] == "image/jpeg"
        for route, status, message in (
            ("/search?text= ", 400, "is empty"), ("/search?text=a&where=x", 400, "write FIELD=VALUE"),
            ("/image/9", 404, "rows 0 to 3"), ("/search?text=a&k=0", 422, "greater than or equal"),
        ):  # fmt: skip
            answer = client.get(route)
            assert answer.status_code == status and message in answer.text
        assert "error" in client.post("/search", content=b"no image").json()


def test_a_stored_feature_is_the_images_own(encoder, folder, trained, tmp_path):
    build_index(encoder, str(trained / "run" / "final"), folder, tmp_path / "index")
    index = open_index(tmp_path / "index")
    for row in range(4):
        assert torch.allclose(index.vector(row), F.normalize(encoder.images([index.path(row)])[0], dim=0), atol=1e-5)
