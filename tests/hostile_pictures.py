"""Pictures and clips that somebody might send who means no good."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, features

MP4 = b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41"
KINDS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", *(("AVIF",) if features.check("avif") else ()))
KEPT = ("PNG", "JPEG", "WEBP", "GIF", "AVIF")
"""Of these, those that the service takes."""
FLIPS, CUTS = 4, (0.1, 0.5, 0.95)
SCRIPT = b"<script>alert(document.cookie)</script>"
OTHERS = {
    "html": b"<!doctype html><html>" + SCRIPT,
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "svg-entities": b'<!DOCTYPE s [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><svg>&b;</svg>',
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file pop\n",
    "pdf": b"%PDF-1.7\n1 0 obj<</OpenAction<</S/JavaScript/JS(app.alert(1))>>>>endobj\n",
    "zip": b"PK\3\4\x14\0\0\0\0\0" + b"\0" * 16 + b"../../evil",
    "gzip": zlib.compress(b"\0" * 1_000_000),
    "elf": b"\x7fELF\2\1\1" + b"\0" * 60,
    "shell": b"#!/bin/sh\nrm -rf /\n",
    "pickle": b"\x80\4cposix\nsystem\n(S'id'\ntR.",
    "php": b"<?php system($_GET['c']); ?>",
    "sqlite": b"SQLite format 3\0" + b"\0" * 84,
    "wmf": b"\xd7\xcd\xc6\x9a" + b"\0" * 60,
    "icns": b"icns\0\0\0\x10ic08\xff\xff\xff\xff",
    "fits": b"SIMPLE  =                    T" + b" " * 2850,
    "psd": b"8BPS\0\1" + b"\xff" * 30,
    "playlist": b"#EXTM3U\n#EXTINF:1,\nhttp://169.254.169.254/latest/meta-data\n",
    "gifar": b"GIF89a/*" + b"\0" * 10 + b"*/=alert(1)//",
}
TAILS = ("html", "svg", "pdf", "zip", "php")


def noise(size: tuple[int, int] = (48, 32)) -> Image.Image:
    pixels = np.random.default_rng(3).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


def saved(image: Image.Image, kind: str, **more: object) -> bytes:
    made = io.BytesIO()
    image.save(made, kind, **more)
    return made.getvalue()


def chunk(name: bytes, data: bytes, crc: int | None = None) -> bytes:
    told = zlib.crc32(name + data) if crc is None else crc
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", told)


def png(
    width: int, height: int, *, depth: int = 8, colour: int = 2, more: bytes = b"", data: bytes | None = None
) -> bytes:
    """A PNG of these claims; ``more`` chunks stand before its pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = zlib.compress(b"\0" * 64, 9) if data is None else data
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def zeros(size: int) -> bytes:
    return zlib.compress(b"\0" * size, 9)


def bombs() -> Iterator[tuple[str, bytes]]:
    """None of them may be decoded as far as it claims to go."""
    for width, height in (
        (0, 0),
        (0, 9),
        (2**31 - 1, 2**31 - 1),
        (2**32 - 1, 1),
        (65535, 65535),
        (16_000_001, 1),
    ):
        yield f"png-{width}x{height}", png(width, height)
    large = Image.new("1", (20_000, 20_000))
    yield "png-400-megapixels-in-50-kb", saved(large, "PNG")
    yield (
        "gif-60000x60000",
        b"GIF89a" + struct.pack("<HH", 60_000, 60_000) + b"\0\0\0,\0\0\0\0\1\0\1\0\0\2\2D\1\0;",
    )
    yield "jpeg-65500x65500", _jpeg_of(65_500, 65_500)
    yield "webp-16383x16383", saved(noise(), "WEBP", lossless=True)[:21] + b"\xff\xff\xff\x0f" + b"\0" * 40
    yield "avif-of-nothing", b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + b"\0\0\0\x08mdat" * 9
    claim = struct.pack("<IiiHHIIiiII", 40, 100_000, 100_000, 1, 24, 0, 0, 0, 0, 0, 0)
    yield "bmp-100000x100000", b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + claim
    yield "ppm-99999x99999", b"P6 99999 99999 255\n"
    yield "ppm-plain", b"P3 4000 4000 255\n" + b"1 " * 100_000
    yield "tiff-1000000x1000000", _tiff(1_000_000, 1_000_000)
    text = b"a\0\0" + zeros(100_000_000)
    yield "png-ztxt-of-100-mb", png(16, 16, more=chunk(b"zTXt", text))
    yield "png-itxt-of-100-mb", png(16, 16, more=chunk(b"iTXt", b"a\0\1\0\0\0" + text[3:]))
    yield "png-iccp-of-100-mb", png(16, 16, more=chunk(b"iCCP", text))


