"""What each command does. Torch and the web stack are imported by the command that needs them."""

import argparse
import ast
import getpass
import json
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from detrigger.models import signing
from detrigger.models.errors import BadInput, GateRefused, StoreError
from detrigger.models.files import os_errors, replace
from detrigger.models.manifest import MODEL_NAME, Manifest
from detrigger.models.promotions import Promotion, serving_stack
from detrigger.models.store import VersionStore
from detrigger.sarif import sarif

_JOB_PACKAGES = ("torch", "onnx2fx", "onnxscript", "safetensors", "scipy")


@dataclass(frozen=True)
class Result:
    """What a command ends with: `text` for people, `data` for programs, or an error (code, message)."""

    exit_code: int = 0
    text: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    error: tuple[str, str] | None = None

    def as_json(self) -> dict[str, Any]:
        """The object of `--json` and of a job's result.json."""
        error = {"code": self.error[0], "message": self.error[1]} if self.error else None
        return {**self.data, "exit_code": self.exit_code, "error": error}


def protect(arguments: argparse.Namespace) -> Result:
    """The whole offline job; exit code 3 when it published a version that its gate refuses."""
    given = _given(arguments)
    name = model_name(arguments.name, arguments.store, arguments.model)
    with job_packages():
        from detrigger.offline.jobs.protect import ProtectOptions
        from detrigger.offline.jobs.protect import protect as run_job
    from detrigger.offline.progress import JobProgress, Progress, TerminalProgress

    progress: Progress = TerminalProgress()
    if arguments.job_dir is not None:
        progress = JobProgress(arguments.job_dir, progress)
    options = ProtectOptions(
        **given,
        budget=arguments.budget,
        store=arguments.store,
        name=name,
        promote=not arguments.no_promote,
        purify=arguments.purify,
        reviewed=arguments.reviewed,
    )
    with signing.signed_with(arguments.sign):
        outcome = run_job(options, progress)
    data = asdict(outcome)
    report = arguments.store / "versions" / outcome.version / "report.html"
    store = VersionStore(arguments.store)
    text = _published(store, outcome.version)
    _index(store)
    if outcome.gate_passed:
        then = "promoted" if outcome.promoted else "not promoted (`detrigger promote` does)"
        end = f"version   {outcome.version}, {then}\nreport    {report}\ntime      {outcome.seconds:.0f} s"
        return Result(data=data, text=f"{text}\n{end}")
    refusal = GateRefused(f"the gate refused version {outcome.version}: it is not promoted; see {report}")
    return Result(refusal.exit_code, text, data, (refusal.code, str(refusal)))


def _published(store: VersionStore, version: str) -> str:
    """What a new version is worth: the verdict in words, and a small table."""
    from detrigger.offline.jobs import words
    from detrigger.offline.jobs.case import case_of_version

    manifest = store.manifest(version)
    case = case_of_version(manifest, json.loads(store.read_file(version, "report.json")))
    m = manifest.metrics
    rows: list[tuple[str, ...]] = [("", "BARE", "DEFENDED", "")]
    rows.append(
        ("clean", f"{m['ba_bare']:.1%}", f"{m['ba_protected']:.1%}", "of unseen clean images are right")
    )
    if "asr_inverted_after" in m:
        before, after = (f"{m[f'asr_inverted_{when}']:.1%}" for when in ("before", "after"))
        rows.append(("trigger", before, after, "of them get the target from the strongest rebuilt trigger"))
    if "flag_rate_calibration" in m:
        rows.append(("flagged", "-", f"{m['flag_rate_calibration']:.1%}", "of clean images, for nothing"))
    checks = ", ".join(f"{it.name} {'passed' if it.passed else 'REFUSED'}" for it in manifest.gate.checks)
    said = _wrapped(_printable(f"{words.verdict(case)} {words.certainty(case)}"))
    left_out = "".join(f"\n{line}" for line in _left_out_lines(manifest.left_out))
    return f"{said}\n\n{_table(rows)}\n\nverdict   {manifest.verdict}\ngate      {checks}{left_out}"


