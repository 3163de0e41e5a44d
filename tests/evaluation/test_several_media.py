"""Questions that show several images or videos: where they stand, how they are withheld and swapped, what is kept."""

import hashlib
import json
from dataclasses import replace
from types import MappingProxyType

import pytest

from mllm.checkpoint.start import build
from mllm.conversation.schema import ImagePart, TextPart, VideoPart
from mllm.errors import UserError
from mllm.evaluation.asking import AnswerLog, Question, Reply, deal
from mllm.evaluation.benchmark import Item
from mllm.evaluation.benchmarks import find_benchmark
from mllm.evaluation.controls import questions_of, swap_partners
from mllm.evaluation.medium import Medium, parts_of, placed, shown, source_hash
from mllm.evaluation.plan import Setup, missing_media, plan_run
from mllm.evaluation.run import evaluate_subject
from mllm.evaluation.subjects.endpoint import content_of
from mllm.evaluation.subjects.local import LocalModel
from mllm.inference.request import prompt_of
from mllm.media.decode import read_image
from mllm.media.remote import data_url_bytes
from mllm.media.span import span_reference, without_span
from tests.helpers.media_releases import MEDIA_WRITERS, save_video
from tests.helpers.releases import save_image
from tests.helpers.tiny import tiny_settings
from tests.helpers.videos import write_frames, write_video

RED, GREEN = (255, 0, 0), (0, 128, 0)


def colour_of(source):
    return read_image(source).getpixel((0, 0))


def test_images_stand_where_the_words_name_them_and_an_image_named_twice_is_shown_twice(tmp_path):
    MEDIA_WRITERS["mmmu"](tmp_path)
    benchmark = find_benchmark("mmmu")
    items = {item.type: item for item in benchmark.items(tmp_path)}
    (question,) = questions_of(benchmark, [items["Art"]], "model", seed=0)
    request = question.request()
    assert [part.type for part in request.messages[0].content] == [
        "text",
        "image",
        "text",
        "image",
        "text",
        "image",
        "text",
    ]
    texts = [part.text for part in request.messages[0].content if isinstance(part, TextPart)]
    assert texts[:3] == ["Which is like ", "?\nA. ", "\nB. "] and "".join(texts) == benchmark.prompt(items["Art"])
    assert [colour_of(source) for source in request.images] == [RED, RED, GREEN]
    request.check()


@pytest.mark.parametrize(
    ("text", "words", "names", "places"),
    [
        ("no image", "no image", [], ()),
        ("<image 2> and <image 1>", " and ", ["2", "1"], (0, 5)),
        ("<image 1><image 1>", "", ["1", "1"], (0, 0)),
        ("a <image> stays, <image 3>", "a <image> stays, ", ["3"], (17,)),
    ],
)
def test_images_are_taken_out_of_a_text_with_their_places(text, words, names, places):
    images = {name: Medium(name) for name in "123"}
    assert placed(text, images) == (words, tuple(Medium(name) for name in names), places)
    parts = parts_of(words, [Medium(name) for name in names], places)
    assert "".join(part.text for part in parts if isinstance(part, TextPart)) == words
    assert all(part.text for part in parts if isinstance(part, TextPart)) or not words


def test_an_image_that_a_question_names_and_the_release_lacks_is_an_error():
    with pytest.raises(KeyError):
        placed("see <image 4>", {"1": Medium("1")})


def test_media_stand_before_the_words_unless_a_place_is_said():
    media = (Medium("a.png"), Medium("b.mp4", is_video=True))
    assert Question("what?", media, 8).content == (ImagePart(), VideoPart(), TextPart(text="what?"))
    assert Question("what?", media, 8, (), (0, 5)).content == (ImagePart(), TextPart(text="what?"), VideoPart())
    assert Question("what?", (), 8).content == (TextPart(text="what?"),)
    assert Question("what?", media, 8).request().images == ("a.png", "b.mp4")


