"""Places that an answer names: read in the format of the model, drawn on the image, told by chat and server."""

import json

import numpy as np
import pytest
from PIL import Image

from mllm.conversation.boxes import Region
from mllm.conversation.schema import ImagePart, Message, TextPart
from mllm.inference import terminal
from mllm.inference.chat import ChatSession
from mllm.inference.places import Places, places_in, read_regions, write_picture
from mllm.inference.request import Request, prompt_of
from mllm.inference.serve.page import read_page
from mllm.media.drawing import COLOURS, Mark, draw_marks
from tests.helpers.serving import client_of, question
from tests.helpers.tiny import save_image

BOX = (0.25, 0.5, 0.5, 1.0)


@pytest.fixture
def pointing(assembled, monkeypatch):
    """The tiny model, whatever of whose answers is read as one place."""
    monkeypatch.setattr(assembled[1], "read_boxes", lambda text, frame: [Region(label="it", box=BOX)])
    return assembled


def shown(processor, *images):
    parts = (*(ImagePart() for _ in images), TextPart(text="where?"))
    return prompt_of(Request((Message(role="user", content=parts),), tuple(images)), processor).shown


def test_places_are_of_the_image_that_was_shown_last(assembled, tmp_path):
    wide, high = (save_image(tmp_path / f"{n}.png", size=size) for n, size in enumerate([(40, 20), (20, 40)]))
    processor = assembled[1]
    text = "the cat: [0.25, 0.25, 0.75, 0.75] and [0.5, 0.5, 1, 1]"
    found = places_in(text, shown(processor, wide, high), processor)
    assert found.source == high and len(found.regions) == 2
    fit = processor.preparer.fit
    assert fit == "pad" and found.regions[0].box == pytest.approx((0, 0.25, 1, 0.75))  # over the square
    assert places_in(text, shown(processor, high, wide), processor).regions[0].box == pytest.approx((0.25, 0, 0.75, 1))
    assert found.as_records()[1] == {"box": (0.5, 0.5, 1.0, 1.0)}


def test_numbers_of_something_else_are_no_places_and_without_an_image_there_are_none(assembled, tmp_path):
    processor, image = assembled[1], save_image(tmp_path / "i.png")
    assert places_in("the years [1, 2, 3, 4] are none", shown(processor, image), processor) is None
    assert places_in("it is red", shown(processor, image), processor) is None
    assert places_in("[0.1, 0.2, 0.3, 0.4]", shown(processor), processor) is None
    assert read_regions("[1, 2, 3, 4]", shown(processor, image), processor) != []  # for who counts what lies outside
    assert read_regions("[1, 2, 3, 4]", shown(processor), processor) is None


def test_a_picture_shows_each_place_in_its_colour_where_it_is(tmp_path):
    image = Image.new("RGB", (200, 100), "white")
    marks = [
        Mark(((0.25, 0.5), (0.5, 0.5), (0.5, 0.9), (0.25, 0.9)), COLOURS[0], "a dog"),
        Mark(((0.75, 0.25),), COLOURS[1]),
    ]
    pixels = np.asarray(draw_marks(image, marks)).astype(int)
    for colour, (left, top, right, bottom) in ((COLOURS[0], (49, 35, 100, 91)), (COLOURS[1], (145, 20, 154, 29))):
        ink = np.array([int(colour[n : n + 2], 16) for n in (1, 3, 5)])
        rows, columns = np.where(np.abs(pixels - ink).sum(-1) == 0)
        assert rows.min() >= top - 2 and rows.max() <= bottom + 2 and len(rows) > 20
        assert columns.min() >= left - 2 and columns.max() <= right + 2
    assert (np.asarray(image) == 255).all()


@pytest.mark.parametrize("outline", [((0, 0), (1, 0), (1, 1), (0, 1)), ((0, 0),), ((1, 1),), ((0.5, 0.5), (0.5, 0.5))])
@pytest.mark.parametrize("size", [(1, 1), (3, 2000), (640, 480)])
def test_any_place_can_be_drawn_on_an_image_of_any_shape(outline, size):
    marks = [Mark(outline, COLOURS[0], "a label that is longer than the image is wide")]
    assert draw_marks(Image.new("RGB", size), marks).size == size


def test_no_picture_is_replaced(tmp_path):
    places = Places(save_image(tmp_path / "i.png"), (Region(box=BOX),))
    (tmp_path / "boxes.png").write_bytes(b"the user's own")
    written = [write_picture(places, tmp_path / "boxes.png", "mllm chat") for _ in range(2)]
    assert [path.name for path in written] == ["boxes-2.png", "boxes-3.png"]
    assert (tmp_path / "boxes.png").read_bytes() == b"the user's own"
    assert Image.open(written[0]).size == (640, 384) and Image.open(written[0]).format == "PNG"
    (tmp_path / "odd.jpg").mkdir()
    assert Image.open(write_picture(places, tmp_path / "odd.jpg", "mllm chat")).format == "JPEG"


def test_a_chat_draws_what_an_answer_names_and_says_where(pointing, tmp_path, capsys):
    image, picture = save_image(tmp_path / "i.png"), tmp_path / "boxes.png"
    session = ChatSession(*pointing, max_new_tokens=4)
    terminal.chat_script(session, ["where?"], [image], picture=picture)
    captured = capsys.readouterr()
    assert captured.err == f"its places are drawn on {picture}\n" and str(picture) not in captured.out
    assert Image.open(picture).size == (640, 384)  # of 20 × 12 pixels, in which no name has room
    terminal.chat_script(session, ["and now?"], [], as_json=True, picture=picture)
    record = json.loads(capsys.readouterr().out)
    assert record["places"] == [{"label": "it", "box": list(BOX)}]
    assert record["picture"] == str(tmp_path / "boxes-2.png") and Image.open(record["picture"]).size == (640, 384)


def test_a_picture_that_cannot_be_written_is_said_and_the_answer_stands(pointing, tmp_path, capsys):
    image = save_image(tmp_path / "i.png")
    session = ChatSession(*pointing, max_new_tokens=4)
    terminal.chat_script(session, ["where?"], [image], picture=tmp_path / "i.png" / "boxes.png")
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert len(session.messages) == 2 and captured.out.strip() == session.messages[1].text


def test_the_server_tells_places_beside_the_answer_and_nothing_where_there_are_none(
    pointing, port, images, monkeypatch
):
    client = client_of(port)
    asked = {"model": "tiny", "messages": [question("where?", images[0])]}
    message = client.chat.completions.create(**asked).choices[0].message
    assert message.places == [{"label": "it", "box": list(BOX)}]
    chunks = list(client.chat.completions.create(**asked, stream=True))
    told = [c.choices[0].delta.places for c in chunks if hasattr(c.choices[0].delta, "places")]
    assert told == [message.places] and chunks[-1].choices[0].finish_reason
    blind = client.chat.completions.create(model="tiny", messages=[question("where?")])
    assert not hasattr(blind.choices[0].message, "places")
    monkeypatch.setattr(pointing[1], "read_boxes", lambda text, frame: [])
    assert not hasattr(client.chat.completions.create(**asked).choices[0].message, "places")


def test_the_page_of_the_server_draws_places_as_written_pictures_show_them():
    page, _ = read_page()
    assert f'"colours": {json.dumps(COLOURS)}' in page and page.count(COLOURS[0]) == 1
    assert "DRAWING" not in page
