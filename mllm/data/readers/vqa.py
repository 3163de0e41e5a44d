"""VQAv2's pair of files: questions, and beside them the annotations with the answers."""

from collections.abc import Iterator
from pathlib import Path

from mllm.conversation.schema import Sample
from mllm.data.readers.errors import BadRecordError, OnError, raise_error
from mllm.data.readers.fields import asked_about_images
from mllm.data.readers.json_lines import read_document
from mllm.data.readers.registry import READERS
from mllm.errors import UserError

SUFFIX = "\nAnswer the question using a single word or phrase."


@READERS.register("vqa")
def read_vqa(path: Path | str, on_error: OnError = raise_error) -> Iterator[Sample]:
    """A sample for each question that has an answer, asked for in a word as LLaVA-1.5 does.

    `path` is the questions' file, such as `v2_OpenEnded_mscoco_train2014_questions.json`; the answers are in the file
    that VQA ships with it. Images are called as COCO calls them, unless a question has a field `image`.
    """
    questions = read_document(path, ("questions",))
    subset = str(questions.get("data_subtype", ""))
    answers_path = Path(path).with_name(Path(path).name.replace("OpenEnded_", "").replace("questions", "annotations"))
    if answers_path == Path(path) or not answers_path.is_file():
        raise UserError(f"{path}: the answers are expected beside it, as {answers_path.name.replace('.json', '')}.json")
    answers = {
        answer.get("question_id"): answer.get("multiple_choice_answer")
        for answer in read_document(answers_path, ("annotations",))["annotations"]
        if isinstance(answer, dict)
    }
    for index, question in enumerate(questions["questions"]):
        place = f"{path}[questions][{index}]"
        try:
            words, answer = question["question"], answers[question["question_id"]]
            image = question.get("image") or f"COCO_{subset}_{int(question['image_id']):012d}.jpg"
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            on_error(BadRecordError(place, f"expected question, question_id with an answer, and image_id ({error!r})"))
            continue
        if not isinstance(words, str) or not isinstance(answer, str) or not isinstance(image, str):
            on_error(BadRecordError(place, "question, answer and image must be text"))
            continue
        messages = asked_about_images(1, words + SUFFIX, answer)
        yield Sample(id=str(question["question_id"]), messages=messages, images=(image,), kind="vqa")
