"""The API: OpenAI's video endpoints, and beside them what they have no words for.

    POST   /v1/videos                       make one; JSON, or a form with pictures and clips
    GET    /v1/videos                       list            GET /v1/videos/{id}
    DELETE /v1/videos/{id}
    GET    /v1/videos/{id}/content          MP4, thumbnail or spritesheet; it can be watched while it grows
    GET    /v1/videos/{id}/events           server-sent events until it has ended
    GET    /v1/videos/{id}/previews/{n}     a picture of a section
    POST   /v1/videos/{id}/remix | redo | extend | pause | resume | cancel | move
    POST   /v1/videos/cost                  what one would take
    GET    /v1/queue, /v1/models, /v1/loras

Handlers are plain functions, which FastAPI runs in threads, so that waiting for the store blocks nobody else.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from framepack.errors import InputError
from framepack.serving.config import lora_files
from framepack.serving.files import FileAnswer
from framepack.serving.form import Received, received, schema_of
from framepack.serving.jobs import ENDED, Job, NoSuchJob, Status, Wish, WrongState
from framepack.serving.places import JobFolder
from framepack.serving.schemas import (
    CostOut,
    DeletedOut,
    ExtendIn,
    FaultOut,
    ModelOut,
    ModelsOut,
    MoveIn,
    RedoIn,
    RemixIn,
    VideoOut,
    VideosOut,
    video_out,
)
from framepack.serving.service import Service
from framepack.serving.sprites import spritesheet

EVERY = 0.3
"""Seconds between two looks at a video that is followed."""
QUIET = 15.0
"""Seconds without news after which a comment keeps the connection open."""
FOLLOWED = 100
"""Videos that one client may follow at once: each is a look at the store every ``EVERY`` seconds."""

FAULTS: dict[int | str, dict[str, Any]] = {
    status: {"model": FaultOut} for status in (400, 401, 404, 409, 413, 429, 503, 507)
}


def client_of(request: Request) -> str:
    """Whose request this is; the guard has let it in as that."""
    return str(request.state.client)


Client = Annotated[str, Depends(client_of)]
Sent = Annotated[Received, Depends(received)]


def router(service: Service) -> APIRouter:
    """The endpoints of a service."""
    api = APIRouter(prefix="/v1", responses=FAULTS)
    days = service.limits.days
    followed: Counter[str] = Counter()

    def shown(job: Job) -> VideoOut:
        position = None
        if job.status is Status.QUEUED:
            waiting = [each.id for each in service.store.queue() if each.status is Status.QUEUED]
            position = waiting.index(job.id) + 1 if job.id in waiting else None
        return video_out(job, position=position, days=days)

    def found(name: str, client: str) -> Job:
        return service.store.get(name, client)

    @api.post("/videos", openapi_extra=schema_of())
    def create(sent: Sent, client: Client) -> VideoOut:
        """Make a video. ``input_reference`` is the picture it starts from."""
        return shown(service.submit(client, sent.asked(service), sent.files))

    @api.post("/videos/cost", openapi_extra=schema_of())
    def cost(sent: Sent) -> CostOut:
        """What a video would take, before it is asked for."""
        asked = sent.asked(service)
        for name in asked.files:
            sent.files[name].rename(sent.folder / name)
        found = service.cost(asked, sent.folder)
        width, height = found.size
        return CostOut(**{**found.__dict__, "size": f"{width}x{height}"})

    @api.get("/videos")
    def videos(
        client: Client,
        after: Annotated[str | None, Query(max_length=64, pattern=r"^\w+$")] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
    ) -> VideosOut:
        """Videos of this client, by the time they were asked for."""
        page = service.store.listed(client, after=after, limit=limit + 1, newest_first=order == "desc")
        data = [video_out(job, days=days) for job in page[:limit]]
        return VideosOut(
            data=data,
            first_id=data[0].id if data else None,
            last_id=data[-1].id if data else None,
            has_more=len(page) > limit,
        )

    @api.get("/queue")
    def queue(client: Client) -> VideosOut:
        """What waits and what is being made, in order; of other clients nothing but that it is there."""
        data = [
            video_out(job, position=number, days=days)
            for number, job in enumerate(service.store.queue(), start=1)
            if job.client == client
        ]
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return VideosOut(data=data, first_id=first, last_id=last, has_more=False)

    @api.get("/videos/{video_id}")
    def video(video_id: str, client: Client) -> VideoOut:
        return shown(found(video_id, client))

    @api.delete("/videos/{video_id}")
    def delete(video_id: str, client: Client) -> DeletedOut:
        """Delete a video and all of its files; one that is being made is stopped."""
        service.delete(client, video_id)
        return DeletedOut(id=video_id)

    @api.get("/videos/{video_id}/content", response_class=StreamingResponse)
    def content(
        video_id: str,
        client: Client,
        request: Request,
        variant: Literal["video", "thumbnail", "spritesheet"] = "video",
    ) -> Response:
        """The video, in ranges if asked. Before it is completed: as far as it is, playable."""
        job = found(video_id, client)
        folder = service.places.job(job.id)
        if variant == "video":
            if (answer := _watchable(folder, request)) is None:
                raise WrongState(f"video '{job.id}' is {job.status} and has no frames yet: ask again later")
            return answer
        previews = [folder.preview(number) for number in job.progress.get("previews", ())]
        there = [place for place in previews if place.is_file()]
        if not there:
            raise WrongState(f"video '{job.id}' is {job.status} and has no picture yet: ask again later")
        try:
            shown = there[0] if variant == "thumbnail" else spritesheet(folder, there)
            return FileAnswer(shown, request, "image/png")
        except (OSError, InputError) as error:
            found(video_id, client)  # deleted since?
            raise WrongState(f"the pictures of video '{job.id}' are being replaced: ask again") from error

    @api.get("/videos/{video_id}/previews/{section}", response_class=StreamingResponse)
    def preview(video_id: str, section: int, client: Client, request: Request) -> Response:
        """A rough picture of a section, as they are numbered in ``progress``, from 0."""
        job = found(video_id, client)
        try:
            place = service.places.job(job.id).preview(section if 0 <= section < 10**5 else 10**5)
            return FileAnswer(place, request, "image/png")
        except OSError as error:
            raise NoSuchJob(f"{video_id}/previews/{section}") from error

    @api.get("/videos/{video_id}/events", response_class=StreamingResponse)
    async def events(video_id: str, client: Client, request: Request) -> StreamingResponse:
        """The video each time that something about it changes, until it has ended."""
        first = await run_in_threadpool(found, video_id, client)
        if followed[client] >= FOLLOWED:
            raise HTTPException(429, f"{FOLLOWED} videos are followed already: end one of these connections")

        async def counted() -> AsyncIterator[str]:
            followed[client] += 1
            try:
                async for line in told():
                    yield line
            except SQLAlchemyError:
                return  # whoever follows asks again, and is told then
            finally:
                followed[client] -= 1

        async def told() -> AsyncIterator[str]:
            job, seen, quiet = first, 0, 0.0
            while True:
                if job.version != seen:
                    out = await run_in_threadpool(shown, job)
                    yield f"event: video\nid: {job.version}\ndata: {out.model_dump_json()}\n\n"
                    seen, quiet = job.version, 0.0
                elif quiet >= QUIET:
                    yield ": still there\n\n"
                    quiet = 0.0
                if job.status in ENDED or await request.is_disconnected():
                    return
                await asyncio.sleep(EVERY)
                quiet += EVERY
                try:
                    job = await run_in_threadpool(found, video_id, client)
                except NoSuchJob:
                    yield f'event: deleted\ndata: {{"id": "{video_id}"}}\n\n'
                    return

        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(counted(), media_type="text/event-stream", headers=headers)

    @api.post("/videos/{video_id}/remix")
    def remix(video_id: str, asked: RemixIn, client: Client) -> VideoOut:
        """The same video with another prompt. Sections that it leaves as they are, are not made again."""
        return shown(service.remix(client, video_id, asked.prompt))

    @api.post("/videos/{video_id}/redo")
    def redo(video_id: str, asked: RedoIn, client: Client) -> VideoOut:
        """The same video with one section made again."""
        job = service.redo(
            client,
            video_id,
            asked.section - 1,
            prompt=asked.prompt,
            seed=asked.seed,
            dependents=asked.dependents,
        )
        return shown(job)

    @api.post("/videos/{video_id}/extend")
    def extend(video_id: str, asked: ExtendIn, client: Client) -> VideoOut:
        """A video that goes on from the end of this one, which it begins with."""
        return shown(service.extend(client, video_id, asked.prompt, asked.seconds))

    def wished(wish: Wish) -> Any:
        def act(video_id: str, client: Client) -> VideoOut:
            service.store.wish(video_id, wish, client)
            return shown(found(video_id, client))

        act.__doc__ = f"{wish.capitalize()} a video at its next step."
        return act

    for wish in (Wish.PAUSE, Wish.CANCEL):
        api.post(f"/videos/{{video_id}}/{wish}", name=str(wish), response_model=VideoOut)(wished(wish))

    @api.post("/videos/{video_id}/resume")
    def resume(video_id: str, client: Client) -> VideoOut:
        """Let a paused video go on."""
        service.store.resume(video_id, client)
        return shown(found(video_id, client))

    @api.post("/videos/{video_id}/move")
    def move(video_id: str, asked: MoveIn, client: Client) -> VideoOut:
        """Put a waiting video before another of one's own, or last."""
        if asked.before is not None:
            found(asked.before, client)
        service.store.move(video_id, asked.before, client)
        return shown(found(video_id, client))

    @api.get("/models")
    def models() -> ModelsOut:
        """Models by the names that ``model`` takes; the first one is the default."""
        return ModelsOut(
            data=[ModelOut(id=name, framepack=service.about(name)) for name in service.config.offers]
        )

    @api.get("/loras")
    def loras() -> ModelsOut:
        """LoRAs by the names that ``loras`` takes."""
        return ModelsOut(data=[ModelOut(id=name) for name in lora_files(service.config.loras)])

    return api


def _watchable(folder: JobFolder, request: Request) -> FileAnswer | None:
    """What there is to watch now."""
    # The finished one gets its name before the other is gone.
    for place in (folder.video, folder.growing, folder.rough, folder.video):
        if _filled(place):
            cache = "private, max-age=3600" if place == folder.video else "no-store"
            name = f"{folder.path.name}.mp4"
            with suppress(FileNotFoundError):
                return FileAnswer(place, request, "video/mp4", name=name, cache=cache)
    return None


def _filled(place: Path) -> bool:
    try:
        return place.stat().st_size > 0
    except OSError:
        return False
