"""The console in a real browser: the whole story, every page in four looks, the keyboard, and axe.

The story's retrain job is a stand-in that takes a second and publishes a better toy version; what the real job learns
from reviewed images is measured elsewhere.
"""

import contextlib
import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests import fake_job
from tests.chromium import AXE, axe, chromium, picture
from tests.live import TOKEN, Server, live_server
from tests.toys import CLASSES, TARGET, png, protected_model, publish_toy, toy_image

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.process, pytest.mark.slow]

WEAK, THRESHOLD = 0.9645, 0.02
"""How much of the trigger a purifier leaves that is too weak, and a threshold that notices it all the same."""
PATIENCE = 120_000.0
"""Milliseconds that a step may take on a busy machine."""
LOOKS = [(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]
PAGES = ("", "quarantine", "versions", "jobs", "try", "log")


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("browser")
    weak = protected_model(threshold=THRESHOLD, left=WEAK)
    publish_toy(folder / "store", protected=weak, threshold=THRESHOLD)
    settings = fake_job.install(folder) | {
        "DETRIGGER_QUARANTINE": str(folder / "kept"),
        "DETRIGGER_QUARANTINE_RATE": "200",
        "DETRIGGER_QUARANTINE_SAMPLE": "0.1",
        "DETRIGGER_POLL_INTERVAL": "0.1",
    }
    with live_server(folder, settings, store=folder / "store") as running:
        yield running


@contextlib.contextmanager
def logged_in(
    browser: "Browser", server: Server, width: int = 1280, scheme: Any = "light"
) -> Iterator["Page"]:
    """A page after the login; ends with an error where it asked anything of elsewhere, or its policy was broken."""
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
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
    assert complaints == []


def send(server: Server, triggered: range, clean: range) -> list[str]:
    """The answers to triggered images of class red, after clean ones of all classes."""
    answers = []
    with httpx.Client(base_url=server.url) as client:
        for label, attacked, seeds in (*((k, False, clean) for k in range(3)), (0, True, triggered)):
            for seed in seeds:
                body = png(toy_image(label, triggered=attacked, seed=seed))
                answer = client.post("/predict", content=body, headers={"Content-Type": "image/png"}).json()
                if attacked:
                    answers.append(answer["predictions"][0]["label"])
    return answers


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
        page.get_by_role("link", name="Look at them").click()
        cards = page.get_by_role("article")
        cards.first.wait_for()
        assert cards.count() >= 20
        judged = cards.first
        button = judged.get_by_role("button", name="Poisoned")
        button.focus()
        page.keyboard.press("Enter")
        judged.get_by_text("admin:Ada").wait_for()
        assert judged.get_by_role("button", name="Poisoned").get_attribute("aria-pressed") == "true"
        assert (
            page.evaluate("document.activeElement.value") == "none"
        )  # the focus stays on the pressed button
        page.get_by_role("link", name="Retrain", exact=True).click()
        page.get_by_role("button", name="Start").click()
        page.get_by_text(re.compile("stage \\d")).wait_for()
        page.get_by_text("succeeded").wait_for()
        page.get_by_text("and promoted it").wait_for()
        version = httpx.get(f"{server.url}/version").json
        until = time.monotonic() + 60
        first = page.locator("dt:text('From') + dd").inner_text()
        while version()["model"]["version"] == first:
            assert time.monotonic() < until
            time.sleep(0.1)
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


@pytest.mark.parametrize(("width", "scheme"), [*LOOKS, (1600, "light")])
def test_every_page_fits_and_axe_finds_nothing_serious(
    browser: "Browser", server: Server, width: int, scheme: str
) -> None:
    send(server, range(10), range(5))
    with logged_in(browser, server, width, scheme) as page:
        page.wait_for_timeout(500)

        def check(name: str) -> None:
            page.wait_for_load_state("networkidle")
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name
            assert axe(page) == [], name
            picture(page, f"{name}-{width}-{scheme}")

        for name in PAGES[1:]:
            page.goto(f"{server.url}/console/{name}")
            check(name)
        page.goto(f"{server.url}/console/quarantine")
        page.locator(".pair").first.click()
        page.get_by_text("Where this score stands").wait_for()
        check("image")
        page.goto(f"{server.url}/console/versions")
        page.locator(".cards h2 a").first.click()
        page.get_by_role("heading", name="Gate").wait_for()
        check("version")
        data = png(toy_image(0, triggered=True))
        page.goto(f"{server.url}/console/try")
        page.get_by_label("Drop an image").set_input_files(
            {"name": "x.png", "mimeType": "image/png", "buffer": data}
        )
        page.get_by_text("Flagged:").wait_for()
        check("tried")
        page.get_by_role("button", name="Log out").click()
        page.get_by_label("Token").wait_for()
        check("login")
    with logged_in(browser, server, width, scheme) as page:
        page.locator(".tiles").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert axe(page) == []
        picture(page, f"live-{width}-{scheme}")


def test_axe_was_there(browser: "Browser") -> None:
    if not AXE.exists():
        pytest.skip("axe is not installed (npm install --prefix build/axe axe-core@4)")


def test_a_file_is_dropped_and_a_refusal_is_told(browser: "Browser", server: Server) -> None:
    with logged_in(browser, server) as page:
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
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(f"{server.url}/console/login")
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button").click()
    page.get_by_role("link", name="Quarantine").click()
    page.get_by_role("article").last.get_by_role("button", name="Clean").click()
    page.get_by_text("said admin").wait_for()
    context.close()
