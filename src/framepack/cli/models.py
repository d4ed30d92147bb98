"""``framepack models``: what can be planned for, and what it would cost in tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from framepack.cli import options

if TYPE_CHECKING:
    from pathlib import Path

    from framepack.models.spec import ModelSpec

HEIGHT, WIDTH = 480, 832
"""The size at which models are compared, px."""
HISTORY_SECONDS = 60


def models(as_json: options.Json = False) -> None:
    """List the bundled model and the published sizes, with their context at 480 x 832."""
    import json

    rows = table()
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        _print(rows)


def table() -> list[dict[str, Any]]:
    """One row per model: name, family, parameters, schedule, loadable, and tokens at 480 x 832.

    ``context_tokens`` is what a section at the end of a minute sees of its history, exactly;
    ``limit_tokens`` the bound for endless history, also exact; ``nominal_limit`` the closed form,
    without padding. The start frame is counted on its own, in ``start_tokens``.
    """
    from framepack.errors import ModelError
    from framepack.models.source import resolve_model
    from framepack.models.variants import VARIANTS

    rows = []
    try:
        bundled = resolve_model("bundled")
    except ModelError:
        pass  # a checkout without weights; the published sizes are listed all the same
    else:
        rows.append(_row(bundled.spec, count_stored(bundled.transformer), loadable=True))
    for variant in VARIANTS.values():
        rows.append(_row(variant.spec(), variant.count_parameters(), loadable=False))
    return rows


def _row(spec: ModelSpec, parameters: int, *, loadable: bool) -> dict[str, Any]:
    from framepack.planning.timeline import Timeline

    schedule = spec.methods[spec.default_method].schedule
    grid = (HEIGHT // spec.spatial_stride, WIDTH // spec.spatial_stride)
    frame_tokens = -(-grid[0] // spec.base_kernel[1]) * -(-grid[1] // spec.base_kernel[2])
    minute = Timeline.from_seconds(HISTORY_SECONDS, fps=spec.fps, stride=spec.temporal_stride)
    return {
        "name": spec.name,
        "family": spec.family,
        "parameters": parameters,
        "schedule": str(schedule),
        "context_tokens": schedule.context_tokens(grid, minute.latent_frames),
        "limit_tokens": schedule.limit_tokens(grid),
        "nominal_limit": schedule.nominal_limit(frame_tokens, spec.base_kernel),
        "start_tokens": schedule.start_tokens(grid),
        "loadable": loadable,
    }


def count_stored(folder: Path) -> int:
    """Parameters in the safetensors files of a folder, from their headers alone."""
    import math

    from safetensors import safe_open

    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())  # no mapping: it cannot be iterated itself
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    return total


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table(
        title=f"Context at {HEIGHT} x {WIDTH}, in tokens", title_justify="left", box=None, pad_edge=False
    )
    shown.add_column("name", style="bold", no_wrap=True)
    shown.add_column("family", no_wrap=True)
    for name in ("parameters", "context", "limit", "nominal limit", "start"):
        shown.add_column(name, justify="right")
    for row in rows:
        shown.add_row(
            row["name"] + ("" if row["loadable"] else " *"),
            row["family"],
            _short(row["parameters"]),
            *(
                _number(row[key])
                for key in ("context_tokens", "limit_tokens", "nominal_limit", "start_tokens")
            ),
        )
    console = Console(highlight=False)
    console.print(shown)
    console.print()
    for row in rows:
        console.print(f"[bold]{row['name']:8}[/] {row['schedule']}", soft_wrap=True)
    console.print("[dim]* published size, no weights here: to plan for, or to make with framepack adopt[/]")


def _short(count: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return str(count)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:,.0f}"
