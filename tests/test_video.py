"""Pictures and videos: what goes in comes out, and bad files end in one clear line."""

from __future__ import annotations

import struct
import weakref
import zlib
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageFont

from framepack.errors import InputError, OutputError
from framepack.video.io import check_output, read_image, read_video, write_video
from framepack.video.resize import cover_box, nearest_bucket, to_bucket
from framepack.video.sheet import _line, contact_sheet, spread


def flat(colour: tuple[int, int, int], height: int = 32, width: int = 48) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises ``width`` x ``height`` px and holds hardly a byte of them."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


# --- pictures ---


def test_read_image_is_rgb_and_lays_transparency_on_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (4, 2), (255, 0, 0, 0))
    image.putpixel((0, 0), (0, 0, 255, 255))
    image.save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    assert read.mode == "RGB"
    assert read.getpixel((0, 0)) == (0, 0, 255)
    assert read.getpixel((3, 1)) == (255, 255, 255)


def test_read_image_palette_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.gif", transparency=0)
    read = read_image(tmp_path / "a.gif")
    assert [read.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (200, 100, 50)]


def test_read_image_turns_by_exif(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), "red")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees
    image.save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").size == (20, 40)


def test_read_image_scales_16_bit_grey(tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 2), 0x8000, np.uint16)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").getpixel((0, 0)) == (128, 128, 128)


def test_bad_images_end_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("these are words\n" * 9)
    (tmp_path / "empty.png").touch()
    (tmp_path / "none.png").write_bytes(png_header(0, 0))
    (tmp_path / "huge.png").write_bytes(png_header(20_000, 20_000))
    (tmp_path / "large.png").write_bytes(png_header(8_000, 8_000))
    (tmp_path / "wider.png").write_bytes(png_header(12_000, 10_000))
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:1500])
    expected = {
        "missing.png": "does not exist",
        ".": "is a folder",
        "text.png": "not a picture",
        "empty.png": "empty file",
        "none.png": "no pixels",
        "huge.png": "400 megapixels",
        "large.png": "8000 x 8000",
        "wider.png": "12000 x 10000",
        "cut.png": "damaged",
    }
    for name, words in expected.items():
        with pytest.raises(InputError, match=words) as caught:
            read_image(tmp_path / name)
        assert "\n" not in str(caught.value), name


# --- sizes ---


def test_nearest_bucket_goes_by_shape() -> None:
    buckets = [(128, 128), (96, 160), (160, 96)]
    assert nearest_bucket((1080, 1920), buckets) == (96, 160)
    assert nearest_bucket((1920, 1080), buckets) == (160, 96)
    assert nearest_bucket((500, 520), buckets) == (128, 128)


def test_to_bucket_crops_the_centre() -> None:
    wide = np.zeros((10, 40, 3), np.uint8)
    wide[:, 15:25] = 255
    fitted = to_bucket(Image.fromarray(wide), (10, 10))
    assert fitted.size == (10, 10)
    assert np.asarray(fitted).min() > 250
    assert cover_box((10, 40), (10, 10)) == (15, 0, 25, 10)


def test_to_bucket_survives_extreme_strips() -> None:
    assert to_bucket(Image.new("RGB", (1, 60_000)), (96, 160)).size == (160, 96)


# --- videos ---


@pytest.mark.parametrize(("height", "width"), [(32, 48), (33, 47), (1, 1)])
def test_video_round_trip(tmp_path: Path, height: int, width: int) -> None:
    colours = [(200, 30, 40), (30, 160, 60), (20, 60, 210), (240, 220, 30), (128, 128, 128)]
    settings = {"prompt": "赤い丸が右へ動く", "seed": 7, "nested": {"a": [1, 2]}}
    path = tmp_path / "new" / "v.mp4"
    assert write_video(path, (flat(c, height, width) for c in colours), 8, settings) == 5
    video = read_video(path)
    frames = list(video.frames)
    assert video.fps == 8 and video.metadata == settings and len(frames) == 5
    assert frames[0].shape == (height + height % 2, width + width % 2, 3)
    for frame, colour in zip(frames, colours, strict=True):
        assert np.abs(frame.astype(int) - colour).max() <= 4  # colours survive only if tags and matrix agree