def odd() -> Iterator[tuple[str, bytes]]:
    """Against the rules of their formats, in ways that readers forgive or not."""
    yield "png-idat-of-100-mb-in-1x1", png(1, 1, data=zeros(100_000_000))
    yield "png-short-of-pixels", png(512, 512)
    yield "png-no-zlib", png(16, 16, data=b"\xff" * 40)
    yield "png-wrong-crc", png(16, 16, more=chunk(b"gAMA", b"\0\0\0\1", 7))
    yield "png-depth-99", png(16, 16, depth=99)
    yield "png-colour-5", png(16, 16, colour=5)
    yield "png-without-palette", png(16, 16, colour=3, data=zeros(16 * 17))
    yield "png-palette-of-nothing", png(16, 16, colour=3, more=chunk(b"PLTE", b""), data=zeros(16 * 17))
    yield "png-transparency-of-nothing", png(16, 16, more=chunk(b"tRNS", b""), data=zeros(16 * 49))
    yield "png-header-twice", png(16, 16, more=png(9999, 9999)[8:33])
    yield "png-of-4-billion-frames", png(16, 16, more=chunk(b"acTL", b"\xff" * 8), data=zeros(16 * 49))
    yield "png-chunk-of-4-gb", png(16, 16)[:33] + b"\xff\xff\xff\xffIDAT" + b"\0" * 99
    yield "png-20000-chunks", png(16, 16, more=chunk(b"tEXt", b"a\0b") * 20_000, data=zeros(16 * 49))
    yield (
        "png-exif-of-noise",
        png(16, 16, more=chunk(b"eXIf", b"Exif\0\0" + b"\xff" * 500), data=zeros(16 * 49)),
    )
    for name, header in (("little", b"II*\0\x08\0\0\0"), ("big", b"MM\0*\0\0\0\x08")):
        yield f"jpeg-exif-of-65535-tags-{name}-endian", _with_exif(header + b"\xff\xff")
        yield f"jpeg-exif-of-huge-tags-{name}-endian", _with_exif(header + b"\1\1\x12\1\3\3" + b"\xff" * 8)
    yield (
        "jpeg-exif-that-points-to-itself",
        _with_exif(b"II*\0\x08\0\0\0\x01\0\x69\x87\4\0\1\0\0\0\x08\0\0\0\x08\0\0\0"),
    )
    for value in (0, 9, 65535):
        yield (
            f"jpeg-orientation-{value}",
            _with_exif(b"II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0" + struct.pack("<HH", value, 0) + b"\0" * 4),
        )
    yield "jpeg-comment-of-noise", saved(noise(), "JPEG", comment=b"\0\xff" * 30_000)
    yield "gif-without-pixels", b"GIF89a" + struct.pack("<HH", 8, 8) + b"\0\0\0;"
    yield (
        "gif-frame-beyond-the-screen",
        b"GIF89a\x08\0\x08\0\0\0\0,\xff\xff\xff\xff\xff\xff\xff\xff\0\2\2D\1\0;",
    )


