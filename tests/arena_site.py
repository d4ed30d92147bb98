"""A folder of tiny videos whose quality can be read from their pixels, and a real server on it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from framepack.video.io import write_video

LEVELS = {"elm": 210, "oak": 170, "ash": 130, "fir": 90, "yew": 50}
"""Rows and the brightness of their videos: the brighter, the better; their order is not that of names."""


def write_clip(path: Path, level: int, *, frames: int = 8, fps: float = 8, size: int = 64) -> None:
    """A flat grey; in the eight columns at the right a bar that moves down by one step a frame."""
    pictures = np.full((frames, size, size, 3), level, np.uint8)
    for number, picture in enumerate(pictures):
        picture[number * size // frames :][: size // frames, -8:] = 255 - level
    write_video(path, pictures, fps)


def write_rows(folder: Path, clips: int) -> Path:
    """As a suite lays them out, the clips of a row all alike."""
    for row, level in LEVELS.items():
        made = folder / "rows" / row / "clips"
        write_clip(made / "clip-000.mp4", level)
        for clip in range(1, clips):
            shutil.copy(made / "clip-000.mp4", made / f"clip-{clip:03}.mp4")
    return folder


class Site:
    """``framepack arena`` as a process of its own."""

    def __init__(self, folder: Path, *options: str, port: int = 0) -> None:
        self.folder = folder
        command = [sys.executable, "-m", "framepack", "arena", str(folder), "--port", str(port), *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.address = self._address()
        self.port = int(self.address.rsplit(":", 1)[1])

    def _address(self) -> str:
        assert self.process.stdout is not None
        late = threading.Timer(180, self.process.kill)
        late.start()
        for line in self.process.stdout:
            if line.startswith("judge at "):
                late.cancel()
                return line.split()[2].rstrip("/")
        late.cancel()
        self.kill()
        raise AssertionError(f"no server: {self.process.communicate()}")

    def call(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers with names in lower case, and body."""
        request = urllib.request.Request(
            self.address + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"content-type": "application/json", **(headers or {})},
        )
        try:
            with urllib.request.urlopen(request, timeout=90) as response:
                return response.status, {k.lower(): v for k, v in response.headers.items()}, response.read()
        except urllib.error.HTTPError as error:
            return error.code, {k.lower(): v for k, v in error.headers.items()}, error.read()

    def ask(self, judge: str = "ann") -> dict[str, Any]:
        status, _, body = self.call("POST", "/api/pairs", {"judge": judge})
        assert status == 200, body
        return json.loads(body)

    def judge(self, pair: str, choice: str) -> dict[str, Any]:
        status, _, body = self.call("PUT", f"/api/pairs/{pair}/judgement", {"choice": choice})
        assert status == 200, body
        return json.loads(body)["progress"]

    def kill(self) -> None:
        """As a power cut would end it."""
        self.process.kill()
        self.process.wait(30)

    def interrupt(self) -> tuple[int, str, str]:
        """Ctrl-C: exit code, standard output, standard error."""
        self.process.send_signal(signal.SIGINT)
        out, err = self.process.communicate(timeout=90)
        return self.process.returncode, out, err


@contextmanager
def running(folder: Path, *options: str, port: int = 0) -> Iterator[Site]:
    site = Site(folder, *options, port=port)
    try:
        yield site
    finally:
        if site.process.poll() is None:
            site.kill()
        for stream in (site.process.stdout, site.process.stderr):
            if stream is not None:
                stream.close()


def run_arena(*arguments: object) -> tuple[int, str, str]:
    """``framepack arena`` that ends by itself: exit code, standard output, standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "framepack", "arena", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "COLUMNS": "200"},
    )
    return done.returncode, done.stdout, done.stderr
