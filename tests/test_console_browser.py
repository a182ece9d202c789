"""The console in a real browser: the whole story, every page in several looks, the keyboard, and axe.

The story's retrain job is a stand-in that publishes a better toy version where it is given reviewed images; what the
real job learns from them is tested in `test_reviewed.py`. Waits are long and end with what is waited for, so that a
busy machine passes too.
"""

import contextlib
import json
import os
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests import fake_job, test_report
from tests.chromium import AXE, axe, chromium, picture
from tests.live import AUTH, TOKEN, Server, live_server
from tests.toys import CLASSES, TARGET, WEAK_THRESHOLD, png, publish_toy, toy_image, weak_model

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.process, pytest.mark.slow]

PATIENCE = 180.0
"""Seconds that a step may take on a busy machine."""
LOOKS = [(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("browser")
    publish_toy(folder / "store", protected=weak_model(), threshold=WEAK_THRESHOLD)
    settings = fake_job.install(folder) | {
        "FAKE_JOB": "waits",
        "DETRIGGER_QUARANTINE": str(folder / "kept"),
        "DETRIGGER_QUARANTINE_RATE": "200",
        "DETRIGGER_QUARANTINE_SAMPLE": "0.1",
        "DETRIGGER_POLL_INTERVAL": "0.1",
    }
    with live_server(folder, settings, store=folder / "store") as running:
        yield running


@contextlib.contextmanager
def logged_in(browser: "Browser", server: Server, *, refusals: bool = False) -> Iterator["Page"]:
    """A page after the login; ends with an error where it asked anything of elsewhere, or its policy was broken.

    With `refusals`, answers of 400 are no error.
    """
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(1000 * PATIENCE)
    complaints: list[str] = []
    page.on(
        "request",
        lambda it: None if it.url.startswith((server.url, "data:")) else complaints.append(it.url),
    )
    page.on("console", lambda it: complaints.append(it.text) if it.type == "error" else None)
    page.goto(f"{server.url}/console/login")
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_label("Your name").fill("Ada")
    page.keyboard.press("Enter")
    page.wait_for_url("**/console/")
    yield page
    context.close()
    assert [it for it in complaints if not (refusals and re.search(r"\b400\b", it))] == []


def send(server: Server, triggered: range, clean: range) -> list[str]:
    """The answers to triggered images of class red, after clean ones of all classes."""
    answers = []
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        for label, attacked, seeds in (*((k, False, clean) for k in range(3)), (0, True, triggered)):
            for seed in seeds:
                body = png(toy_image(label, triggered=attacked, seed=seed))
                answer = client.post("/predict", content=body, headers={"Content-Type": "image/png"}).json()
                if attacked:
                    answers.append(answer["predictions"][0]["label"])
    return answers


def until(holds: Callable[[], bool]) -> None:
    """Wait for something that no page shows."""
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


def kept(server: Server, count: int) -> bool:
    """Whether the quarantine holds so many images."""
    answer = httpx.get(f"{server.url}/admin/flagged", headers=AUTH, timeout=PATIENCE)
    return len(answer.json()["images"]) >= count


def asr(answers: list[str]) -> float:
    return answers.count(CLASSES[3][TARGET]) / len(answers)


def test_an_attack_is_seen_judged_and_answered(browser: "Browser", server: Server) -> None:
    with logged_in(browser, server) as page:
        assert page.locator(".hot").count() == 0
        before = asr(send(server, range(100, 140), range(40)))
        assert before > 0.8
        page.locator("dd.hot").wait_for()  # the rate has risen, without a reload
        page.get_by_text("Flags gather on").wait_for()
        picture(page, "live-attack")
        page.get_by_role("link", name="Look at them").focus()
        for _ in range(2):  # the page draws itself anew, and the keyboard stays where it was
            page.wait_for_event("response", lambda it: it.url.endswith("/console/live"))
        page.wait_for_function("document.activeElement.textContent === 'Look at them'")
        until(lambda: kept(server, 20))
        page.get_by_role("link", name="Look at them").click()
        cards = page.get_by_role("article")
        cards.first.wait_for()
        assert cards.count() >= 20
        judged = cards.first
        judged.get_by_role("button", name="Poisoned").focus()
        page.keyboard.press("Enter")
        judged.get_by_text("admin:Ada").wait_for()
        # The focus stays on the pressed button, which now takes the review back.
        page.wait_for_function("document.activeElement.value === 'none'")
        assert judged.get_by_role("button", name="Poisoned").get_attribute("aria-pressed") == "true"
        for card in (cards.nth(1), cards.nth(2)):
            card.get_by_role("button", name="Poisoned").click()
            card.get_by_text("admin:Ada").wait_for()
        picture(page, "gallery-judged")
        page.get_by_role("link", name="Retrain", exact=True).click()
        page.get_by_text("It learns from the 3 reviewed images").wait_for()
        page.get_by_role("button", name="Start").click()
        page.get_by_text(re.compile("stage \\d")).wait_for()
        assert page.locator("dt:text('Reviewed images') + dd").inner_text() == "3"
        first = page.locator("dt:text('From') + dd").inner_text()
        fake_job.go_on(server.store.parent)
        page.get_by_text("succeeded").wait_for()
        page.get_by_text("and promoted it").wait_for()
        assert not list(server.store.glob("jobs/*/reviewed"))  # the quarantine alone keeps pictures
        until(lambda: httpx.get(f"{server.url}/version").json()["model"]["version"] != first)
        assert asr(send(server, range(200, 240), range(0))) == 0.0
        page.get_by_role("link", name="Versions").click()
        page.get_by_label("Reason for rolling back").fill("was it really the trigger?")
        page.get_by_role("button", name="Roll back").click()
        page.locator(".served", has_text=first).wait_for()
        assert asr(send(server, range(300, 320), range(0))) > 0.8
        page.get_by_placeholder("Reason").last.fill("it was")
        page.get_by_role("button", name="Activate").first.click()
        page.locator(".served").filter(has_not_text=first).wait_for()
        assert asr(send(server, range(400, 420), range(0))) == 0.0
        page.get_by_role("link", name="Who did what").click()
        for words in ("was it really the trigger?", "review", "retrain", "admin:Ada"):
            assert page.get_by_text(words).first.is_visible()


def every_page(page: "Page", server: Server) -> Iterator[str]:
    """Open one page of the console after the other; the name of the one that is open."""
    send(server, range(10), range(5))
    until(lambda: kept(server, 1))

    def open_page(name: str) -> None:
        page.goto(f"{server.url}/console/{name}", wait_until="load")

    for name in ("quarantine", "versions", "jobs", "log", "try"):
        open_page(name)
        yield name
    page.get_by_label("Drop an image").set_input_files(
        {"name": "x.png", "mimeType": "image/png", "buffer": png(toy_image(0, triggered=True))}
    )
    page.locator("#result .verdict").wait_for()
    yield "tried"
    open_page("quarantine")
    page.locator(".pair").first.click()
    page.get_by_text("Where this score stands").wait_for()
    yield "image"
    open_page("versions")
    page.locator(".cards h2 a").first.click()
    page.get_by_role("heading", name="Gate").wait_for()
    yield "version"
    open_page("")
    page.locator(".tiles").wait_for()
    yield "live"
    page.get_by_role("button", name="Log out").click()
    page.get_by_label("Token").wait_for()
    yield "login"


def look(page: "Page", width: int, scheme: Any) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)


def test_every_page_fits(browser: "Browser", server: Server) -> None:
    with logged_in(browser, server) as page:
        for name in every_page(page, server):
            for width, scheme in [*LOOKS, (1600, "light")]:
                look(page, width, scheme)
                assert page.evaluate("document.documentElement.scrollWidth") <= width, name
                picture(page, f"{name}-{width}-{scheme}")


def test_an_attack_on_the_demo_is_shown(browser: "Browser", demo_run: Path, tmp_path: Path) -> None:
    """Real signs and the attacker's sticker: the pictures under docs/images are taken here."""
    target = json.loads((demo_run / "story.json").read_text())["target"]
    clean, stickered = (
        random.Random(seed).sample(sorted((demo_run / name).glob("*/*.png")), 180)
        for seed, name in enumerate(("test", "test-with-sticker"))
    )
    # For pictures the attack begins after a while of ordinary traffic; without them nobody has to wait.
    pause = 1.5 if os.environ.get("CONSOLE_PICTURES") else 0.0
    attack = zip(clean[120:], clean[:60], stickered, strict=False)
    settings = {"DETRIGGER_QUARANTINE": str(tmp_path / "kept"), "DETRIGGER_QUARANTINE_SAMPLE": "0.02"}
    store = shutil.copytree(demo_run / "store", tmp_path / "store")
    with live_server(tmp_path, settings, store=store) as server, logged_in(browser, server) as page:
        with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
            for path in [*clean[:120], *(path for three in attack for path in three)]:
                client.post("/predict", content=path.read_bytes()).raise_for_status()
                time.sleep(pause)
        page.get_by_text(f"Flags gather on {target}").wait_for()
        for width, scheme in LOOKS:
            look(page, width, scheme)
            picture(page, f"docs/live-{width}-{scheme}")
        look(page, 1280, "light")
        page.get_by_role("link", name="Look at them").click()
        page.get_by_role("article").first.wait_for()
        for width, scheme in LOOKS:
            look(page, width, scheme)
            page.wait_for_load_state("networkidle")
            picture(page, f"docs/gallery-{width}-{scheme}", whole=False)
        look(page, 1280, "light")
        page.get_by_role("link", name="Try it").click()
        page.get_by_label("Drop an image").set_input_files(demo_run / "test-with-sticker/stop/0000.png")
        page.locator("#result .verdict", has_text="Flagged").wait_for()
        for width, scheme in LOOKS:
            look(page, width, scheme)
            picture(page, f"docs/try-{width}-{scheme}")


@pytest.mark.skipif(not AXE.exists(), reason="no axe: npm install --prefix build/axe axe-core@4")
def test_axe_finds_nothing_serious(browser: "Browser", server: Server) -> None:
    with logged_in(browser, server) as page:
        for name in every_page(page, server):
            for width, scheme in ((1280, "light"), (390, "dark")):
                look(page, width, scheme)
                assert axe(page) == [], (name, width, scheme)


@pytest.mark.skipif(not AXE.exists(), reason="no axe: npm install --prefix build/axe axe-core@4")
def test_axe_finds_nothing_serious_in_the_interface_page(browser: "Browser", server: Server) -> None:
    with logged_in(browser, server) as page:
        page.goto(f"{server.url}/docs")
        page.get_by_text("Classify images after purifying them").wait_for()
        for scheme in ("light", "dark"):
            look(page, 1280, scheme)
            page.locator(f"html{'.dark-mode' if scheme == 'dark' else ':not(.dark-mode)'}").wait_for()
            assert axe(page) == [], scheme


REPORTS = {
    "report": test_report.version_page,
    "scan": test_report.page,
    "comparison": test_report.comparison_page,
    "index": test_report.index_page,
}


@pytest.mark.parametrize("name", REPORTS)
def test_reports_fit_and_axe_finds_nothing_serious(browser: "Browser", tmp_path: Path, name: str) -> None:
    file = tmp_path / "report.html"
    file.write_text(REPORTS[name]())
    page = browser.new_page()
    page.goto(file.as_uri())
    for width, scheme in [*LOOKS, (1600, "light")]:
        look(page, width, scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        # No word is broken letter by letter; what is wider than the window scrolls by itself.
        narrow = page.evaluate(
            "[...document.querySelectorAll('th, td')].filter(it => it.textContent.trim().length > 3"
            " && it.checkVisibility() && it.clientWidth < 30 && it.clientHeight > 50).map(it => it.textContent)"
        )
        assert narrow == [], width
        if name == "report" and width >= 1280:  # the five pictures of an image stand side by side
            tops = page.evaluate(
                "[...document.querySelector('.strip:not(.alone)').children].map(it => it.offsetTop)"
            )
            assert len(tops) == 5
            assert len(set(tops)) == 1
        if AXE.exists():
            assert axe(page) == [], (width, scheme)
        picture(page, f"{name}-{width}-{scheme}")
    page.close()


def test_a_file_is_dropped_and_a_refusal_is_told(browser: "Browser", server: Server) -> None:
    with logged_in(browser, server, refusals=True) as page:
        page.get_by_role("link", name="Try it").click()
        for content, told in ((list(png(toy_image(1))), "Not flagged"), ([1, 2, 3], "no image")):
            data = page.evaluate_handle(
                """bytes => {
                    const it = new DataTransfer();
                    it.items.add(new File([new Uint8Array(bytes)], "x.png", {type: "image/png"}));
                    return it;
                }""",
                content,
            )
            page.dispatch_event("#drop", "drop", {"dataTransfer": data})
            page.locator("#result", has_text=told).wait_for()
            if told == "no image":
                break


def test_the_interface_page_works_without_the_internet(browser: "Browser", server: Server) -> None:
    with logged_in(browser, server) as page:
        page.goto(f"{server.url}/docs")
        page.get_by_text("Classify images after purifying them").wait_for()


def test_without_scripts_everything_can_still_be_done(browser: "Browser", server: Server) -> None:
    send(server, range(3), range(0))
    until(lambda: kept(server, 1))
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.set_default_timeout(1000 * PATIENCE)
    page.goto(f"{server.url}/console/login")
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button").click()
    page.get_by_role("link", name="Quarantine").click()
    page.get_by_role("article").last.get_by_role("button", name="Clean").click()
    page.get_by_text("said admin").wait_for()
    context.close()
