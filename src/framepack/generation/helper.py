"""What a process beside the first one runs; libraries are told to be quiet before anything heavy is there."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from typing import Any

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # on CPUs it names kernels one could fetch


def help_out(*told: Any) -> None:
    """See ``devices.serve``."""
    from framepack.generation.devices import serve

    serve(*told)


def end_with_parent() -> None:
    """Have this process end when the one that started it does, even if that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "nobody started this process"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