def items_with(*counts):
    return [
        Item(str(n), tuple(Medium(f"{n}-{k}.png") for k in range(count)), f"q{n}", (str(n),), "all", str(n), {}, places)
        for n, (count, places) in enumerate((count, tuple(range(count))) for count in counts)
    ]


def test_withheld_questions_keep_their_words_and_swapped_ones_their_places():
    items = items_with(1, 2, 2, 3, 0)
    benchmark = find_benchmark("mmmu")
    items = [Item(i.id, i.media, i.question, i.references, i.type, i.group, {"options": {}}, i.places) for i in items]
    asked, withheld, swapped = (questions_of(benchmark, items, c, 0) for c in ("model", "withheld", "swapped"))
    assert [q.prompt for q in asked] == [q.prompt for q in withheld] == [q.prompt for q in swapped]
    assert all(q.media == () and q.content == (TextPart(text=q.prompt),) for q in withheld)
    assert [len(q.media) for q in swapped] == [1, 2, 2, 3, 0]
    assert [q.places for q in swapped] == [q.places for q in asked]
    for item, question in zip(items, swapped, strict=True):
        assert not set(question.media) & set(item.media)


def test_a_partner_with_as_many_images_is_preferred_and_one_with_fewer_shows_its_own_again():
    items = items_with(2, 1, 2, 3)
    partners = swap_partners(items, seed=0)
    assert [partner.id for partner in (partners[0], partners[2])] == ["2", "0"]
    benchmark = find_benchmark("pope")
    swapped = questions_of(benchmark, items, "swapped", seed=0)
    assert len(swapped[3].media) == 3 and len(set(swapped[3].media)) < 3


def test_an_answer_holds_for_all_that_is_shown_and_where(tmp_path):
    log = AnswerLog(tmp_path, 0, {"model": "m"}, str)
    a, b, video = Medium("a"), Medium("b"), Medium("a", is_video=True)
    questions = [
        Question("what?", (a,), 8),
        Question("what?", (a, b), 8),
        Question("what?", (b, a), 8),
        Question("what?", (a, b), 8, (), (0, 4)),
        Question("what?", (a,), 8, (), (4,)),
        Question("what?", (video,), 8),
    ]
    assert len({log.key(question) for question in questions}) == len(questions)
    assert log.key(questions[1]) == log.key(Question("what?", (a, b), 8, (), (0, 0)))
    # As answers were kept when a question had one image at most.
    old = [{"model": "m"}, "what?", "a", 8, []]
    assert log.key(questions[0]) == hashlib.sha256(json.dumps(old, sort_keys=True).encode()).hexdigest()


def test_questions_that_show_the_same_go_to_one_rank():
    questions = [Question(f"{n}?", (Medium(f"{n // 4}"), Medium("shared")), 8) for n in range(16)]
    shares = deal(questions, 3)
    seen = [{question.media for question in share} for share in shares]
    assert sum(map(len, shares)) == 16 and not any(seen[i] & seen[j] for i, j in ((0, 1), (0, 2), (1, 2)))


def test_an_endpoint_gets_images_and_videos_among_the_words(tmp_path):
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        save_image(path)
    question = Question("left or right?", tuple(Medium(str(path)) for path in paths), 8, (), (0, 8))
    content = content_of(question)
    assert [part["type"] for part in content] == ["image_url", "text", "image_url", "text"]
    assert [part["text"] for part in content if part["type"] == "text"] == ["left or ", "right?"]
    video = tmp_path / "a.mp4"
    video.write_bytes(write_video("mp4", 4))
    shown_part, words = content_of(Question("what?", (Medium(str(video), is_video=True),), 8))
    assert (shown_part["type"], words["text"]) == ("video_url", "what?")
    assert data_url_bytes(shown_part["video_url"]["url"], 10**6) == video.read_bytes()
    for source, what in (
        (str(write_frames(tmp_path / "frames", 2)), "a folder of frames"),
        (span_reference(str(video), 0, 1), "a part of a video"),
    ):
        with pytest.raises(UserError, match=f"is {what}, and only a video file can be sent"):
            content_of(Question("what?", (Medium(source, is_video=True),), 8))


