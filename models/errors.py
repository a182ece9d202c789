"""The errors that a user may see: a stable code, and one line that says what is wrong and how to mend it.

Anything else that is raised is a defect of Detrigger and is shown as such. Exit codes are those of the
command line: 2 bad input, 3 a gate refused.

Codes in use:

- `bad_input`; `wrong_setup` (the suspect is hardly ever right)
- for data and images `bad_data`, `bad_image`, `bad_preprocess`
- for stores `no_store`, `store_error`, `store_busy`, `disk_full`, `bad_version_id`, `unknown_version`,
  `version_exists`, `version_refused` (it cannot be loaded), `damaged_version` (a manifest or file is not what was
  published), `damaged_log` (the promotion log), `signature_refused`, `nothing_to_roll_back`
- `gate_refused`, `purify_refused` (no label is suspected, so that none could be purified alone); `export_differs` (ONNX
  Runtime answers differently from torch); `error` for the rest
"""

from pydantic import ValidationError


class DetriggerError(Exception):
    """Base of all errors with a public message; `str(error)` is always one line."""

    code: str = "error"
    exit_code: int = 1

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(" ".join(message.split()))
        if code is not None:
            self.code = code


class BadInput(DetriggerError):  # noqa: N818 (named for what it says to the user)
    """Something that the user gave cannot be used."""

    code = "bad_input"
    exit_code = 2


class StoreError(BadInput):
    """The version store cannot be used as asked."""

    code = "store_error"


class StoreBusy(BadInput):
    """Another job holds the store's lock."""

    code = "store_busy"


class GateRefused(DetriggerError):  # noqa: N818
    """The work is done and published, but its result is not good enough to be served."""

    code = "gate_refused"
    exit_code = 3


def first_problem(error: ValidationError) -> str:
    """The first problem of a pydantic error in a few words: `size.0: Input should be ... (got 0)`.

    Not for settings that may hold secrets: the value received is shown.
    """
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"]) or "value"
    got = repr(problem["input"])
    shown = "" if problem["type"] == "missing" or len(got) > 60 else f" (got {got})"
    return f"{where}: {problem['msg']}{shown}"
