"""The page itself, in Gradio: the form that asks for a video, and the place where videos are watched.

The form's events call the service in this process. What is watched is drawn by ``static/studio.js`` from
``/page/jobs`` and the API, so that no news of a video touches the form, and no typing touches a video.
"""

from __future__ import annotations

import html
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import save_file_to_cache

from framepack.errors import FramePackError
from framepack.serving.asked import Asked
from framepack.serving.config import lora_files
from framepack.serving.page.values import (
    AUTO,
    FILES,
    KEYFRAMES,
    LORAS,
    SCENES,
    needs_files,
    of_asked,
    of_settings,
    received,
)
from framepack.serving.page.words import PREFIX, WORDS, language_of, seconds_told, words
from framepack.serving.service import Cost, Service
from framepack.video.comment import read_comment

log = logging.getLogger("framepack.page")

DEMO = Path(__file__).parent / "static" / "demo.png"
HOUR, DAY = 3600, 86400
QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
"""Of events: answered at once, nothing flickers meanwhile, and none of them is an API."""
BEGIN = """
import(new URL("page/studio.js", document.baseURI)).then((studio) => studio.begin(element, trigger));
// trigger("reuse", ...) is what studio.js does with a video whose settings are wanted again.
"""
ANOTHER = "() => Math.floor(Math.random() * 2 ** 31)"
REUSED = "() => window.framepack.reused()"
REFUSED = "refused"
"""Class of the line that says so."""
STARTED = f"(told) => {{ if (!told.includes('wrong {REFUSED}')) window.framepack.started(); }}"
SAVE = "(...values) => [values]"


def blocks(service: Service) -> gr.Blocks:
    """The page of a service."""
    form = Form(service)
    form.build()
    assert form.page is not None
    return form.page


@dataclass(frozen=True)
class Rows:
    """Rows of the form that are shown one by one.

    names: beginnings of the names of their values. shown: how many are. button: shows one more.
    """

    names: tuple[str, ...]
    shown: gr.State
    button: gr.Button
    lines: list[gr.Row]

    @property
    def outputs(self) -> list[Any]:
        return [self.shown, self.button, *self.lines]

    def show(self, count: int) -> list[Any]:
        lines = [gr.update(visible=row < count) for row in range(len(self.lines))]
        return [count, gr.update(visible=count < len(self.lines)), *lines]

    def holding(self, values: Mapping[str, Any]) -> list[Any]:
        """As many rows as have values, where the values say anything of them."""
        if not any(name.startswith(self.names) for name in values):
            return [gr.skip() for _ in self.outputs]
        rows = range(len(self.lines))
        held = [row for row in rows for name in self.names if values.get(f"{name}{row}") not in (None, "")]
        return self.show(1 + max(held, default=0))


