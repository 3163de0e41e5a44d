"""Take the pictures of the README and the docs: a chat on the page of `mllm serve`, and an evaluation's report.

python docs/take_pictures.py runs/mine mine/images/20.png "What shape is it?" "What color is it?"
"""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

IMAGES = Path(__file__).parent / "img"
START_S = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="A run directory whose model was scored by `mllm eval`.")
    parser.add_argument("image", type=Path, help="The image that the chat is about.")
    parser.add_argument("questions", nargs="+", help="What is asked about the image.")
    options = parser.parse_args()

    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        take_report(browser, options.run / "eval" / "report.html")
        take_chat(browser, options.run, options.image, options.questions)
        browser.close()


def take_report(browser: Any, report: Path) -> None:
    """The upper part of the page, as wide as a laptop's window."""
    page = browser.new_page(viewport={"width": 1100, "height": 900})
    page.goto(report.resolve().as_uri())
    page.screenshot(path=IMAGES / "report.png")


def take_chat(browser: Any, run: Path, image: Path, questions: list[str]) -> None:
    """Serve the model, ask every question on its page, and take the window."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from mllm.cli import main; main()", "serve", str(run), "--port", str(port)]
    server = subprocess.Popen(command, env=os.environ)
    try:
        page = browser.new_page(viewport={"width": 620, "height": 508})
        page.set_default_timeout(START_S * 1000)
        open_when_served(page, f"http://127.0.0.1:{port}/")
        page.set_input_files("#file", image)
        for question in questions:
            page.fill("#question", question)
            page.click("#send")
            page.wait_for_selector("#send:has-text('Send')")
            page.wait_for_timeout(500)
        page.screenshot(path=IMAGES / "chat.png")
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=30)


def open_when_served(page: Any, address: str) -> None:
    """Go to `address` as soon as something listens there. Raises TimeoutError after START_S seconds."""
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        try:
            with socket.create_connection(("127.0.0.1", int(address.split(":")[2].strip("/")))):
                page.goto(address)
                return
        except OSError:
            time.sleep(0.5)
    raise TimeoutError(f"nothing listened at {address} within {START_S} s")


if __name__ == "__main__":
    main()
