"""The command line: what a user types, what comes back, and with which exit code.

0 done; 1 a verdict that `scan --fail-on` names; 2 bad input; 3 done but a gate refused; 70 a defect of Detrigger;
130 interrupted. A refusal is one line on standard error; with `--json` it also stands in the one object on standard
output.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from detrigger import __version__, commands
from detrigger.commands import Result
from detrigger.models.errors import BadInput, DetriggerError
from detrigger.models.files import disk_full, is_disk_full, replace

_Command = Callable[[argparse.Namespace], Result]
DEFECT = 70
"""Exit code of an unexpected error (EX_SOFTWARE of sysexits.h): never to be read as a verdict."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Raises nothing except SystemExit of `--help`."""
    parser = command_line()
    arguments = parser.parse_args(argv)
    debug: bool = arguments.debug
    if not debug:
        # A library's warning would stand beside the one line that counts.
        warnings.simplefilter("ignore")
    run: _Command = arguments.run
    try:
        if run is not commands.serve:
            signal.signal(signal.SIGTERM, _interrupt)
        result = run(arguments)
    except KeyboardInterrupt:
        result = Result(130, error=("interrupted", "interrupted; nothing half-written was left visible"))
    except DetriggerError as error:
        result = Result(error.exit_code, error=(error.code, str(error)))
    except Exception as error:  # the last line of defence: users get a line, not a traceback
        if debug:
            traceback.print_exc()
        if is_disk_full(error):
            full = disk_full(error, *_written_to(arguments))
            result = Result(full.exit_code, error=(full.code, str(full)))
        else:
            text = " ".join(f"unexpected {type(error).__name__}: {error}".split())[:500]
            result = Result(DEFECT, error=("internal", f"{text}; rerun with --debug for the traceback"))
    _write_result(result, getattr(arguments, "job_dir", None))
    return _show(result, as_json=arguments.json)


def _written_to(arguments: argparse.Namespace) -> list[Path]:
    """The places that a command may write to."""
    given = [getattr(arguments, name, None) for name in ("store", "out", "job_dir")]
    return [Path.cwd(), Path(tempfile.gettempdir()), *(path for path in given if isinstance(path, Path))]


def _show(result: Result, *, as_json: bool) -> int:
    """Print a result; its exit code, or that of bad input where what it says could not be written down."""
    with suppress(OSError):  # a log on a full disk: the exit code says it as well
        if result.error is not None:
            sys.stderr.write(f"detrigger: {result.error[1]}\n")
            sys.stderr.flush()
    try:
        if as_json:
            sys.stdout.write(json.dumps(result.as_json()) + "\n")
        elif result.text:
            sys.stdout.write(result.text + "\n")
        sys.stdout.flush()
    except OSError as error:
        # Python would try again at exit, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # whoever read our output (`| head`) has seen enough
            with suppress(OSError):
                sys.stderr.write(f"detrigger: cannot write to standard output: {error.strerror}\n")
            return result.exit_code or BadInput.exit_code
    return result.exit_code


def _write_result(result: Result, job_dir: Path | None) -> None:
    """`result.json` of a job, as a whole or not at all: the service reads it when the process is gone."""
    if job_dir is None:
        return
    try:
        job_dir.mkdir(parents=True, exist_ok=True)
        replace(job_dir / "result.json", json.dumps(result.as_json()).encode() + b"\n")
    except OSError as error:
        with suppress(OSError):
            sys.stderr.write(f"detrigger: cannot write {job_dir / 'result.json'}: {error.strerror}\n")


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