def damaged() -> Iterator[tuple[str, bytes]]:
    """Real pictures cut short, and with single bits turned."""
    draw = random.Random(11)
    for kind in KINDS:
        whole = saved(noise(), kind)
        yield f"{kind}-magic-alone", whole[:12]
        for share in CUTS:
            yield f"{kind}-cut-at-{share:g}", whole[: int(len(whole) * share)]
        for number in range(FLIPS):
            bits = bytearray(whole)
            for _ in range(3):
                bits[draw.randrange(len(bits) if number % 2 else min(len(bits), 120))] ^= 1 << draw.randrange(
                    8
                )
            yield f"{kind}-bits-turned-{number}", bytes(bits)


def fine() -> Iterator[tuple[str, bytes]]:
    """Unusual, and none the worse for it."""
    picture = noise()
    yield "1x1", saved(noise((1, 1)), "PNG")
    yield "1x50000", saved(noise((1, 50_000)), "PNG")
    yield "50000x1", saved(noise((50_000, 1)), "PNG")
    yield "cmyk-jpeg", saved(picture.convert("CMYK"), "JPEG")
    yield "16-bit-png", saved(Image.fromarray(np.arange(1024, dtype=np.uint16).reshape(32, 32) * 64), "PNG")
    yield "one-bit-png", saved(picture.convert("1"), "PNG")
    yield "grey-and-alpha-png", saved(picture.convert("LA"), "PNG")
    yield "rgba-png", saved(picture.convert("RGBA"), "PNG")
    yield "palette-with-transparency-png", saved(picture.convert("P"), "PNG", transparency=bytes(range(256)))
    yield "palette-with-transparency-gif", saved(picture.convert("P"), "GIF", transparency=7)
    for kind in ("GIF", "PNG", "WEBP"):
        more = [picture.rotate(90 * turn) for turn in range(1, 40)]
        yield f"moving-{kind.lower()}", saved(picture, kind, save_all=True, append_images=more)
    turned = Image.Exif()
    turned[0x0112] = 6
    yield "jpeg-on-its-side", saved(picture, "JPEG", exif=turned)
    for kind in ("PNG", "JPEG", "GIF"):
        for tail in TAILS:
            yield f"{kind.lower()}-with-{tail}", saved(picture, kind) + OTHERS[tail]


def clips() -> Iterator[tuple[str, bytes]]:
    """They begin as an MP4 does, so that only a worker finds out."""
    yield "mp4-of-its-first-bytes", MP4
    yield "mp4-of-noise", MP4 + random.Random(5).randbytes(5000)
    yield "mp4-of-zeros", MP4 + b"\0" * 5000
    yield "mp4-box-of-4-gb", MP4 + b"\xff\xff\xff\xffmoov" + b"\0" * 99
    yield "mp4-boxes-in-boxes", MP4 + b"".join(struct.pack(">I", 8 * (400 - n)) + b"moov" for n in range(399))
    yield "mp4-that-is-a-session", b"v=0\nftypx\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n"
    yield "mp4-that-is-avif", saved(noise(), "AVIF") if "AVIF" in KINDS else MP4 + b"avif"


def no_clips() -> Iterator[tuple[str, bytes]]:
    yield "nothing", b""
    yield "a-byte", b"\0"
    yield "webm", b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81\1\x42\xf7\x81\1webm"
    yield "avi", b"RIFF\0\0\0\0AVI LIST"
    yield "transport-stream", b"G@\0\x10" * 50
    yield "concat", b"ffconcat version 1.0\nfile /etc/passwd\n"
    yield "session", b"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\n"
    for name in ("playlist", "html", "zip", "svg"):
        yield name, OTHERS[name]
    yield "png", saved(noise(), "PNG")


def _jpeg_of(width: int, height: int) -> bytes:
    whole = saved(noise(), "JPEG")
    at = whole.index(b"\xff\xc0") + 5
    return whole[:at] + struct.pack(">HH", height, width) + whole[at + 4 :]


def _with_exif(told: bytes) -> bytes:
    whole, told = saved(noise(), "JPEG"), b"Exif\0\0" + told
    return whole[:2] + b"\xff\xe1" + struct.pack(">H", len(told) + 2) + told + whole[2:]


def _tiff(width: int, height: int) -> bytes:
    tags = ((256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 200), (278, height), (279, 99))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + b"\0" * 100
