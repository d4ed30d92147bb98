"""Draw the picture that ``make demo`` starts from, a scene the bundled model has not been trained on, and the
others of ``make demo-long``: what its next two scenes begin with, and what the last one ends on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from framepack.cli.outputs import save_png
from framepack.data.world import FPS, Motion, Scene

HERE = Path(__file__).parent
SIDE = 512

SCENE = Scene(
    shape="heart",
    colour="red",
    skies=("sunset", "sunset"),
    sky_change=0,
    ground="lavender",
    camera="",
    motions=(Motion(start=0, direction="right", speed="slowly"),),
    radius=0.14,
    origin=(0.24, 0.46),
    disc=(0.74, 0.24, 0.085),
    phases=((0.31, 0.72, 0.15), (0.62, 0.08, 0.44)),
)
PROMPT = "A red heart glides slowly to the right over lavender fields at sunset."

STORY = replace(
    SCENE,
    skies=("sunset", "night"),
    sky_change=6 * FPS - 4,
    motions=(
        *SCENE.motions,
        Motion(start=3 * FPS, direction="up", speed="slowly"),
        Motion(start=6 * FPS, direction="left", speed="slowly"),
    ),
)
"""The scenes of examples/story.yaml."""


def main() -> None:
    from PIL import Image

    save_png(Image.fromarray(SCENE.render([0], SIDE, SIDE)[0]), HERE / "demo.png", "example")
    (HERE / "demo.txt").write_text(PROMPT + "\n", encoding="utf-8")
    given = {"scene-2": 3 * FPS, "scene-3": 6 * FPS, "scene-3-end": 9 * FPS - 1}
    for name, frame in given.items():
        save_png(Image.fromarray(STORY.render([frame], SIDE, SIDE)[0]), HERE / f"{name}.png", "example")


if __name__ == "__main__":
    main()
