"""The machine that something was measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framepack.errors import InputError

if TYPE_CHECKING:
    import torch

GB = 1e9
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where Linux tells a container how much it may have, by the second and the first version of cgroups."""


def machine(device: str = "cpu") -> dict[str, Any]:
    """Where a benchmark runs, and how busy it is there now."""
    import torch

    found: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device,
    }
    if device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def machine_line(found: dict[str, Any]) -> str:
    where = found.get("gpu") or f"{found['cpu']}, {found['cores']} cores, {found['threads']} threads"
    return f"{where}; load {found['load']} at the start; torch {found['torch']}, Python {found['python']}"


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def system_memory() -> int:
    """Bytes of memory that this machine has, or that its container may have of it."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in LIMITS:
        try:
            there = min(there, int(limit.read_text()))
        except (OSError, ValueError):  # none, or "max"
            continue
    return there


def device_memory(device: torch.device) -> int:
    """Bytes of memory of a device of this machine; the system's where it shares it.

    Raises:
        InputError: a GPU that is not here.
    """
    import torch

    if device.type != "cuda":
        return system_memory()
    if not torch.cuda.is_available():
        raise InputError("the memory of a GPU that is not here is unknown: give --memory, in GB")
    return int(torch.cuda.get_device_properties(device).total_memory)
