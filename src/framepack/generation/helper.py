"""What a process beside the first one runs; libraries are told to be quiet before anything heavy is there."""

from __future__ import annotations

import logging
from typing import Any

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # on CPUs it names kernels one could fetch


def help_out(*told: Any) -> None:
    """See ``devices.serve``."""
    from framepack.generation.devices import serve

    serve(*told)
