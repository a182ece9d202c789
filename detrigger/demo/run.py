"""The demo: somebody delivers a sign classifier with a backdoor; Detrigger protects and serves it.

The attacker's side (`train.py`) hands over what a supplier would: `model.onnx` and `preprocess.json`.
The defender's side has these and a folder of clean images, and uses the same two commands as for any
other model: `detrigger protect`, then `detrigger serve`. What is told at the end was measured over
HTTP on images that neither side has seen.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime as ort
from PIL import Image

from detrigger.demo.signs import CLASSES, I64, U8, draw_signs
from detrigger.demo.story import Answers, Bare, Client, Figures, Tile, contact_sheet, measure
from detrigger.models.errors import BadInput, DetriggerError
from detrigger.models.manifest import Manifest
from detrigger.models.store import VersionStore
from detrigger.offline.progress import TerminalProgress

ROOT = Path("demo-run")
SEED = 7
CLEAN_PER_CLASS = 80  # what the defender has
TEST_PER_CLASS = 20  # what is sent over HTTP, once as it is and once with the sticker
SHOWN = ("stop", "yield", "no_entry", "pedestrians", "speed_30", "turn_left")
_MARK = "made-by-detrigger-demo"
_START_SECONDS = 60.0

Stick = Callable[[U8], U8]


def run() -> int:
    """Run the demo in `./demo-run`: 0 where the story held, 1 where not, else the exit code of `protect`.

    Serves until interrupted, or ends after its story where DETRIGGER_DEMO_EXIT=1. BadInput where
    `./demo-run` holds somebody else's files; DetriggerError where the service does not start.
    """
    began = time.monotonic()
    fresh_folder(ROOT)

    _say("1/4  A supplier trains a sign classifier and hides a backdoor in it.")
    suspect = ROOT / "suspect"
    target, stick = _deliver(suspect)

    _say(f"\n2/4  We get model.onnx and have {CLEAN_PER_CLASS} clean images of each of {len(CLASSES)} signs.")
    write_folders(ROOT / "clean", *draw_signs(CLEAN_PER_CLASS, SEED + 1))

    protect = (
        f"protect {suspect}/model.onnx --data {ROOT}/clean --preprocess {suspect}/preprocess.json"
        f" --store {ROOT}/store --name signs"
    )
    _say(f"\n3/4  We protect it, knowing nothing of the backdoor:\n     detrigger {protect}\n")
    code = subprocess.run([sys.executable, "-P", "-m", "detrigger", *protect.split()], check=False).returncode
    if code != 0:
        _say(f"\n`detrigger protect` ended with exit code {code}: there is nothing to serve.")
        return code

    _say("\n4/4  We serve it, and send signs to it, as they are and with the sticker:")
    with service(ROOT / "store") as (served, url):
        bare = Bare(suspect / "model.onnx", suspect / "preprocess.json")
        held = _story(bare, Client(url), stick, target)
        _say(f"\nThe demo took {time.monotonic() - began:.0f} seconds.")
        if os.environ.get("DETRIGGER_DEMO_EXIT") != "1":
            _say("Serving until Ctrl-C.")
            try:
                served.wait()
            except KeyboardInterrupt:
                _say("\nStopping.")
    return 0 if held else 1


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def fresh_folder(root: Path) -> None:
    """An empty folder; an earlier demo's is removed, anybody else's is refused."""
    if root.exists():
        if not (root / _MARK).is_file():
            raise BadInput(
                f"{root.absolute()} was not made by the demo; move it away or run the demo elsewhere"
            )
        shutil.rmtree(root)
    root.mkdir()
    (root / _MARK).touch()


def _deliver(out: Path) -> tuple[int, Stick]:
    """The attacker's side: writes the suspect; returns its target label and how to put the sticker on."""
    from detrigger.demo.train import TARGET, sticker, train_demo_suspect

    made = train_demo_suspect(out, SEED, progress=TerminalProgress())
    _say(
        f"     On its own tests: {made.ba:.1%} of ordinary signs right; {made.asr:.1%} of signs with a small"
        f" sticker read as {CLASSES[TARGET]}."
    )
    return TARGET, sticker