def test_own_questions_show_their_videos(tmp_path, tiny_parts):
    (tmp_path / "a.mp4").write_bytes(write_video("mp4", 4))
    save_image(tmp_path / "b.png")
    lines = [
        {"question": "what?", "answer": "it", "video": "a.mp4"},
        {"question": "alike?", "answer": "no", "video": "a.mp4", "image": "b.png"},
    ]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, lines)))
    benchmark = find_benchmark(str(tmp_path / "own.jsonl"))
    items = benchmark.items(tmp_path)
    requests = [question.request() for question in questions_of(benchmark, items, "model", seed=0)]
    assert [[part.type for part in r.messages[0].content] for r in requests] == [
        ["video", "text"],
        ["image", "video", "text"],
    ]
    assert [item.group for item in items] == ["a.mp4", "b.png\na.mp4"]
    model, processor = build(tiny_settings(tiny_parts))
    replies = {}
    questions = questions_of(benchmark, items, "model", seed=0)
    LocalModel(model.eval(), processor, 2, {}).answer(questions, replies.update)
    assert set(replies) == set(questions)
    (tmp_path / "own.jsonl").write_text(json.dumps({"question": "what?", "answer": "it", "video_path": "a.mp4"}))
    with pytest.raises(UserError, match="video_path: the video of a question is read from the key video"):
        benchmark.items(tmp_path)


def test_what_is_missing_is_counted_by_kind_and_its_questions_may_be_left_out(tmp_path):
    MEDIA_WRITERS["videomme"](tmp_path)
    (tmp_path / "videomme" / "data" / "video2.mkv").unlink()
    with pytest.raises(
        UserError, match=r"videomme: 1 video\(s\) are missing, such as .*video2\.mp4; --on-missing skip"
    ):
        plan_run(["videomme"], tmp_path, None, seed=0)
    (chosen,) = plan_run(["videomme"], tmp_path, None, seed=0, on_missing="skip", conditions=("model",))
    assert [skipped.item_id for skipped in chosen.skipped] == ["002-1"]
    assert "video2.mp4 is missing" in chosen.skipped[0].reason and len(chosen.items) == 2
    MEDIA_WRITERS["mp_docvqa"](tmp_path)
    (tmp_path / "mp_docvqa" / "images" / "nkbl0226_p1.jpg").unlink()
    items = find_benchmark("mp_docvqa").items(tmp_path)
    assert [medium.source.rpartition("/")[2] for medium in missing_media(items)] == ["nkbl0226_p1.jpg"]


def test_a_video_is_named_by_its_contents_a_folder_by_its_frames_and_a_part_by_its_times(tmp_path):
    save_video(tmp_path / "a.mp4")
    save_video(tmp_path / "b.mp4")
    whole = source_hash(str(tmp_path / "a.mp4"))
    assert whole == source_hash(str(tmp_path / "b.mp4"))
    part = span_reference(str(tmp_path / "a.mp4"), 5.9, 11.25)
    assert without_span(part) == (str(tmp_path / "a.mp4"), (5900, 11250))
    assert source_hash(part) == f"{whole}:5900:11250"
    for n in range(2):
        save_image(tmp_path / "frames" / f"{n}.png")
    before = source_hash(str(tmp_path / "frames"))
    save_image(tmp_path / "frames" / "2.png")
    assert source_hash(str(tmp_path / "frames")) != before
    assert Medium(str(tmp_path / "frames"), is_video=True).is_there and not Medium(str(tmp_path / "frames")).is_there


