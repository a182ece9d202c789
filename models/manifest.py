"""The manifest of a published version: all that the service must know, and where everything came from.

A manifest carries a digest of itself beside the digests of its files, so a threshold edited by hand is
noticed just as a changed model is.

The format grows by these rules:

- `schema_version` is a whole number. A reader refuses a higher one than `SCHEMA`, in one sentence that says so.
- A field that an older reader may leave out of account is added as optional, without a new number: from 2 on readers
  ignore what they do not know. The digest is over the file's content as it stands, so it holds for them as well.
- A field that changes what an image or an answer means needs a new number. `preprocess` alone refuses keys that it
  does not know: to ignore one would change the pixels.
- Versions of all lower numbers are read, and served as they were.
"""

import hashlib
import json
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from detrigger.models.errors import first_problem
from detrigger.models.preprocess import Preprocess

SCHEMA = 2
"""The manifests that are written, and the highest that are read."""
VERSION_ID = r"^[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}$"
MODEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
VersionId = Annotated[str, Field(pattern=VERSION_ID)]
ModelName = Annotated[str, Field(pattern=MODEL_NAME)]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
UtcTime = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
Verdict = Literal["clean", "backdoored", "inconclusive"]
Purify = Literal["every", "suspected"]
"""Which images are purified: every one, or those whose raw label is suspected (`Flag.suspected`)."""


class NewerSchema(ValueError):  # noqa: N818 (named for what it says)
    """The manifest is whole, but only a newer Detrigger understands it."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Flag(_Frozen):
    """The flag rule: an input is flagged when its score is above `threshold`.

    The threshold was set on `n_calibration` clean images for a false-positive rate of `alpha`. Where labels are
    `suspected`, an image with another raw label has to lose `grounds` times as much of its log-probability for the same
    score. That is done in the graph, so the rule stays the same.
    """

    threshold: FiniteFloat
    alpha: Annotated[float, Field(gt=0, lt=1)]
    n_calibration: Annotated[int, Field(ge=0)]
    score: Literal["log_confidence_drop"] = "log_confidence_drop"
    suspected: tuple[int, ...] = ()
    grounds: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.0


class Check(_Frozen):
    """One condition of the gate: `value` against `limit`, with a sentence for people."""

    name: str
    value: FiniteFloat
    limit: FiniteFloat
    passed: bool
    detail: str = ""


class Gate(_Frozen):
    """Whether the version may be promoted, and why (not)."""

    passed: bool
    checks: tuple[Check, ...] = ()


class File(_Frozen):
    """What a file of the version must be."""

    sha256: Sha256
    size: Annotated[int, Field(ge=0)]


class Suspect(_Frozen):
    """Which model was protected."""

    sha256: Sha256
    file_name: str


class Data(_Frozen):
    """Which clean images it was protected with; `sha256` is `Dataset.digest`.

    `labelled` is false where the suspect's own answers were taken for classes, so that no accuracy could be measured.
    """

    sha256: Sha256
    n_images: Annotated[int, Field(ge=1)]
    n_classes: Annotated[int, Field(ge=2)]
    labelled: bool = True


class Manifest(_Frozen):
    """`STORE/versions/<id>/manifest.json`. `files` and `digest` are filled in by `VersionStore.publish`.

    `left_out` is what the job's budget had no time for, in words.
    """

    schema_version: Annotated[int, Field(ge=1, le=SCHEMA)] = SCHEMA
    id: VersionId
    name: ModelName
    created: UtcTime
    parent: VersionId | None = None
    profile: str
    seed: int
    preprocess: Preprocess
    input_channels: Literal[1, 3]
    verdict: Verdict
    target_labels: tuple[int, ...] = ()
    flag: Flag
    purify: Purify = "every"
    gate: Gate
    metrics: dict[str, FiniteFloat] = {}
    files: dict[FileName, File] = {}
    suspect: Suspect
    data: Data
    tools: dict[str, str] = {}
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    left_out: tuple[str, ...] = ()
    digest: Sha256 | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        n_classes = len(self.preprocess.classes)
        if n_classes < 2:
            raise ValueError("the manifest's preprocess must name the classes")
        if self.input_channels != self.preprocess.channels:
            raise ValueError("input_channels and the length of mean differ")
        if any(not 0 <= label < n_classes for label in (*self.target_labels, *self.flag.suspected)):
            raise ValueError(f"target_labels must lie in 0..{n_classes - 1}")
        if self.purify == "suspected" and not self.flag.suspected:
            raise ValueError("purify is suspected, but flag.suspected names no label")
        return self

    @property
    def given_up(self) -> str:
        """What the choice of which images are purified leaves open, in a sentence; empty where nothing."""
        if self.purify == "every":
            return ""
        names = ", ".join(f"{label} ({self.classes[label]})" for label in self.flag.suspected)
        return (
            f"an image whose raw label is not {names} is answered by the suspect as it is and never flagged: a backdoor"
            " that leads to another label would work"
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of the logits."""
        return self.preprocess.classes

    @classmethod
    def read(cls, raw: bytes) -> Self:
        """The manifest in a file's bytes, found to be as it was published.

        Raises:
            NewerSchema: its schema is above SCHEMA.
            ValueError: it is not; with the reason.
        """
        content = pydantic_core.from_json(raw)
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")  # noqa: TRY004 - about the file, not the caller
        schema = content.get("schema_version")
        if isinstance(schema, int) and schema > SCHEMA:
            raise NewerSchema(
                f"a newer Detrigger wrote it (its manifest has schema {schema}, this one reads up to {SCHEMA}); update"
                " this one, or promote another version"
            )
        try:
            manifest = cls.model_validate(content)
        except ValidationError as error:
            raise ValueError(first_problem(error)) from error
        if content.pop("digest", None) != _sha256(content):
            raise ValueError("it was edited after it was published")
        return manifest

    def sealed(self, files: dict[str, File]) -> "Manifest":
        """A copy with `files` and its own digest, ready to be written."""
        filled = Manifest.model_validate(self.model_dump() | {"files": files, "digest": None})
        return filled.model_copy(update={"digest": canonical_sha256(filled, exclude={"digest"})})


def canonical_sha256(model: BaseModel, exclude: set[str]) -> str:
    """The sha256 of a model's content as JSON with sorted keys, independent of formatting."""
    return _sha256(model.model_dump(mode="json", exclude=exclude))


def _sha256(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def utc_now() -> str:
    """The time as manifests and logs write it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def new_version_id(digest: str) -> str:
    """An id that sorts by time, e.g. `20250131T120000Z-1a2b3c4d`; `digest` is a hex digest of what is new."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{digest[:8]}"