class _Parser(argparse.ArgumentParser):
    """argparse, with refusals of one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(BadInput.exit_code, f"detrigger: {message} (see `{self.prog} --help`)\n")


def command_line() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = _Parser(
        prog="detrigger",
        description="Serve an image classifier that somebody else trained, without its backdoor.",
        epilog="Exit codes: 0 done, 1 a verdict that --fail-on names, 2 bad input, 3 finished but a gate refused,"
        " 70 a defect of Detrigger, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"detrigger {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: _Command, text: str) -> argparse.ArgumentParser:
        command = subparsers.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.set_defaults(run=run)
        command.add_argument("--json", action="store_true", help="print one JSON object on standard output")
        command.add_argument("--debug", action="store_true", help="show the traceback of an unexpected error")
        return command

    _add_protect(add("protect", commands.protect, "protect a classifier and publish the result in a store"))
    command = add("scan", commands.scan, "look for a backdoor in a classifier, and change nothing")
    _add_job(command)
    command.add_argument(
        "--out", type=Path, metavar="FILE", help="write the inverted triggers' pictures here: .html or .png"
    )
    _add_budget(command)
    command.add_argument(
        "--quick",
        action="store_true",
        help="look for seconds: plain backdoors alone; says that it has not searched in depth where it finds nothing",
    )
    command.add_argument(
        "--fail-on",
        choices=("backdoored", "inconclusive"),
        help="end with exit code 1 where the verdict is this or worse (inconclusive < backdoored)",
    )
    command.add_argument("--sarif", type=Path, metavar="FILE", help="write the result here as SARIF 2.1.0")
    command.epilog = (
        "Exit code 0 in each verdict, unless --fail-on names it:"
        " read it from the output, or from `verdict` of --json."
    )
    command = add("repair", commands.repair, "unlearn the backdoor and write a repaired classifier")
    _add_job(command)
    command.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="the repaired classifier, an .onnx like MODEL"
    )
    command.epilog = (
        "FILE has MODEL's graph, inputs and outputs with other weights. It is written only if it passes a gate on"
        " unseen images: BA drop at most 2 points, success of the inverted triggers at most 10%; else exit code 3."
        " A repaired model flags nothing: `protect` does both."
    )
    _add_evaluate(add("evaluate", commands.evaluate, "measure a published version on test images"))
    _add_export(add("export", commands.export, "write your own PyTorch classifier as ONNX"))
    _add_serve(add("serve", commands.serve, "answer requests from the version that the store promotes"))
    command = add("versions", commands.versions, "list the versions of a store")
    _add_store(command)
    command = add("verify", commands.verify, "look whether everything in a store is as it was published")
    _add_store(command)
    command.add_argument(
        "--evaluate", action="store_true", help="run each version's graph on generated images as well"
    )
    _add_signature(command)
    command = add(
        "report", commands.report, "where a version's report is, or how it differs from another version"
    )
    _add_store(command)
    command.add_argument("version", nargs="?", metavar="VERSION", help="default: the promoted one")
    command.add_argument("--against", metavar="VERSION", help="compare with this one")
    command.add_argument(
        "--out", type=Path, metavar="FILE", help="write the comparison here as a page (.html)"
    )
    command.epilog = "STORE/index.html, a page with all versions and links to their reports, is written anew."
    command = add("promote", commands.promote, "serve a version from now on")
    _add_store(command)
    command.add_argument("version", metavar="VERSION", help="id as `detrigger versions` shows it")
    command.add_argument("--reason", default="", help="kept in the promotion log")
    command.add_argument("--force", action="store_true", help="even if the version's gate did not pass")
    _add_signature(command)
    command = add("rollback", commands.rollback, "serve the version that was promoted before the current one")
    _add_store(command)
    command.add_argument("--reason", default="", help="kept in the promotion log")
    _add_signature(command)
    add(
        "demo", commands.demo, "backdoor a small classifier, protect it, and show the difference on a service"
    )
    return parser


def _add_signature(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--require-signature",
        type=Path,
        metavar="KEY",
        default=os.environ.get("DETRIGGER_REQUIRE_SIGNATURE") or None,
        help="refuse versions that do not carry the signature of this public key (PEM)"
        " [DETRIGGER_REQUIRE_SIGNATURE]",
    )


def _add_store(command: argparse.ArgumentParser) -> None:
    command.add_argument("--store", type=Path, required=True, help="folder of the version store")


def _add_job(command: argparse.ArgumentParser) -> None:
    """What every command takes that looks at a suspect."""
    command.add_argument("model", type=Path, metavar="MODEL", help="the suspect: an ONNX classifier")
    command.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help="clean images: one folder per class, or an .npz with x (uint8 NHWC) and y (int)",
    )
    command.add_argument(
        "--preprocess",
        type=Path,
        metavar="FILE",
        help='JSON {"size":[H,W],"mean":[...],"std":[...],"classes":[...]}, or the file of Hugging Face or timm;'
        " default: mean 0, std 1",
    )
    command.add_argument(
        "--unlabelled",
        action="store_true",
        help="DIR holds images without classes: the suspect's own answers stand for them",
    )
    command.add_argument(
        "--strict", action="store_true", help="refuse damaged images instead of leaving out a few"
    )
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    command.add_argument("--profile", choices=("fast", "standard", "thorough"), default="standard")
    command.add_argument("--seed", type=int, default=0, help="of everything random (default 0)")
    command.add_argument(
        "--trust-setup",
        action="store_true",
        help="go on although the suspect is hardly ever right on the clean images as they are set up",
    )
    command.add_argument(
        "--feature-node",
        help="name of the graph node to cut at, where the one found is wrong (see docs/method.md)",
    )


def _add_budget(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--budget",
        type=float,
        metavar="MINUTES",
        help="spend at most that, and say what was left out for it; a search that left something out and found nothing"
        " is inconclusive",
    )


def _add_protect(command: argparse.ArgumentParser) -> None:
    _add_job(command)
    _add_budget(command)
    command.add_argument(
        "--store", type=Path, required=True, help="version store to publish in; made if absent"
    )
    command.add_argument(
        "--name", help="model name in answers and URLs; default: the served one's, else the file's"
    )
    command.add_argument(
        "--reviewed",
        type=Path,
        metavar="DIR",
        help="learn from images that people reviewed: an unpacked export of the quarantine",
    )
    command.add_argument("--no-promote", action="store_true", help="publish only, even if the gate passes")
    command.add_argument(
        "--purify",
        choices=("every", "suspected"),
        default="every",
        help="suspected: images whose bare label is not a suspected one are answered by MODEL at once, several times"
        " as fast; refused where the verdict names no label (default every)",
    )
    command.add_argument(
        "--sign", type=Path, metavar="KEY", help="sign the version with this private key (PEM)"
    )
    # For the service, which starts this command as its retrain job.
    command.add_argument("--job-dir", type=Path, help=argparse.SUPPRESS)


def _add_evaluate(command: argparse.ArgumentParser) -> None:
    _add_store(command)
    images = "one folder per class, or an .npz with x (uint8 NHWC) and y (true labels)"
    command.add_argument(
        "--clean", type=Path, required=True, metavar="X", help=f"clean test images: {images}"
    )
    command.add_argument(
        "--triggered",
        type=Path,
        metavar="Y",
        help="the same with the trigger on them, by their TRUE class; an .npz may hold t, the target of each image",
    )
    command.add_argument(
        "--version", metavar="ID", help="as `detrigger versions` shows it; default: the promoted one"
    )
    target = command.add_mutually_exclusive_group()
    target.add_argument(
        "--target",
        type=int,
        metavar="N",
        help="target label; default: t, else the one that the version suspects",
    )
    target.add_argument("--all-to-all", action="store_true", help="the target of each image is its label + 1")
    command.epilog = (
        "BA: share of clean images classified right. ASR: share of triggered images, true label not the target,"
        " classified as the target. PA: share of triggered images classified as their true label. TPR, FPR: share"
        " of triggered, of clean images flagged at the version's own threshold. AUROC: of the flag score."
    )


def _add_export(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--factory",
        required=True,
        metavar="MODULE:FUNCTION",
        help="the function that returns the network (torch.nn.Module); ITS CODE IS RUN, so know it",
    )
    command.add_argument(
        "--arg",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an argument of the function, by its name; may be given again",
    )
    command.add_argument(
        "--weights",
        type=Path,
        required=True,
        metavar="FILE",
        help="the network's state_dict: .safetensors, or .pth of torch.save, of which only numbers are read",
    )
    command.add_argument("--size", type=int, nargs=2, required=True, metavar=("H", "W"), help="of its images")
    command.add_argument("--channels", type=int, choices=(1, 3), default=3, help="grey or colour (default 3)")
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help="the .onnx to write")
    command.epilog = (
        "FILE takes images as the network does, normalised, and answers with logits; mean and std go into the"
        " preprocess file. The answers of the written file are compared with torch's first."
    )


def _add_serve(command: argparse.ArgumentParser) -> None:
    flags = {
        "store": "version store to serve from",
        "host": "address to listen on (default 127.0.0.1)",
        "port": "port to listen on (default 8000)",
        "device": "auto, cpu or cuda (default auto)",
    }
    _add_signature(command)
    for name, text in flags.items():
        command.add_argument(f"--{name}", help=f"{text} [DETRIGGER_{name.upper()}]")
    command.add_argument(
        "--check",
        action="store_true",
        help="check settings, store, model, device and port, then end without serving",
    )
    command.epilog = (
        "Every setting is an environment variable DETRIGGER_<NAME>; a flag wins over its variable. The full"
        " list is in docs/operations.md."
    )