class Form:
    """The form's parts by the names of ``values.py``, and what happens when they are used."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.parts: dict[str, Any] = {}
        self.rows: list[Rows] = []
        self.lora_lines: list[gr.Row] = []
        self.page: gr.Blocks | None = None
        said = gr.I18n()
        self._say: Callable[[str], Any] = lambda name: said(PREFIX + name)

    # Its parts ---------------------------------------------------------------------------------------------

    def build(self) -> None:
        say = self._say
        with gr.Blocks(title=WORDS["title"][0], analytics_enabled=False, delete_cache=(HOUR, DAY)) as page:
            self.page = page
            kept = gr.BrowserState(None, storage_key="framepack-form", secret="framepack-form")
            gr.HTML('<div id="head"></div>', elem_id="head-block")
            with gr.Row(elem_id="desk"):
                with gr.Column(scale=4, min_width=300, elem_id="ask"):
                    self._what()
                    self._later()
                    self._how()
                    cost = gr.HTML("", elem_id="cost")
                    start = gr.Button(say("start"), variant="primary", elem_id="start", size="lg")
                    with gr.Accordion(say("read_back"), open=False, elem_id="read-back"):
                        gr.Markdown(say("read_back_how"), elem_classes="hint")
                        dropped = gr.File(show_label=False, file_types=[".mp4"], height=110)
                        note = gr.HTML("", elem_id="note")
                with gr.Column(scale=7, min_width=300, elem_id="see"):
                    studio = gr.HTML('<div id="studio"></div>', js_on_load=BEGIN, elem_id="studio-block")
            self._events(kept, cost, start, dropped, note, studio)

    def _what(self) -> None:
        say, parts = self._say, self.parts
        parts["image"] = _picture(say("image"), 190, "image")
        parts["prompt"] = gr.Textbox(
            label=say("prompt"), placeholder=say("prompt_hint"), lines=3, max_lines=8, elem_id="prompt"
        )
        example = gr.Button(say("examples"), icon=str(DEMO), size="sm", elem_id="example")
        shown = [parts["image"], parts["prompt"]]
        example.click(lambda: [_kept(DEMO, parts["image"]), WORDS["prompt_hint"][0]], None, shown, **QUIET)

    def _later(self) -> None:
        say, parts = self._say, self.parts
        with gr.Accordion(say("storyboard"), open=False, elem_id="storyboard"):
            gr.Markdown(say("storyboard_how"), elem_classes="hint")
            rows = []
            for row in range(SCENES):
                with gr.Row(visible=row == 0, elem_classes="scene") as line:
                    parts[f"at_{row}"] = gr.Number(label=say("from_second"), scale=3, min_width=120)
                    parts[f"then_{row}"] = gr.Textbox(label=say("then"), lines=1, scale=7, min_width=180)
                rows.append(line)
            self._adding(("at_", "then_"), say("add_scene"), rows)
        with gr.Accordion(say("keyframes"), open=False, elem_id="keyframes"):
            gr.Markdown(say("keyframes_how"), elem_classes="hint")
            parts["end_image"] = _picture(say("end_image"), 140, "end-image")
            rows = []
            for row in range(KEYFRAMES):
                with gr.Row(visible=row == 0, elem_classes="scene") as line:
                    parts[f"key_at_{row}"] = gr.Number(label=say("at_second"), scale=3, min_width=120)
                    parts[f"key_image_{row}"] = _picture(say("keyframe"), 140, f"key-image-{row}", scale=7)
                rows.append(line)
            self._adding(("key_at_", "key_image_"), say("add_keyframe"), rows)

    def _adding(self, names: tuple[str, ...], label: Any, lines: list[gr.Row]) -> None:
        rows = Rows(names, gr.State(1), gr.Button(label, size="sm", variant="secondary"), lines)
        self.rows.append(rows)
        rows.button.click(
            lambda count: rows.show(min(count + 1, len(lines))), rows.shown, rows.outputs, **QUIET
        )

    def _how(self) -> None:
        say, parts = self._say, self.parts
        models = list(self.service.config.offers)
        about = self.service.about(models[0])
        with gr.Group(elem_id="settings"):
            with gr.Row():
                parts["seconds"] = gr.Number(
                    5, label=say("seconds"), step=0.5, min_width=100, elem_id="seconds"
                )
                parts["steps"] = gr.Number(
                    about["steps"], label=say("steps"), precision=0, min_width=100, elem_id="steps"
                )
                parts["guidance"] = gr.Number(
                    about["guidance"], label=say("guidance"), step=0.5, min_width=100, elem_id="guidance"
                )
            with gr.Row():
                parts["method"] = gr.Dropdown(
                    [AUTO, *about["methods"]],
                    value=AUTO,
                    label=say("method"),
                    min_width=130,
                    elem_id="method",
                )
                parts["seed"] = gr.Number(0, label=say("seed"), precision=0, min_width=110, elem_id="seed")
                again = gr.Button("⟳", elem_id="again", min_width=44, scale=0)
        with gr.Accordion(say("more"), open=False, elem_id="more"):
            parts["model"] = gr.Dropdown(models, value=models[0], label=say("model"), elem_id="model")
            parts["size"] = gr.Dropdown(
                [AUTO, *about["sizes"]], value=AUTO, label=say("size"), elem_id="size"
            )
            for row in range(LORAS):
                with gr.Row(visible=False) as line:
                    parts[f"lora_{row}"] = gr.Dropdown(
                        [""], value="", label=say("lora"), scale=2, min_width=150
                    )
                    parts[f"weight_{row}"] = gr.Number(1.0, label=say("weight"), step=0.1, min_width=90)
                self.lora_lines.append(line)
            parts["negative_prompt"] = gr.Textbox(label=say("negative_prompt"), lines=1)
            parts["loop"] = gr.Checkbox(label=say("loop"))
            parts["from_clip"] = gr.File(label=say("from_clip"), file_types=[".mp4"], height=110)
            _as_path(parts["from_clip"])
        again.click(
            None,
            outputs=parts["seed"],
            js="() => Math.floor(Math.random() * 2 ** 31)",
            api_visibility="private",
        )

    # What happens ------------------------------------------------------------------------------------------

    def _events(self, kept: Any, cost: Any, start: Any, dropped: Any, note: Any, studio: Any) -> None:
        names, inputs = list(self.parts), list(self.parts.values())
        filled = [*inputs, *self.lora_lines, *(part for rows in self.rows for part in rows.outputs)]
        page = self.page
        assert page is not None
        _as_path(dropped)

        for part in inputs:
            if isinstance(part, gr.Dropdown):
                part.preprocess = lambda payload: payload  # the service knows best what there is

        def priced(request: gr.Request, *given: Any) -> str:
            said = words(_language(request))
            try:
                with received(dict(zip(names, given, strict=True))) as sent:
                    found = self._cost(sent)
            except FramePackError as error:
                return _wrong(str(error))
            return f'<p role="status">{"<br>".join(map(html.escape, _told(found, said)))}</p>'

        def begun(request: gr.Request, *given: Any) -> Any:
            try:
                with received(dict(zip(names, given, strict=True))) as sent:
                    asked = sent.asked(self.service)
                    self.service.submit(_client(request), asked, sent.files)
            except FramePackError as error:
                return _wrong(f"{words(_language(request))['refused']}: {error}", REFUSED)
            return gr.skip()

        def opened(request: gr.Request, saved: Any) -> list[Any]:
            values = dict(zip(names, saved, strict=True)) if _fits(saved, names) else {}
            return self._filled(_cleaned(values, Path(dropped.GRADIO_CACHE)), words(_language(request)))

        def modelled(request: gr.Request, model: str) -> list[Any]:
            said = words(_language(request))
            with _refusing(said):
                about = self.service.about(model)
            values = {"model": model, "steps": about["steps"], "guidance": about["guidance"]}
            return self._filled(values | {"method": AUTO, "size": AUTO}, said)

        def read_back(request: gr.Request, file: str | None) -> list[Any]:
            said = words(_language(request))
            if file is None:
                return [gr.skip() for _ in (*filled, note)]
            settings = read_comment(Path(file))
            try:
                values = of_settings(settings, self.service)
            except FramePackError:
                return [*(gr.skip() for _ in filled), _wrong(said["no_settings"])]
            told = [said["was_read"], *([said["pictures_again"]] if needs_files(settings) else [])]
            return [*self._filled(values, said), f'<p role="status">{html.escape(" ".join(told))}</p>']

        def reused(request: gr.Request, event: gr.EventData) -> list[Any]:
            said = words(_language(request))
            with _refusing(said):
                job = self.service.store.get(str(event.id), _client(request))
                asked = Asked.from_json(job.asked)
                folder = self.service.places.job(job.id).path
                values = of_asked(asked, folder, self.service.about(asked.model))
            return self._filled(values, said)

        told = [self.parts[name] for name in names if name not in ("prompt", "negative_prompt")]
        told = [part for part in told if not isinstance(part, gr.Textbox)]
        texts = [part for part in inputs if isinstance(part, gr.Textbox)]
        latest: dict[str, Any] = {**QUIET, "trigger_mode": "always_last"}
        gr.on([part.change for part in told] + [part.blur for part in texts], priced, inputs, cost, **latest)
        gr.on([part.change for part in inputs], None, inputs, kept, js=SAVE, api_visibility="private")
        page.load(opened, kept, filled, **QUIET).then(priced, inputs, cost, **QUIET)
        start.click(begun, inputs, cost, **QUIET).success(None, cost, js=STARTED, api_visibility="private")
        self.parts["model"].input(modelled, self.parts["model"], filled, **QUIET)
        dropped.upload(read_back, dropped, [*filled, note], **QUIET)
        studio.reuse(reused, None, filled, **QUIET).success(None, js=REUSED, api_visibility="private")

    def _cost(self, sent: Any) -> Cost:
        asked = sent.asked(self.service)
        for name, file in sent.files.items():
            if file != sent.folder / name:
                file.rename(sent.folder / name)
        return self.service.cost(asked, sent.folder)

    def _filled(self, values: Mapping[str, Any], said: Mapping[str, str]) -> list[Any]:
        """Updates of all parts: the values that are given, and what can be chosen of the model."""
        offers = list(self.service.config.offers)
        model = values["model"] if values.get("model") in offers else offers[0]
        about = self.service.about(model)
        loras = list(lora_files(self.service.config.loras))
        choices = {
            "model": [(name, name) for name in offers],
            "method": [(said["auto"], AUTO), *((name, name) for name in about["methods"])],
            "size": [(said["auto"], AUTO), *((name, name) for name in about["sizes"])],
        }
        choices |= {f"lora_{row}": [(said["none"], ""), *((n, n) for n in loras)] for row in range(LORAS)}
        updates = []
        for name in self.parts:
            update: dict[str, Any] = {}
            if name in choices:
                update["choices"] = choices[name]
            if name in values:
                value = values[name]
                if name in choices and value not in [key for _, key in choices[name]]:
                    value = choices[name][0][1]
                update["value"] = _kept(Path(value), self.parts[name]) if name in FILES and value else value
            updates.append(gr.update(**update) if update else gr.skip())
        updates += [gr.update(visible=bool(loras)) for _ in self.lora_lines]
        return updates + [update for rows in self.rows for update in rows.holding(values)]


def _wrong(line: str, kind: str = "") -> str:
    """A line that says what is wrong."""
    return f'<p class="wrong {kind}" role="alert">{html.escape(line)}</p>'


def _told(cost: Cost, said: Mapping[str, str]) -> list[str]:
    told = [
        said["cost"].format(
            frames=cost.frames,
            size=f"{cost.size[0]}×{cost.size[1]}",
            sections=cost.sections,
            tokens=f"{cost.context_tokens:,}",
        )
    ]
    if cost.seconds is None or cost.memory is None:
        told.append(said["cost_unmeasured"])
    else:
        time = seconds_told(cost.seconds, said)
        told.append(said["cost_measured"].format(time=time, memory=f"{cost.memory / 1e9:.1f}"))
    return told


def _picture(label: Any, height: int, name: str, scale: int | None = None) -> gr.Image:
    made = gr.Image(
        label=label,
        type="filepath",
        height=height,
        sources=["upload", "clipboard"],
        buttons=[],
        elem_id=name,
        scale=scale,
        min_width=150,
    )
    _as_path(made)
    return made


def _kept(file: Path, part: Any) -> str:
    """A copy among what was chosen, which is all that Gradio shows to a browser."""
    return save_file_to_cache(file, part.GRADIO_CACHE)


def _as_path(part: Any) -> None:
    """Have files come as they were sent, unopened: the service has its own rules for them."""
    part.preprocess = lambda payload: None if payload is None else payload.path


@contextmanager
def _refusing(said: Mapping[str, str]) -> Iterator[None]:
    """Tell of what is refused in one line."""
    try:
        yield
    except FramePackError as error:
        raise gr.Error(html.escape(str(error)), title=said["refused"], print_exception=False) from error


def _fits(saved: Any, names: list[str]) -> bool:
    return isinstance(saved, list) and len(saved) == len(names)


def _cleaned(values: Mapping[str, Any], chosen: Path) -> dict[str, Any]:
    """Values as a browser kept them; files only where they were chosen and are still there."""
    kept: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            path = Path(str(value.get("path", "")))
            if not (path.is_file() and path.resolve().is_relative_to(chosen.resolve())):
                continue
            value = str(path)
        if isinstance(value, str | int | float | bool):
            kept[name] = value
    return kept


def _client(request: gr.Request) -> str:
    """Whose request this is; the guard has let it in as that."""
    return str(request.state.client)


def _language(request: gr.Request) -> str:
    return language_of(request.headers, request.cookies)
