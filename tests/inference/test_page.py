"""The page in a real browser, where there is one: Chromium and the package `playwright`."""

import base64
from pathlib import Path

import pytest

from mllm.conversation.boxes import Region
from mllm.conversation.schema import ImagePart, Message, TextPart, VideoPart
from mllm.inference.decoding import Decoding
from mllm.inference.generate import Request, generate_answers
from tests.helpers.serving import serving, slow
from tests.helpers.videos import write_video


@pytest.fixture
def open_page(browser):
    """Opens the page of the server at a port; none may have said an error but those that `allowed` is in."""
    opened, errors = [], []

    def open_(port, allowed="\0"):
        page = browser.new_page(viewport={"width": 900, "height": 700})
        page.set_default_timeout(20_000)
        note = lambda text: errors.append(text) if allowed not in text else None  # noqa: E731
        page.on("pageerror", lambda error: note(str(error)))
        page.on("console", lambda message: note(message.text) if message.type == "error" else None)
        page.goto(f"http://127.0.0.1:{port}/")
        opened.append(page)
        return page

    yield open_
    for page in opened:
        page.close()
    assert not errors


def answer_of(assembled, text, path, part=ImagePart()):  # noqa: B008 (a part has no state)
    message = Message(role="user", content=(part, TextPart(text=text)))
    return generate_answers(*assembled, [Request((message,), (path,))], Decoding(max_new_tokens=6))[0].text


def until(page, expression):
    """Wait until a JavaScript expression holds. Playwright's own wait evaluates in the page, whose policy forbids it."""
    for _ in range(400):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never true: {expression}")


def drop(page, path):
    """Drop a file on the page, as a file manager does."""
    encoded = base64.b64encode(Path(path).read_bytes()).decode()
    make = """data => { const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0)), transfer = new DataTransfer();
              transfer.items.add(new File([bytes], "dropped.png", { type: "image/png" })); return transfer; }"""
    page.dispatch_event("body", "drop", {"dataTransfer": page.evaluate_handle(make, encoded)})


def test_an_empty_page_says_what_to_do_and_an_example_is_asked_by_a_click(port, open_page):
    page = open_page(port)
    until(page, "document.getElementById('model').textContent === 'tiny'")
    assert "Drop an image" in page.inner_text("#chat") and page.locator(".example img").count() == 2
    page.click(".example >> nth=1")
    until(page, "document.querySelector('#send').textContent === 'Send' && messages.length === 2")
    assert page.locator(".example").count() == 0 and page.locator(".user img").count() == 1
    assert "What word is written here?" in page.inner_text(".user")
    page.click("#reset")
    assert page.locator(".example").count() == 2 and page.locator("#waiting img").count() == 0


def test_images_are_chosen_dropped_and_removed_and_the_answers_are_the_models(
    assembled,
    port,
    open_page,
    images,
    tmp_path,
):
    page = open_page(port)
    until(page, "document.getElementById('model').textContent === 'tiny'")
    page.set_input_files("#file", images[:2])
    page.wait_for_selector("#waiting img >> nth=1")
    page.click("#waiting img >> nth=0")
    page.click("#waiting img >> nth=0")
    assert page.locator("#waiting img").count() == 0
    drop(page, images[2])
    page.wait_for_selector("#waiting img")
    page.fill("#question", "what is this")
    page.press("#question", "Enter")
    until(page, "document.querySelector('#send').textContent === 'Send' && messages.length === 2")
    assert page.locator(".user img").count() == 1 and page.locator("#waiting img").count() == 0
    assert page.evaluate("messages[1].content") == answer_of(assembled, "what is this", images[2])
    page.fill("#question", "and now?")
    page.click("#send")
    until(page, "messages.length === 4")
    assert page.locator(".assistant").count() == 2
    page.screenshot(path=str(tmp_path / "page.png"))
    page.click("#reset")
    assert page.locator(".turn").count() == 0