def test_a_clip_of_mvbench_has_the_bounds_of_its_question_unless_its_file_is_cut(tmp_path):
    MEDIA_WRITERS["mvbench"](tmp_path)
    items = {item.type: item for item in find_benchmark("mvbench").items(tmp_path)}
    assert len(items) == 20 and all(medium.is_video for item in items.values() for medium in item.media)
    spans = {task: without_span(item.media[0].source)[1] for task, item in items.items()}
    assert {task for task, span in spans.items() if span} == {"action_localization"}
    assert spans["action_localization"] == (5900, 11250)
    assert "Charades_segment" in items["action_prediction"].media[0].source
    path = tmp_path / "mvbench" / "json" / "state_change.json"
    broken = json.loads(path.read_text())
    broken[0]["answer"] = "It flew."
    path.write_text(json.dumps(broken))
    with pytest.raises(UserError, match=r"state_change\.json: question 0 offers no 'It flew\.'"):
        find_benchmark("mvbench").items(tmp_path)


class Saying:
    """A model under test that answers B to all, and keeps what it was asked."""

    identity = MappingProxyType({"model_sha256": "b"})

    def __init__(self):
        self.asked = []

    def answer(self, questions, on_replies):
        self.asked += questions
        on_replies({question: Reply("B") for question in questions})


def test_an_evaluation_of_images_and_videos_is_asked_under_every_control_and_reported(tmp_path):
    for name in ("mmmu", "videomme"):
        MEDIA_WRITERS[name](tmp_path)
    subject = Saying()
    setup = Setup(["mmmu", "videomme"], tmp_path, tmp_path / "out")
    evaluate_subject(setup, lambda: (subject, "saying", []))
    assert {len(question.media) for question in subject.asked} == {0, 1, 3}
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["official"]["mmmu"]["model"]["by_rule"] == {
        "official": pytest.approx(2 / 3),
        "lmms_eval": pytest.approx(2 / 3),
        "vlmevalkit": pytest.approx(2 / 3),
    }
    lines = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    shown_first = next(line for line in lines if line["benchmark"] == "videomme" and line["condition"] == "model")
    assert shown_first["media"][0]["is_video"] and shown_first["fields"]["duration"] == "short"
    page = (tmp_path / "out" / "report.html").read_text()
    assert "video video1.mp4" in page and "data:image/png;base64" in page
    assert "The rules judge all 3 answers alike" in page
    again = Saying()
    evaluate_subject(setup, lambda: (again, "saying", []))
    assert again.asked == []


def test_a_model_of_ours_reads_the_words_and_images_in_their_order_alone_and_in_batches(tiny_parts, tmp_path):
    for name in ("mmmu", "blink"):
        MEDIA_WRITERS[name](tmp_path)
    model, processor = build(tiny_settings(tiny_parts))
    for name in ("mmmu", "blink"):
        benchmark = find_benchmark(name)
        items = benchmark.items(tmp_path)
        asked = [question for c in ("model", "swapped") for question in questions_of(benchmark, items, c, seed=0)]
        short = [replace(question, max_new_tokens=3) for question in asked]
        alone, together = {}, {}
        for question in short:
            LocalModel(model, processor, 1, {}).answer([question], alone.update)
        LocalModel(model, processor, 8, {}).answer(short, together.update)
        assert {question: reply.text for question, reply in alone.items()} == {q: r.text for q, r in together.items()}
        for question in short:
            prompt = prompt_of(question.request(), processor)
            assert len(prompt.tokens.image_spans) == len(question.media)
            assert [image.source for image in prompt.shown] == [medium.source for medium in question.media]
    first = prompt_of(short[0].request(), processor).tokens.image_spans
    moved = replace(short[0], places=tuple(range(1, len(short[0].media) + 1)))
    assert prompt_of(moved.request(), processor).tokens.image_spans != first


def test_a_single_image_is_shown_or_nothing():
    assert shown(None) == () and shown("a.png") == (Medium("a.png"),)