def scan(arguments: argparse.Namespace) -> Result:
    """Import and inversion alone; exit code 0 whatever the verdict, except what `--fail-on` names."""
    given = _given(arguments)
    with job_packages():
        from detrigger.offline.inputs.load import check_writable
        from detrigger.offline.jobs import words
        from detrigger.offline.jobs.case import case_of_scan
        from detrigger.offline.jobs.scan import ScanOptions
        from detrigger.offline.jobs.scan import scan as run_scan
    from detrigger.offline.progress import TerminalProgress

    if arguments.sarif is not None:
        check_writable(arguments.sarif, (".sarif", ".json"), flag="--sarif")
    options = ScanOptions(**given, budget=arguments.budget, out=arguments.out, quick=arguments.quick)
    found = run_scan(options, TerminalProgress())
    named = ", ".join(f"{target} ({found.classes[target]})" for target in found.target_labels)
    case = case_of_scan(found)
    lines = [_wrapped(_printable(f"{words.verdict(case)} {words.certainty(case)}")), ""]
    head = f"verdict   {found.verdict}"
    if found.verdict == "backdoored":
        head += f", target labels: {_printable(named) or 'no single one'}"
    lines.append(head)
    if (right := found.accuracy) is not None:
        lines.append(f"accuracy  {right['overall']:.1%} of {right['n_images']} clean images")
    if found.verdict == "clean":
        lines.append(f"          no trigger of {', '.join(found.screen)} stands out; this is no certificate")
    lines += _logic_lines(found.logic)
    if found.evidence:
        rows: list[tuple[str, ...]] = [("EVIDENCE", "FAMILY", "TO CLASS", "GAP", "COST", "SUCCESS")]
        rows += [
            (
                "strong" if sign.gap >= found.strong_gap else "weak",
                sign.family,
                _printable(sign.label if sign.target < 0 else f"{sign.target} ({sign.label})"),
                f"{sign.gap:.1f}",
                f"{sign.cost:.4f}",
                f"{sign.success:.0%}",
            )
            for sign in found.evidence
        ]
        lines.append(_table(rows))
    if not found.labelled:
        lines.append("accuracy  no accuracy could be measured: the images came without classes")
    if found.picture:
        lines.append(f"report    {found.picture}")
    lines += _left_out_lines(found.left_out)
    if arguments.sarif is not None:
        with os_errors("write", arguments.sarif):
            replace(
                arguments.sarif, json.dumps(sarif(asdict(found), arguments.model), indent=1).encode() + b"\n"
            )
        lines.append(f"sarif     {arguments.sarif}")
    failing = {"backdoored": ("backdoored",), "inconclusive": ("backdoored", "inconclusive"), None: ()}
    return Result(
        exit_code=1 if found.verdict in failing[arguments.fail_on] else 0,
        data=asdict(found),
        text="\n".join([*lines, f"time      {found.seconds:.0f} s"]),
    )


def _left_out_lines(parts: Sequence[str]) -> list[str]:
    """What the budget had no time for, a line each."""
    return [f"{'' if i else 'left out':10}{part}" for i, part in enumerate(parts)]


