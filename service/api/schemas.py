"""What the service answers, as models: for the OpenAPI document and for readers.

/predict writes its JSON by hand for speed; a test holds its answers against these models.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from detrigger.models.manifest import Manifest


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Ranked(_Answer):
    """One class with its score."""

    index: int
    label: str
    score: float | None = Field(description="softmax probability; null where the operator withholds scores")


class Prediction(_Answer):
    """The answer for one image. All labels are those of the purified image."""

    index: int | None = Field(description="class index; null where the image was refused by policy")
    label: str | None
    score: float | None
    top_k: list[Ranked]
    flagged: bool = Field(
        description="purification changed the answer's confidence more than it does clean images"
    )
    flag_score: float | None = Field(description="0..1, larger is more suspicious")
    purified_png: str | None = Field(description="base64 of the purified image as PNG, where asked for")


class ModelName(_Answer):
    """Which model answered."""

    name: str
    version: str


class Predictions(_Answer):
    """The answer of /predict: one prediction per image, in the order sent."""

    model: ModelName
    predictions: list[Prediction]
    request_id: str


class ProblemBody(BaseModel):
    """RFC 9457 problem; `code` is stable, `errors` has one entry per refused image or parameter."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    errors: list[dict[str, Any]] | None = None


class OipError(BaseModel):
    """The error body of the Open Inference Protocol."""

    error: str


class OipTensor(BaseModel):
    """An input of an inference request; `data` flat or nested, row-major."""

    name: Literal["image"]
    datatype: Literal["FP32"]
    shape: list[int] = Field(min_length=4, max_length=4)
    data: list[float]


class OipOutput(BaseModel):
    """An output that is wanted."""

    name: Literal["logits", "logits_raw", "purified", "flag_score", "index", "flagged"]


class OipRequest(BaseModel):
    """An inference request as JSON; the binary tensor extension is accepted as well."""

    id: str = Field(default="", max_length=200)
    inputs: list[OipTensor] = Field(min_length=1, max_length=1)
    outputs: list[OipOutput] | None = Field(default=None, max_length=12)


class Ready(_Answer):
    """The answer of /readyz."""

    status: Literal["starting", "ready", "draining", "failed"]
    reason: str = ""


class Live(_Answer):
    """The answer of /livez."""

    status: Literal["alive"] = "alive"


class ServedModel(_Answer):
    """The version being served.

    With `purify` "suspected" only images whose raw label is one of `suspected` are purified; `given_up` says what that
    leaves open. With "every" images of other labels are purified as well, and flagged on stronger grounds.
    """

    name: str
    version: str
    created: str
    loaded: str
    verdict: Literal["clean", "backdoored", "inconclusive"]
    sha256: str
    flag_threshold: float
    purify: Literal["every", "suspected"]
    suspected: tuple[int, ...]
    given_up: str
    classes: int
    size: tuple[int, int]


class Engine(_Answer):
    """Where and how the model runs; `provider` is the one that ONNX Runtime really uses."""

    device_asked: str
    provider: str | None
    onnxruntime: str
    threads: int


class Limits(_Answer):
    """What a request may be."""

    max_body_bytes: int
    max_images: int
    max_pixels: int
    max_side: int
    max_request_pixels: int
    max_head_bytes: int
    max_connections: int
    queue_images: int
    batch_size: int
    deadline: float


class Version(_Answer):
    """The answer of /version."""

    detrigger: str
    status: str
    model: ServedModel | None
    error: str | None = Field(description="why the version that should be served is not")
    damage: str | None = Field(description="what is wrong on the disk with the version that is served")
    engine: Engine
    policy: str
    response_detail: str
    limits: Limits


class StoredVersion(_Answer):
    """One version of the store."""

    id: str
    active: bool
    manifest: Manifest


class Versions(_Answer):
    """The answer of /admin/versions."""

    active: str | None = Field(description="what this service serves")
    promoted: str | None = Field(description="what the promotion log says should be served")
    versions: list[StoredVersion]
    damaged: dict[str, str]


class Jobs(_Answer):
    """The answer of /admin/jobs, newest first."""

    jobs: list["JobView"]


class JobView(BaseModel):
    """A job record as shown."""

    model_config = ConfigDict(extra="allow")

    id: str
    state: Literal["pending", "running", "succeeded", "failed", "cancelled"]
    progress: float
    stage: str | None


def problems(*statuses: int | str) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that answers problems with these statuses."""
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemBody"}}}
    return {status: {"description": "A problem, RFC 9457", "content": content} for status in statuses}