def test_video_is_streamed(tmp_path: Path) -> None:
    made: list[weakref.ref[np.ndarray]] = []
    most = 0

    def frames():
        nonlocal most
        for i in range(300):
            frame = flat((i % 256, 0, 0), 16, 16)
            made.append(weakref.ref(frame))
            most = max(most, sum(ref() is not None for ref in made))
            yield frame

    assert write_video(tmp_path / "v.mp4", frames(), 30) == 300
    assert most <= 3, f"{most} frames were held at once"
    video = read_video(tmp_path / "v.mp4")
    assert next(video.frames).shape == (16, 16, 3)
    video.frames.close()  # type: ignore[attr-defined]


def test_fractional_rates(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", [flat((0, 0, 0))] * 4, 30000 / 1001)
    assert read_video(tmp_path / "v.mp4").fps == pytest.approx(29.97, abs=1e-3)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def frames():
        yield flat((1, 2, 3))
        raise RuntimeError("the decoder stopped")

    with pytest.raises(RuntimeError):
        write_video(tmp_path / "v.mp4", frames(), 8)
    with pytest.raises(InputError, match="no frames"):
        write_video(tmp_path / "v.mp4", [], 8)
    assert list(tmp_path.iterdir()) == []


def test_no_overwriting_unless_told(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    path.write_text("mine")
    with pytest.raises(OutputError, match="--overwrite"):
        write_video(path, [flat((0, 0, 0))], 8)
    assert path.read_text() == "mine"
    write_video(path, [flat((0, 0, 0))], 8, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["v.mp4"]


def test_unwritable_places(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.mp4").mkdir()
    for place, words in {
        tmp_path / "file" / "v.mp4": "cannot be written",
        Path("/proc/none/v.mp4"): "cannot be written",
        tmp_path / "folder.mp4": "is a folder",
        tmp_path / "v.avi": "does not end in .mp4",
    }.items():
        with pytest.raises(OutputError, match=words) as caught:
            check_output(place)
        assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.mp4"]


def test_bad_videos(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("words " * 100)
    for name, words in {"missing.mp4": "does not exist", "text.mp4": "not a video"}.items():
        with pytest.raises(InputError, match=words):
            read_video(tmp_path / name)


# --- sheets ---


def test_contact_sheet_shows_every_frame_in_order() -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9), (200, 200, 0)]
    frames = [flat(c, 64, 64) for c in colours]
    sheet = np.asarray(contact_sheet(frames, 3, [f"{i} s" for i in range(5)], title="a" * 500))
    order = []
    for row in sheet[::8]:
        for pixel in row:
            colour = tuple(int(v) for v in pixel)
            if colour in colours and colour not in order:
                order.append(colour)
    assert order == colours


def test_a_title_is_told_in_letters_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def sheet(title: str) -> np.ndarray:
        return np.asarray(contact_sheet([flat((9, 9, 9), 64, 64)] * 5, 5, title=title))

    monkeypatch.setattr("framepack.video.sheet.FONTS", ("no such font.ttf",))
    plain, latin = sheet(""), sheet("a red ball")
    assert latin.shape[0] > plain.shape[0]
    assert np.array_equal(sheet("夜の海の上を黄色い星が左へ動く。"), plain), "no row of boxes"
    assert np.array_equal(sheet(" \n"), plain) and np.array_equal(sheet("a red\nball"), latin)
    assert np.array_equal(sheet("красный шар"), plain)
    dejavu = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    monkeypatch.setattr("framepack.video.sheet.FONTS", ("no such font.ttf", str(dejavu)))
    assert sheet("красный шар").shape == latin.shape, "a font of the system has the letters"


def test_a_long_title_is_measured_a_few_times_only(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []
    real = ImageFont.FreeTypeFont.getlength

    def counting(self: ImageFont.FreeTypeFont, text: str, *rest: object) -> float:
        measured.append(text)
        return real(self, text, *rest)

    monkeypatch.setattr(ImageFont.FreeTypeFont, "getlength", counting)
    text = "a red ball moves to the right " * 300
    cut, font = _line(text, 400) or pytest.fail("no title")
    assert len(measured) < 30
    kept = cut.removesuffix("...")
    assert text.startswith(kept) and real(font, cut) <= 400 < real(font, text[: len(kept) + 1] + "...")


def test_spread_has_both_ends() -> None:
    assert spread(40, 5) == [0, 10, 20, 29, 39]
    assert spread(3, 5) == [0, 1, 2]
    assert spread(7, 1) == [0]
