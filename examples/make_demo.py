"""Draw the picture that ``make demo`` starts from: a scene the bundled model has not been trained on."""

from __future__ import annotations

from pathlib import Path

from framepack.cli.outputs import save_png
from framepack.data.world import Motion, Scene

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


def main() -> None:
    from PIL import Image

    save_png(Image.fromarray(SCENE.render([0], SIDE, SIDE)[0]), HERE / "demo.png", "example")
    (HERE / "demo.txt").write_text(PROMPT + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
