"""Two published versions side by side, and the store's index: pages from manifests and report.json alone, no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detrigger.models.files import os_errors, replace
from detrigger.models.manifest import Manifest, utc_now
from detrigger.models.store import VersionStore
from detrigger.offline.jobs.pages import page

INDEX = "index.html"
HARDLY = 0.001
"""Shares that differ by less are called the same."""


@dataclass(frozen=True)
class Version:
    """A version's manifest and its report.json."""

    manifest: Manifest
    report: Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One thing of both versions, in words; ``better``: -1 the first, 1 the second, 0 neither or no such thing."""

    name: str
    first: str
    second: str
    better: int = 0

    @property
    def differs(self) -> bool:
        """Whether the two are not the same."""
        return self.first != self.second


def read(store: VersionStore, version: str) -> Version:
    """A version as published. StoreError where it is not there or damaged."""
    return Version(store.manifest(version), json.loads(store.read_file(version, "report.json")))


def compare(first: Version, second: Version) -> list[tuple[str, list[Row]]]:
    """What differs and what does not, in groups."""
    a, b = first.manifest, second.manifest

    def words(name: str, of: Any) -> Row:
        return Row(name, str(of(first)), str(of(second)))

    def figure(name: str, of: Any, wanted: int) -> Row:
        values = [of(it) for it in (first, second)]
        shown = ["not measured" if value is None else f"{value:.1%}" for value in values]
        better = 0
        if None not in values and abs(values[0] - values[1]) >= HARDLY:
            better = wanted if values[1] > values[0] else -wanted
        return Row(name, shown[0], shown[1], better)

    def metric(name: str, key: str, wanted: int) -> Row:
        return figure(name, lambda it: it.manifest.metrics.get(key), wanted)

    return [
        (
            "Verdict",
            [
                words("verdict", lambda it: it.manifest.verdict),
                words("suspected labels", lambda it: _labels(it.manifest)),
                words("evidence", _evidence),
                words("learned from reviewed images", _learned),
            ],
        ),
        (
            "On clean images",
            [
                metric("right answers, bare", "ba_bare", 0),
                metric("right answers, defended", "ba_protected", 1),
                metric("loss of right answers", "ba_drop", -1),
                figure("clean images flagged, by design", lambda it: it.manifest.flag.alpha, -1),
            ],
        ),
        (
            "Against triggers",
            [
                metric("success of the strongest rebuilt trigger, bare", "asr_inverted_before", 0),
                metric("success of the strongest rebuilt trigger, defended", "asr_inverted_after", -1),
                metric("success of a new search through the defence", "remaining", -1),
                figure(
                    "flagged of the images that a rebuilt trigger leads astray",
                    lambda it: it.report.get("flag", {}).get("led_flagged"),
                    1,
                ),
                words("gate", lambda it: "passed" if it.manifest.gate.passed else "refused"),
            ],
        ),
        (
            "How it was made",
            [
                Row("made", a.created, b.created),
                words("profile and seed", lambda it: f"{it.manifest.profile}, {it.manifest.seed}"),
                words("images that are purified", lambda it: it.manifest.purify),
                words(
                    "clean images",
                    lambda it: f"{it.manifest.data.n_images}, sha256 {it.manifest.data.sha256[:12]}",
                ),
                words(
                    "suspect",
                    lambda it: f"{it.manifest.suspect.file_name}, sha256 {it.manifest.suspect.sha256[:12]}",
                ),
                words("tools", lambda it: ", ".join(f"{k} {v}" for k, v in it.manifest.tools.items())),
                Row("time", f"{a.seconds:.0f} s", f"{b.seconds:.0f} s"),
            ],
        ),
    ]


def in_words(first: Version, second: Version) -> str:
    """What a reader of the comparison has to know before the figures."""
    a, b = first.manifest, second.manifest
    if a.suspect.sha256 != b.suspect.sha256:
        return "These versions defend two different classifiers: their figures say nothing about each other."
    same = "on the same clean images" if a.data.sha256 == b.data.sha256 else "on different clean images"
    rows = [row for _, group in compare(first, second) for row in group if row.better]
    better = [row.name for row in rows if row.better > 0]
    worse = [row.name for row in rows if row.better < 0]
    said = [f"both defend the same classifier, measured {same}"]
    if better:
        said.append(f"{b.id} is better in: {', '.join(better)}")
    if worse:
        said.append(f"{b.id} is worse in: {', '.join(worse)}")
    if not rows:
        said.append("no measured figure differs")
    return ". ".join(it[0].upper() + it[1:] for it in said) + "."


def render(first: Version, second: Version) -> str:
    """The comparison as a page."""
    return page(
        "compare.html",
        title=f"{first.manifest.id} and {second.manifest.id}",
        first=first.manifest,
        second=second.manifest,
        said=in_words(first, second),
        groups=compare(first, second),
    )


def write_index(store: VersionStore) -> Path:
    """Write STORE/index.html: every version with its verdict and figures, and links to the reports."""
    path = store.root / INDEX
    text = page(
        "index.html",
        versions=store.versions()[::-1],
        damaged=store.damaged(),
        served=store.current(),
        written=utc_now(),
        labels=_labels,
    )
    with os_errors("write", path):
        replace(path, text.encode())
    return path


def _labels(manifest: Manifest) -> str:
    return ", ".join(manifest.classes[t] for t in manifest.target_labels) or "none"


def _evidence(version: Version) -> str:
    signs: Sequence[Mapping[str, Any]] = version.report.get("evidence", ())
    return "; ".join(f"{it['family']} to {it['label']}, {it['gap']:.1f} bits" for it in signs) or "none"


def _learned(version: Version) -> str:
    rows: Sequence[Mapping[str, Any]] = version.report.get("reviewed", ())
    return (
        "; ".join(f"{row['n_confirmed']} images of {row['label']}" for row in rows if row["learned"])
        or "nothing"
    )
