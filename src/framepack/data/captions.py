"""Sentences about a scene, from its words: with variety, and with nothing but what the words say.

`framepack.conditioning.lexicon.parse` finds exactly the words a caption was made from.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from framepack.conditioning.lexicon import SLOT_OF
from framepack.errors import UnknownNameError

ENGLISH: dict[str, tuple[str, ...]] = {
    "ball": ("ball", "ball", "circle"),
    "box": ("box", "square", "cube"),
    "day": ("by day", "in the daytime", "under a blue sky", "on a sunny afternoon"),
    "dawn": ("at dawn", "at sunrise", "in the morning"),
    "sunset": ("at sunset", "at dusk", "in the evening"),
    "night": ("at night", "at night", "in the moonlight", "under a starry sky"),
    "cloudy": ("under a cloudy sky", "on a cloudy day", "under a grey sky"),
    "grass": ("over the grass", "over a meadow", "over green hills", "across the fields"),
    "desert": ("over the desert", "over sand dunes", "in the desert"),
    "snow": ("over the snow", "over snowy mountains", "in a snowy landscape"),
    "sea": ("over the sea", "above the ocean", "over the water"),
    "lavender": ("over lavender", "over lavender fields", "across lavender hills"),
    "city": ("over the city", "above the town", "in front of a skyline"),
    "left": ("to the left", "left", "leftwards", "from right to left"),
    "right": ("to the right", "right", "rightwards", "from left to right"),
    "up": ("up", "upwards", "upward"),
    "down": ("down", "downwards", "downward"),
    "still": ("is still", "stays still", "does not move", "rests"),
    "slowly": ("slowly", "gently"),
    "fast": ("fast", "quickly", "rapidly"),
    "pan-left": ("the camera pans left", "the camera pans to the left", "camera panning left"),
    "pan-right": ("the camera pans right", "the camera pans to the right", "camera panning right"),
}
VERBS = ("moves", "moves", "glides", "floats", "travels", "drifts")
JAPANESE: dict[str, tuple[str, ...]] = {
    "ball": ("ボール", "球", "丸"),
    "box": ("箱", "四角"),
    "triangle": ("三角形", "三角"),
    "star": ("星",),
    "heart": ("ハート",),
    "diamond": ("ひし形", "ダイヤ"),
    "cross": ("十字",),
    "red": ("赤い", "赤色の"),
    "orange": ("オレンジ色の", "オレンジの"),
    "yellow": ("黄色い", "黄色の"),
    "green": ("緑の", "緑色の"),
    "blue": ("青い", "青色の"),
    "purple": ("紫の", "紫色の"),
    "pink": ("ピンクの", "ピンク色の"),
    "white": ("白い", "白色の"),
    "day": ("昼", "青空", "昼間"),
    "dawn": ("夜明け", "朝焼け", "朝"),
    "sunset": ("夕焼け", "夕方", "夕暮れ"),
    "night": ("夜", "夜空", "月夜"),
    "cloudy": ("曇り", "曇り空"),
    "grass": ("草原", "野原"),
    "desert": ("砂漠", "砂丘"),
    "snow": ("雪原", "雪山"),
    "sea": ("海", "海辺"),
    "lavender": ("ラベンダー畑", "ラベンダーの丘"),
    "city": ("街", "町", "都会"),
    "left": ("左へ", "左に", "左のほうへ", "右から左へ"),
    "right": ("右へ", "右に", "右のほうへ", "左から右へ"),
    "up": ("上へ", "上に"),
    "down": ("下へ", "下に"),
    "still": ("止まっている", "静止している", "動かない"),
    "slowly": ("ゆっくり", "ゆっくりと"),
    "fast": ("速く", "素早く"),
    "pan-left": ("カメラは左へパンする", "カメラが左へ動く"),
    "pan-right": ("カメラは右へパンする", "カメラが右へ動く"),
}
JAPANESE_VERBS = ("動く", "移動する", "進む", "動いていく")


def caption(words: Sequence[str], language: str, rng: np.random.Generator) -> str:
    """Say canonical words as a sentence in "en" or "ja": a shape and a direction, or a camera, or a place."""
    if language not in ("en", "ja"):
        raise UnknownNameError("caption language", language, ("en", "ja"))
    table = ENGLISH if language == "en" else JAPANESE
    said: dict[str, str] = {}
    for word in words:
        choices = table.get(word, (word,))
        said[SLOT_OF[word]] = choices[int(rng.integers(len(choices)))]
    return (_english if language == "en" else _japanese)(said, rng)


def _english(said: dict[str, str], rng: np.random.Generator) -> str:
    place = [said[slot] for slot in ("ground", "sky") if slot in said]
    if "shape" not in said:
        pan = " ".join(said[slot] for slot in ("camera", "speed") if slot in said)
        first = place and rng.random() < 0.4
        main = (
            f"{' '.join(place)}, {pan}" if first and pan else " ".join(part for part in (pan, *place) if part)
        )
        return main[0].upper() + main[1:] + "."
    thing = " ".join(part for part in (said.get("colour"), said["shape"]) if part)
    if rng.random() < 0.3:
        place.reverse()
    motion = said["direction"]
    camera = said.get("camera")
    style = rng.random()
    if style < 0.15:
        parts = [thing, motion, said.get("speed"), *place, camera]
        return ", ".join(part for part in parts if part)
    if motion not in ENGLISH["still"]:
        verb = VERBS[int(rng.integers(len(VERBS)))]
        order = [motion, said.get("speed")] if rng.random() < 0.5 else [said.get("speed"), motion]
        motion = " ".join(part for part in (verb, *order) if part)
    article = "the" if rng.random() < 0.2 else ("an" if thing[0] in "aeiou" else "a")
    main = f"{article} {thing} {motion}"
    main = f"{' '.join(place)}, {main}" if place and style < 0.4 else " ".join([main, *place])
    if camera:
        joint = (" while ", ", ", " and ")[int(rng.integers(3))]
        main += (joint if camera.startswith("the") else ", ") + camera
    return main[0].upper() + main[1:] + "."


def _japanese(said: dict[str, str], rng: np.random.Generator) -> str:
    place = "の".join(said[slot] for slot in ("sky", "ground") if slot in said)
    if "shape" not in said:
        pan = said.get("speed", "") + said.get("camera", "")
        return (f"{place}で、" if place and pan else place) + pan + "。"
    thing = said.get("colour", "") + said["shape"] + ("が" if rng.random() < 0.7 else "は")
    motion = said["direction"]
    if motion not in JAPANESE["still"]:
        verb = JAPANESE_VERBS[int(rng.integers(len(JAPANESE_VERBS)))]
        speed = said.get("speed", "")
        motion = (speed + motion if rng.random() < 0.5 else motion + speed) + verb
    if not place:
        main = thing + motion
    elif rng.random() < 0.5:
        main = f"{place}で、{thing}{motion}"
    else:
        where = "で" if said["direction"] in JAPANESE["still"] else "の上を"
        main = f"{thing}{place}{where}{motion}"
    if "camera" in said:
        main += "。" + said["camera"]
    return main + "。"
