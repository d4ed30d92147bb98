"""What goes over HTTP: OpenAI's video shape, and under ``framepack`` what it has no words for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from framepack.generation.request import MAX_GUIDANCE, MAX_PROMPT, MAX_SEED, MAX_STEPS
from framepack.planning.timeline import MAX_FRAMES
from framepack.serving.asked import MAX_KEYFRAMES, MAX_LORAS
from framepack.serving.jobs import Job, Status

NAME = 255
CANCELLED = "cancelled"


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("a NUL is no text")
    return text


Text = Annotated[str, Field(max_length=MAX_PROMPT), AfterValidator(_without_nul)]
Name = Annotated[str, Field(max_length=NAME)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Strict(BaseModel):
    """A misspelt name is told of, not passed over."""

    model_config = ConfigDict(extra="forbid")


class KeyframeIn(Strict):
    """A picture that the video shows at a time; ``picture`` is the name of a file field of the same form."""

    at: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    picture: Name


class LoraIn(Strict):
    name: Name
    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0


class VideoIn(Strict):
    """A video to be made. What is left out is the model's own choice."""

    prompt: Text
    model: Name | None = None
    seconds: Seconds | None = None
    frames: Annotated[int, Field(ge=1, le=MAX_FRAMES)] | None = None
    size: Name = "auto"
    fps: Annotated[float, Field(gt=0)] | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    negative_prompt: Text = ""
    method: Annotated[str, Field(max_length=500)] | None = None
    schedule: Annotated[str, Field(max_length=500)] | None = None
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = None
    guidance: Annotated[float, Field(ge=0, le=MAX_GUIDANCE)] | None = None
    embedded_guidance: Annotated[float, Field(ge=0, le=MAX_GUIDANCE)] | None = None
    solver: Name | None = None
    step_cache: Name | None = None
    loop: bool = False
    untrained: bool = False
    copy_clips: bool = False
    keyframes: Annotated[list[KeyframeIn], Field(max_length=MAX_KEYFRAMES)] = []
    loras: Annotated[list[LoraIn], Field(max_length=MAX_LORAS)] = []


class RemixIn(Strict):
    prompt: Text


class RedoIn(Strict):
    """A section to be made again; ``section`` counts from 1."""

    section: Annotated[int, Field(ge=1)]
    prompt: Text | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    dependents: bool = False


class ExtendIn(Strict):
    prompt: Text
    seconds: Seconds = 4.0


class MoveIn(Strict):
    """``before``: id of a waiting video; none for the end of the queue."""

    before: Name | None = None


class ErrorOut(BaseModel):
    code: str
    message: str


class Detail(BaseModel):
    """What OpenAI's shape has no words for.

    status: with ``paused`` and ``cancelled``. position: in the queue, 1 is next. asked: what it is made from.
    progress: stage, sections, steps, frames to be watched, seconds left, notes.
    """

    status: Status
    asked: dict[str, Any]
    progress: dict[str, Any]
    position: int | None = None
    bytes: int = 0


class VideoOut(BaseModel):
    """A video, as OpenAI's API has it."""

    id: str
    object: Literal["video"] = "video"
    status: Literal["queued", "in_progress", "completed", "failed"]
    model: str
    prompt: str
    progress: int
    seconds: str
    size: str
    created_at: int
    completed_at: int | None = None
    expires_at: int | None = None
    error: ErrorOut | None = None
    remixed_from_video_id: str | None = None
    framepack: Detail


class VideosOut(BaseModel):
    object: Literal["list"] = "list"
    data: list[VideoOut]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedOut(BaseModel):
    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: bool = True


class CostOut(BaseModel):
    """What a video would take. seconds and memory are null until this model has made one here."""

    method: str
    sections: int
    steps: int
    frames: int
    fps: float
    size: str
    context_tokens: int
    seconds: float | None
    memory: int | None


class ModelOut(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "framepack"
    framepack: dict[str, Any] = {}


class ModelsOut(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelOut]


class FaultOut(BaseModel):
    """OpenAI's shape of an error."""

    class Fault(BaseModel):
        message: str
        type: str
        param: str | None = None
        code: str | None = None

    error: Fault


SHOWN = {Status.PAUSED: "queued", Status.CANCELLED: "failed"}
"""Our own statuses as OpenAI's four, which its clients know."""


def video_out(job: Job, *, position: int | None = None, days: float | None = None) -> VideoOut:
    """A job as its client sees it.

    Args:
        days: after which it is deleted.
    """
    progress = {name: value for name, value in job.progress.items() if name not in ("work", "memory")}
    frames, fps = progress.get("frames"), progress.get("fps")
    seconds = frames / fps if frames and fps else job.asked.get("seconds")
    error = job.error
    if job.status is Status.CANCELLED:
        error = {"code": CANCELLED, "message": "it was cancelled"}
    completed = job.ended if job.status is Status.COMPLETED else None
    return VideoOut(
        id=job.id,
        status=SHOWN.get(job.status, job.status.value),  # type: ignore[arg-type]
        model=job.model,
        prompt=job.prompt,
        progress=100 if job.status is Status.COMPLETED else int(100 * progress.get("fraction", 0)),
        seconds="" if seconds is None else f"{seconds:g}",
        size=progress.get("size") or job.asked.get("size", "auto"),
        created_at=int(job.created),
        completed_at=None if completed is None else int(completed),
        expires_at=None if completed is None or days is None else int(completed + days * 86400),
        error=None if error is None else ErrorOut(**error),
        remixed_from_video_id=job.parent,
        framepack=Detail(
            status=job.status, asked=job.asked, progress=progress, position=position, bytes=job.size
        ),
    )