def test_a_video_is_chosen_shown_and_answered_as_the_model_does(assembled, port, open_page, tmp_path):
    (tmp_path / "a.webm").write_bytes(write_video("webm", 20, codec="libvpx"))
    page = open_page(port)
    until(page, "document.getElementById('model').textContent === 'tiny'")
    page.set_input_files("#file", tmp_path / "a.webm")
    page.wait_for_selector("#waiting video")
    page.fill("#question", "what happens?")
    page.press("#question", "Enter")
    until(page, "document.querySelector('#send').textContent === 'Send' && messages.length === 2")
    assert page.locator(".user video").count() == 1 and page.locator("#waiting video").count() == 0
    until(page, "document.querySelector('.user video').videoWidth === 80")
    assert page.evaluate("messages[1].content") == answer_of(
        assembled, "what happens?", tmp_path / "a.webm", VideoPart()
    )


def test_places_of_an_answer_are_drawn_on_the_image_that_was_shown_last(
    assembled, port, open_page, images, tmp_path, monkeypatch
):
    places = [Region(label="it", box=(0.25, 0.5, 0.5, 1.0)), Region(point=(0.75, 0.25))]
    monkeypatch.setattr(assembled[1], "read_boxes", lambda text, frame: places)
    page = open_page(port)
    until(page, "model === 'tiny'")
    for count in (2, 4):
        page.set_input_files("#file", images[count // 2])
        page.wait_for_selector("#waiting img")
        page.fill("#question", "where is it?")
        page.press("#question", "Enter")
        until(
            page,
            f"messages.length === {count} && document.querySelectorAll('.assistant canvas').length === {count // 2}",
        )
    last = "[...document.querySelectorAll('.assistant canvas')].pop()"
    until(page, f"{last}.width === 640 && {last}.height === 384")  # of 20 × 12 pixels
    inked = (
        f"""(([x, y]) => [...{last}.getContext('2d').getImageData(x * {last}.width, y * {last}.height, 1, 1).data])"""
    )
    assert page.evaluate(f"{inked}([0.75, 0.25])")[:3] == [31, 111, 230]  # the point
    page.screenshot(path=str(tmp_path / "page.png"))


def test_an_answer_shows_while_it_is_written_and_stop_ends_it_on_the_server_too(assembled, open_page):
    with slow(assembled[0], 0.03) as passes, serving(assembled, max_new_tokens=400) as port:
        page = open_page(port)
        until(page, "model === 'tiny'")
        page.fill("#question", "hello")
        page.click("#send")
        until(page, "document.querySelector('.assistant')?.textContent.length > 3")
        assert page.text_content("#send") == "Stop"
        page.click("#send")
        until(page, "document.querySelector('#send').textContent === 'Send'")
        assert page.evaluate("messages.length") == 2
        page.close()
    assert len(passes) < 300


def test_the_page_asks_for_the_key_and_shows_what_the_server_refuses(assembled, open_page):
    with serving(assembled, api_key="secret") as port:
        page = open_page(port, allowed="Failed to load resource")
        page.wait_for_selector("#key")
        page.fill("#key", "secret")
        page.press("#key", "Tab")
        until(page, "model === 'tiny'")
        page.fill("#question", "hello " * 600)
        page.click("#send")
        page.wait_for_selector(".error")
        assert "exceed the model's context of 512" in page.text_content(".error")
        page.fill("#question", "hello")
        page.click("#send")
        until(page, "messages.length === 2")
        page.close()


def test_markdown_is_shown_and_brings_no_elements_of_its_own(port, open_page):
    text = "# Title\n**bold** `code` <img src=x onerror=alert(1)>\n- one\n- two\n```\na < b\n```"
    shown = 'const d = document.createElement("div"); d.append(markdown(text)); return d.innerHTML;'
    html = open_page(port).evaluate(f"text => {{ {shown} }}", text)
    for piece in ("<h2>Title</h2>", "<strong>bold</strong>", "<code>code</code>", "<ul><li>one</li><li>two</li></ul>"):
        assert piece in html
    assert "<img" not in html and "a &lt; b" in html
