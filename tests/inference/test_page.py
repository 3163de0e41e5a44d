"""The page in a real browser, where there is one: Chromium and the package `playwright`."""

import shutil

import pytest

from tests.inference.test_serve import assembled, expected, images, port  # noqa: F401 (fixtures)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def page(port):  # noqa: F811
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 900, "height": 700})
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(f"http://127.0.0.1:{port}/")
        yield page
        browser.close()
    assert not errors


def test_a_chat_with_a_dropped_image_streams_the_answer(assembled, page, images, tmp_path):  # noqa: F811
    page.wait_for_function("document.getElementById('model').textContent === 'tiny'")
    page.set_input_files("#file", images[:2])
    page.wait_for_selector("#waiting img >> nth=1")
    page.click("#waiting img >> nth=1")
    page.fill("#question", "what is this")
    page.press("#question", "Enter")
    page.wait_for_function("document.querySelector('#send').textContent === 'Send' && messages.length === 2")
    assert page.locator(".user img").count() == 1 and page.locator("#waiting img").count() == 0
    answer = page.evaluate("messages[1].content")
    page.fill("#question", "and now?")
    page.click("#send")
    page.wait_for_function("messages.length === 4")
    assert page.locator(".assistant").count() == 2 and answer
    page.screenshot(path=str(tmp_path / "page.png"))
    page.click("#reset")
    assert page.locator(".turn").count() == 0


def test_markdown_is_shown_and_brings_no_elements_of_its_own(page):
    text = "# Title\n**bold** `code` <img src=x onerror=alert(1)>\n- one\n- two\n```\na < b\n```"
    shown = 'const d = document.createElement("div"); d.append(markdown(text)); return d.innerHTML;'
    html = page.evaluate(f"text => {{ {shown} }}", text)
    for piece in ("<h2>Title</h2>", "<strong>bold</strong>", "<code>code</code>", "<ul><li>one</li><li>two</li></ul>"):
        assert piece in html
    assert "<img" not in html and "a &lt; b" in html
