"""Video without end: it goes on as a long one would, forgets what nothing sees, and does as it is told."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from framepack.errors import InputError
from framepack.generation.decode import decode_frames
from framepack.generation.given import Keyframe
from framepack.generation.live import Live
from framepack.generation.prepare import prepare
from framepack.generation.request import GenerateRequest
from framepack.generation.run import latents_of
from tiny import SECTION, SIZE, tiny_bundle

pytestmark = pytest.mark.usefixtures("one_thread")


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))


def live(**values: object) -> Live:
    return Live(GenerateRequest(**({"prompt": "a red ball"} | values)), tiny_bundle())  # type: ignore[arg-type]


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("method", ["vanilla", "f1"])
def test_it_is_the_beginning_of_a_long_video(method: str, image: bool, tmp_path: Path) -> None:
    given = picture() if image else None
    sections = [*islice(live(method=method, image=given).sections(), 12)]
    frames = np.concatenate([section.frames for section in sections])
    assert len(frames) == 12 * SECTION + image
    request = GenerateRequest(
        prompt="a red ball", method=method, image=given, frames=len(frames), out=tmp_path / "v.mp4"
    )
    run = prepare(request, tiny_bundle())
    latents = latents_of(run, lambda event: None)
    whole = np.stack([*decode_frames(run.bundle.codec, lambda at: latents[:, :, list(at)], run.plan.shown)])
    assert np.array_equal(frames, whole)


@pytest.mark.parametrize("method", ["vanilla", "f1"])
def test_what_is_kept_does_not_grow(method: str) -> None:
    video = live(method=method, image=picture())
    held = []
    for section in islice(video.sections(), 40):
        held.append((len(video._window.latents), len(video._maker._prompts), len(video._known._starts)))
        video.prompt = f"a red ball {section.index}"
    assert len(set(held[20:])) == 1, held


def test_a_changed_prompt_is_followed_from_the_next_section_on() -> None:
    video, other = live(method="f1"), live(method="f1")
    made, told = video.sections(), other.sections()
    for index in range(5):
        first, second = next(made), next(told)
        assert (
            first.prompt == ("a red ball" if index < 3 else "a blue star") and second.prompt == "a red ball"
        )
        assert np.array_equal(first.frames, second.frames) == (index < 3)
        if index == 2:
            video.prompt = "a blue star"


def test_it_takes_a_forward_method_where_the_models_own_is_not() -> None:
    assert live().method.order == "vanilla"


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"method": "inverted"}, "not forward"),
        ({"method": "appended"}, "all of the past"),
        ({"method": "similar"}, "all of the past"),
        ({"loop": True}, "has no end"),
        ({"keyframes": (Keyframe(picture=picture()),)}, "has no end"),
        ({"prompt": "[0s: a red ball] [2s: a star]"}, "begins with one prompt"),
    ],
)
def test_what_cannot_be_live(values: dict[str, object], told: str) -> None:
    with pytest.raises(InputError, match=told):
        live(**values)


def test_what_is_typed_is_read_as_a_prompt_is() -> None:
    video = live()
    video.prompt = "[0s: a blue star]"
    assert video.prompt == "a blue star"
    with pytest.raises(InputError, match="one prompt is wanted"):
        video.prompt = "[0s: a blue star] [1s: a ball]"
    assert video.prompt == "a blue star"