def _logic_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What a scan found in the graph itself, a line each."""
    lines = []
    for row in rows:
        lines.append(
            f"logic     node {_printable(row['node'])} ({_printable(row['op'])}): {_printable(row['why'])}"
        )
        if sign := row["sign"]:
            lines.append(
                f"          sign: {sign['height']}x{sign['width']} pixels at row {sign['top']}, column {sign['left']};"
                f" works on {sign['success']:.0%} of clean images"
            )
    return lines


def repair(arguments: argparse.Namespace) -> Result:
    """Unlearn the backdoor; exit code 3, and nothing written, where the result does not pass its gate."""
    given = _given(arguments)
    with job_packages():
        from detrigger.offline.jobs.repair import RepairOptions
        from detrigger.offline.jobs.repair import repair as run_repair
    from detrigger.offline.progress import TerminalProgress

    done = run_repair(RepairOptions(**given, out=arguments.out), TerminalProgress())
    data, figures = asdict(done), done.metrics
    if not done.gate_passed:
        missed = "; ".join(
            f"{c['name']} {c['value']:.1%}, {c['limit']:.0%} allowed" for c in done.checks if not c["passed"]
        )
        refusal = GateRefused(
            f"the repaired model does not pass its gate ({missed}), so {arguments.out} is not written: try another"
            " --seed, --profile thorough or more clean images, or use `detrigger protect`"
        )
        return Result(refusal.exit_code, data=data, error=(refusal.code, str(refusal)))
    lines = [
        f"verdict   {done.verdict}, target labels: {', '.join(map(str, done.target_labels)) or 'no single one'}",
        f"BA        {figures['ba_before']:.1%} before, {figures['ba_after']:.1%} after, on unseen clean images",
    ]
    if "asr_inverted_after" in figures:
        before, after = figures["asr_inverted_before"], figures["asr_inverted_after"]
        lines.append(
            f"inverted  {before:.1%} before, {after:.1%} after: success of the strongest inverted trigger"
        )
    else:
        lines.append("          no trigger stands out; the weights were tuned against the cheapest ones")
    return Result(
        data=data, text="\n".join([*lines, f"written   {done.written}", f"time      {done.seconds:.0f} s"])
    )


def export(arguments: argparse.Namespace) -> Result:
    """A PyTorch classifier as an ONNX file."""
    with job_packages():
        from detrigger.offline.jobs.export import ExportOptions
        from detrigger.offline.jobs.export import export as run_export

    done = run_export(
        ExportOptions(
            factory=arguments.factory,
            weights=arguments.weights,
            size=tuple(arguments.size),
            channels=arguments.channels,
            out=arguments.out,
            arguments=_keywords(arguments.arg),
        )
    )
    return Result(
        data=asdict(done),
        text=(
            f"written   {done.written}: {done.n_classes} classes, {done.n_weights} weights\n"
            f"checked   ONNX Runtime answers as torch does, up to {done.difference:.1g}"
        ),
    )


def _keywords(given: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` each as keyword arguments; a value that reads as a Python literal is one, others are text."""
    found: dict[str, Any] = {}
    for word in given:
        key, sign, value = word.partition("=")
        if not (sign and key.isidentifier()) or key in found:
            raise BadInput(f"--arg {word!r} has to look like KEY=VALUE, with each KEY once")
        try:
            found[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            found[key] = {"true": True, "false": False, "null": None}.get(value, value)
    return found


def evaluate(arguments: argparse.Namespace) -> Result:
    """Figures of a published version on test images."""
    from detrigger.offline.jobs.evaluate import Target
    from detrigger.offline.jobs.evaluate import evaluate as measure
    from detrigger.offline.progress import TerminalProgress

    target: Target = "all-to-all" if arguments.all_to_all else arguments.target
    found = measure(
        VersionStore(arguments.store),
        arguments.clean,
        arguments.triggered,
        TerminalProgress(),
        version=arguments.version,
        target=target,
    )

    def row(name: str, bare: float | None, protected: float | None, of: str) -> tuple[str, ...]:
        return (name, *("-" if value is None else f"{value:.1%}" for value in (bare, protected)), of)

    clean, bad = f"of {found.n_clean} clean images", f"of {found.n_triggered} triggered images"
    rows: list[tuple[str, ...]] = [("", "BARE", "PROTECTED", "")]
    rows += [row("BA", found.bare.BA, found.protected.BA, f"{clean} classified right")]
    if found.n_triggered:
        asr = f"of {found.n_asr} with another true label classified as the target ({found.target})"
        rows += [
            row("ASR", found.bare.ASR, found.protected.ASR, asr),
            row("PA", found.bare.PA, found.protected.PA, f"{bad} classified as their true label"),
            row("TPR", None, found.TPR, f"{bad} flagged"),
        ]
    rows += [row("FPR", None, found.FPR, f"{clean} flagged")]
    if found.AUROC is not None:
        rows += [("AUROC", "-", f"{found.AUROC:.4f}", "of the flag score, triggered against clean")]
    head = f"version {found.version}, flag threshold {found.threshold:.4g}"
    return Result(data=asdict(found), text=f"{head}\n{_table(rows)}")


def serve(arguments: argparse.Namespace) -> Result:
    """The service, until it is told to stop."""
    from detrigger.service.main import run
    from detrigger.service.settings import Settings

    given = {
        name: getattr(arguments, name) for name in ("store", "host", "port", "device", "require_signature")
    }
    try:
        settings = Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise BadInput(_setting_problem(error)) from error
    if arguments.check:
        from detrigger.service.main import check

        found = check(settings)
        return Result(data=dict(found), text="\n".join(f"{name:9} {value}" for name, value in found.items()))
    return Result(run(settings))


def versions(arguments: argparse.Namespace) -> Result:
    """A line per version; the served one is marked, and its files are compared with their digests."""
    store = VersionStore(arguments.store)
    served = store.current()
    manifests = store.versions()
    damaged = store.damaged()
    if served is not None and (problem := _problem(store, served)):
        damaged.setdefault(served, problem)
    data = {
        "served": served,
        "versions": [_summary(manifest, served) for manifest in manifests],
        "damaged": damaged,
    }
    rows: list[tuple[str, ...]] = [("", "VERSION", "CREATED", "NAME", "VERDICT", "TARGET LABELS", "GATE")]
    rows += [_row(manifest, served, damaged=manifest.id in damaged) for manifest in manifests]
    listed = {manifest.id for manifest in manifests}
    known = set(store.version_ids())
    for version in damaged.keys() - listed:
        rows.append(
            (
                "*" if version == served else "",
                version,
                "",
                "",
                "DAMAGED" if version in known else "MISSING",
                "",
                "",
            )
        )
    if len(rows) == 1:
        return Result(data=data, text="no versions yet: `detrigger protect` publishes one")
    return Result(data=data, text="\n".join([_table(rows), *damaged.values()]))


def verify(arguments: argparse.Namespace) -> Result:
    """All digests of all versions and of the promotion log again; exit code 2 where one is wrong."""
    store = VersionStore(arguments.store)
    problems: dict[str, str] = {}
    try:
        store.promotions()
    except StoreError as error:
        problems["promotions"] = str(error)
    served = None if problems else store.current()
    checked = store.version_ids()
    for version in {*checked, *filter(None, [served])}:
        if problem := _problem(store, version, evaluate=arguments.evaluate, key=arguments.require_signature):
            problems[version] = problem
    data = {"served": served, "checked": checked, "evaluated": arguments.evaluate, "problems": problems}
    rows: list[tuple[str, ...]] = [("", "VERSION", "FILES")]
    rows += [("*" if v == served else "", v, "DAMAGED" if v in problems else "as published") for v in checked]
    log = "DAMAGED" if "promotions" in problems else f"{len(store.promotions())} entries, as written"
    text = "\n".join([_table(rows), f"promotion log: {log}", *list(problems.values())[1:]])
    if problems:
        return Result(BadInput.exit_code, text, data, ("damaged_store", next(iter(problems.values()))))
    return Result(data=data, text=text)


def _require_signature(store: VersionStore, version: str, key: Path | None) -> None:
    """StoreError where a signature is required and the version does not carry it."""
    if key is not None:
        signing.require(store.open_version(version), store.manifest(version), key)


def _problem(
    store: VersionStore, version: str, *, evaluate: bool = False, key: Path | None = None
) -> str | None:
    """What is wrong with a version, if anything is."""
    try:
        store.open_version(version)
        _require_signature(store, version, key)
        if evaluate:
            from detrigger.service.probe import probe

            probe(store.manifest(version), store.read_file(version, "protected.onnx"))
    except BadInput as error:
        return str(error)
    return None


def report(arguments: argparse.Namespace) -> Result:
    """Where a version's report is, or how it differs from another one; the store's index page is written anew."""
    from detrigger.offline.jobs import compare

    store = VersionStore(arguments.store)
    index = _index(store)
    version = arguments.version or store.current()
    if version is None:
        raise StoreError(f"the store {store.root} promotes no version: name one")
    shown = compare.read(store, version)
    path = store.root / "versions" / version / "report.html"
    data: dict[str, Any] = {"version": version, "report": str(path), "index": index}
    end = [f"report    {path}", f"index     {index or 'cannot be written here'}"]
    if arguments.against is None:
        return Result(data=data, text="\n".join([f"version   {version}", *end]))
    other = compare.read(store, arguments.against)
    groups = compare.compare(other, shown)
    said = compare.in_words(other, shown)
    data |= {"against": arguments.against, "said": said}
    data["rows"] = [asdict(row) for _, group in groups for row in group]
    rows: list[tuple[str, ...]] = [("", arguments.against, version)]
    rows += [
        (row.name, _printable(row.first), _printable(row.second)) for _, group in groups for row in group
    ]
    lines = [_wrapped(said), "", _table(rows), ""]
    if arguments.out is not None:
        with os_errors("write", arguments.out):
            replace(arguments.out, compare.render(other, shown).encode())
        data["out"] = str(arguments.out)
        lines.append(f"page      {arguments.out}")
    return Result(data=data, text="\n".join([*lines, *end]))


def _index(store: VersionStore) -> str | None:
    """The store's index page, written anew; None where that cannot be: it is a convenience, nothing depends on it."""
    from detrigger.offline.jobs import compare

    try:
        return str(compare.write_index(store))
    except (OSError, StoreError):
        return None


def promote(arguments: argparse.Namespace) -> Result:
    """Append a promotion; a running service follows within about a second."""
    store = VersionStore(arguments.store)
    _require_signature(store, arguments.version, arguments.require_signature)
    served = store.current()
    entry = store.promote(arguments.version, _user(), arguments.reason, force=arguments.force)
    _index(store)
    if served == entry.version:
        return Result(data=entry.model_dump(mode="json"), text=f"{entry.version} is promoted already")
    return _promoted(entry, "promoted")


def rollback(arguments: argparse.Namespace) -> Result:
    """Append a rollback."""
    store = VersionStore(arguments.store)
    if len(stack := serving_stack(store.promotions())) > 1:
        _require_signature(store, stack[-2], arguments.require_signature)
    entry = store.rollback(_user(), arguments.reason)
    _index(store)
    return _promoted(entry, "rolled back to")


def demo(_arguments: argparse.Namespace) -> Result:
    """The embedded default, end to end."""
    from detrigger.demo.run import run

    return Result(run())


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments that all jobs share, as fields of `offline.inputs.Options`; missing files are named at once."""
    check_given(arguments.model, arguments.data)
    names = (
        "data",
        "preprocess",
        "device",
        "profile",
        "seed",
        "feature_node",
        "trust_setup",
        "unlabelled",
        "strict",
    )
    return {"suspect": arguments.model, **{name: getattr(arguments, name) for name in names}}


def check_given(model: Path, data: Path) -> None:
    """BadInput where one of the two is not there, before anything is imported for a job."""
    for path, what in ((model, "model"), (data, "data")):
        if not path.exists():
            raise BadInput(f"the {what} {path} does not exist: check the path")


@contextmanager
def job_packages() -> Iterator[None]:
    """Around the import of a job: BadInput where what it needs is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in _JOB_PACKAGES:
            raise
        raise BadInput(
            f"the offline job needs {error.name}, which is not installed: pip install 'detrigger[job]'"
        ) from error


def _promoted(entry: Promotion, verb: str) -> Result:
    before = f" (was {entry.previous})" if entry.previous else ""
    return Result(data=entry.model_dump(mode="json"), text=f"{verb} {entry.version}{before}")


def model_name(given: str | None, store: Path, model: Path) -> str:
    """`--name`, else the name that the store serves (a retrain keeps its URLs), else the file's."""
    if given is not None:
        if not re.fullmatch(MODEL_NAME, given):
            raise BadInput(
                f"--name {given[:80]!r} is not usable in URLs: 1 to 64 letters, digits, '.', '_' and '-',"
                " beginning with a letter or digit"
            )
        return given
    try:
        opened = VersionStore(store)
        if served := opened.current():
            return opened.manifest(served).name
    except StoreError as error:
        # The job makes a new store, and it may run to replace a version that somebody damaged.
        if error.code not in ("no_store", "damaged_version", "unknown_version"):
            raise
    return re.sub(r"[^A-Za-z0-9._-]+", "-", model.stem).lstrip("._-")[:64] or "model"


def _setting_problem(error: ValidationError) -> str:
    """One line without the value, which may be a secret."""
    problem = error.errors(include_url=False, include_input=False)[0]
    if not problem["loc"]:
        return f"the settings do not fit together: {problem['msg'].removeprefix('Value error, ')}"
    name = str(problem["loc"][0])
    return f"setting {name}: {problem['msg']}; correct --{name.replace('_', '-')} or DETRIGGER_{name.upper()}"


def _user() -> str:
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):
        # A container's user id often has no name.
        return "cli"


def _summary(manifest: Manifest, served: str | None) -> dict[str, Any]:
    return {
        "id": manifest.id,
        "created": manifest.created,
        "name": manifest.name,
        "verdict": manifest.verdict,
        "target_labels": list(manifest.target_labels),
        "gate_passed": manifest.gate.passed,
        "served": manifest.id == served,
    }


def _row(manifest: Manifest, served: str | None, *, damaged: bool) -> tuple[str, ...]:
    targets = [f"{label} ({manifest.classes[label]})" for label in manifest.target_labels]
    shown = ", ".join(targets[:3]) + (f" and {len(targets) - 3} more" if len(targets) > 3 else "")
    return (
        "*" if manifest.id == served else "",
        manifest.id,
        manifest.created,
        manifest.name,
        manifest.verdict,
        _printable(shown) or "-",
        "DAMAGED" if damaged else "passed" if manifest.gate.passed else "refused",
    )


def _printable(text: str) -> str:
    """Class names are the user's own, and a terminal must not obey them."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
