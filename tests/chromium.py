"""Debian's Chromium, driven by Playwright; and axe, where `npm` has fetched it into build/axe."""

import contextlib
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from tests.live import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

AXE = ROOT / "build/axe/node_modules/axe-core/axe.min.js"
_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextlib.contextmanager
def chromium() -> Iterator["Browser"]:
    """A browser without a window; the test is skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium is not installed (apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, headless=True, args=list(_ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()


def axe(page: "Page") -> list[dict[str, Any]]:
    """The serious and critical violations of WCAG 2.2 A and AA on a page."""
    page.evaluate(AXE.read_text("utf-8"))
    found: dict[str, Any] = page.evaluate(
        "axe.run({runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa']})"
    )
    return [
        {"rule": it["id"], "where": [node["target"] for node in it["nodes"]][:5]}
        for it in found["violations"]
        if it["impact"] in ("serious", "critical")
    ]


def picture(page: "Page", name: str, *, whole: bool = True) -> None:
    """A small screenshot of the whole page, or of the window, in the folder that CONSOLE_PICTURES names, if it does."""
    if folder := os.environ.get("CONSOLE_PICTURES"):
        file = Path(folder) / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(io.BytesIO(page.screenshot(full_page=whole))) as shot:
            shot.convert("RGB").quantize(192).save(file, optimize=True)