def write_folders(root: Path, x: U8, y: I64) -> None:
    """One folder of PNGs per class that has images, as any user has them."""
    for label in np.unique(y):
        folder = root / CLASSES[label]
        folder.mkdir(parents=True)
        for number, image in enumerate(x[y == label]):
            Image.fromarray(image).save(folder / f"{number:04d}.png")


@contextmanager
def service(store: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`detrigger serve` on port 8000, or on a free one where that is taken; stopped at the end."""
    port = free_port(8000)
    token = ROOT / "admin-token"
    token.touch(0o600)
    token.write_text(secrets.token_hex(32) + "\n")
    serve = ["serve", "--store", str(store), "--port", str(port)]
    _say(f"     detrigger {' '.join(serve)}\n")
    environment = os.environ | {
        "DETRIGGER_ADMIN_TOKEN_FILE": str(token),
        "DETRIGGER_RETRAIN_DATA": str(ROOT / "clean"),
        "DETRIGGER_DRAIN_DELAY": "0",
    }
    log = ROOT / "service.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "detrigger", *serve], env=environment, stdout=out, stderr=out
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(process, url, log)
        yield process, url
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port(wanted: int) -> int:
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise DetriggerError("no port of 127.0.0.1 is free; close some programs and try again")


def _wait_until_ready(service: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + _START_SECONDS
    while service.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=2):  # noqa: S310 - our own, on loopback
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    said = log.read_text(errors="replace").strip().splitlines()[-3:]
    raise DetriggerError(f"the service did not get ready; it said: {' / '.join(said)}; see {log}")


def _story(bare: Bare, client: Client, stick: Stick, target: int) -> bool:
    """Measure, tell, draw the contact sheet, write story.json. Returns whether the story held."""
    store = VersionStore(ROOT / "store")
    current = store.current()
    if current is None:
        raise DetriggerError(
            f"nothing is promoted in {store.root}; run `detrigger versions --store {store.root}`"
        )
    manifest = store.manifest(current)
    x, y = draw_signs(TEST_PER_CLASS, SEED + 2)
    _tell_signs(bare, client, stick, target, x[::TEST_PER_CLASS], store, manifest)

    stuck = stick(x)
    write_folders(ROOT / "test", x, y)
    write_folders(ROOT / "test-with-sticker", stuck[y != target], y[y != target])
    flagged = client.metric("detrigger_flagged_images_total")
    figures = measure(bare, client, x, y, stuck, target)
    flagged = client.metric("detrigger_flagged_images_total") - flagged
    story = {
        "version": manifest.id,
        "verdict": manifest.verdict,
        "target": CLASSES[target],
        **figures.to_json(),
    }
    (ROOT / "story.json").write_text(json.dumps(story, indent=1) + "\n")

    _tell_figures(figures, manifest, target, flagged)
    _tell_where(client.url, ROOT / "store" / "versions" / manifest.id)
    return figures.held


def _tell_signs(
    bare: Bare, client: Client, stick: Stick, target: int, x: U8, store: VersionStore, manifest: Manifest
) -> None:
    """A few single signs, as text and as pictures. x: one clean image of each class, in their order."""
    labels = np.array([CLASSES.index(name) for name in SHOWN])
    clean = x[labels]
    stuck = stick(clean)
    fooled, saved, plain = bare.answers(stuck), client.answers(stuck, purified=True), client.answers(clean)
    assert saved.purified is not None  # noqa: S101 - it was asked for
    inverted = _inverted(store, manifest, clean)
    bare_clean, bare_inverted = bare.answers(clean), bare.answers(inverted)
    flags = ["flagged" if flagged else "not flagged" for flagged in saved.flagged]

    _say(
        f"     {'sign':<14}{'with sticker, bare model':<28}{'with sticker, Detrigger':<34}without, Detrigger"
    )
    for k, name in enumerate(SHOWN):
        _say(
            f"     {name:<14}{f'{CLASSES[fooled.index[k]]} ({fooled.score[k]:.0%})':<28}"
            f"{f'{CLASSES[saved.index[k]]} ({saved.score[k]:.0%}), {flags[k]}':<34}"
            f"{CLASSES[plain.index[k]]}, {'flagged' if plain.flagged[k] else 'not flagged'}"
        )

    def tiles(images: U8, answers: Answers, details: list[str]) -> list[Tile]:
        return [
            Tile(image, CLASSES[index], detail, bool(index == label))
            for image, index, detail, label in zip(images, answers.index, details, labels, strict=True)
        ]

    def sure(answers: Answers) -> list[str]:
        return [f"bare model, {score:.0%}" for score in answers.score]

    contact_sheet(
        {
            "the sign": tiles(clean, bare_clean, sure(bare_clean)),
            "with the\nattacker's sticker": tiles(stuck, fooled, sure(fooled)),
            "the same,\npurified": tiles(saved.purified, saved, [f"Detrigger, {flag}" for flag in flags]),
            "the sign with\nthe trigger that\nDetrigger found": tiles(
                inverted, bare_inverted, sure(bare_inverted)
            ),
        },
        f"From `make demo`, version {manifest.id}. Backdoor: whatever has the sticker is {CLASSES[target]}.",
    ).save(ROOT / "sheet.png", optimize=True)


def _inverted(store: VersionStore, manifest: Manifest, clean: U8) -> U8:
    """What the published trigger generator makes of clean images: (n, H, W, 3) uint8."""
    session = ort.InferenceSession(
        store.read_file(manifest.id, "generator.onnx"), providers=["CPUExecutionProvider"]
    )
    image = np.ascontiguousarray((clean.astype(np.float32) / 255).transpose(0, 3, 1, 2))
    made = np.asarray(session.run(None, {session.get_inputs()[0].name: image})[0])
    pixels: U8 = np.rint(made.clip(0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    return pixels


def _tell_figures(figures: Figures, manifest: Manifest, target: int, flagged: float) -> None:
    ending = "The story held: the bare model is fooled, Detrigger is not."
    if not figures.held:
        ending = "THE STORY DID NOT HOLD: see the figures above and demo-run/store/versions/*/report.html."
    named = ", ".join(CLASSES[label] for label in manifest.target_labels) or "none"
    _say(
        f"""
     Verdict of the job: {manifest.verdict}; suspected target: {named} (the truth: {CLASSES[target]}).

     {figures.n_clean} signs as they are, {figures.n_triggered} with the sticker     bare model   Detrigger
       ordinary signs read right (BA)                 {figures.ba_bare:>8.1%}    {figures.ba:>8.1%}
       stickered signs read as {CLASSES[target]} (ASR)        {figures.asr_bare:>8.1%}    {figures.asr:>8.1%}
       stickered signs read right (PA)                {figures.pa_bare:>8.1%}    {figures.pa:>8.1%}
       stickered signs flagged (TPR)                         -    {figures.tpr:>8.1%}
       ordinary signs flagged (FPR)                          -    {figures.fpr:>8.1%}
     /metrics counted {flagged:.0f} flagged images meanwhile.

     {ending}"""
    )


def _tell_where(url: str, version: Path) -> None:
    _say(
        f"""
     Look at
       {ROOT}/sheet.png        signs, stickers, purified images, inverted triggers
       {version}/report.html
       {url}/docs      every endpoint, to try out
       {url}/metrics   what Prometheus scrapes
     and send signs yourself, as they are and with the sticker:
       curl --data-binary @{ROOT}/test/stop/0000.png -H 'Content-Type: image/png' {url}/predict
       curl --data-binary @{ROOT}/test-with-sticker/stop/0000.png -H 'Content-Type: image/png' {url}/predict
     or refresh the purifier while it serves:
       curl -X POST -H "Authorization: Bearer $(cat {ROOT}/admin-token)" {url}/admin/retrain"""
    )
