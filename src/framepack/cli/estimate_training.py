"""What ``framepack estimate --train`` counts and shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from framepack.cli.estimate import in_gb, in_time, table_of
from framepack.resources.machine import GB

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from framepack.training.estimate import TrainingEstimate, TrainingRow


def count(
    recipe: str,
    settings: Sequence[str],
    model: str,
    size: tuple[int, int] | None,
    method: str | None,
    schedule: str | None,
    sections: Sequence[int] | None,
    **options: Any,
) -> TrainingEstimate:
    """What a recipe of fine-tuning needs, with ``settings`` changed as by ``framepack train``.

    Args:
        options: of `estimate_training`.

    Raises:
        UnknownNameError, ModelError, InputError: see there, and for a recipe that is none.
    """
    from framepack.cli.train import fine_tune_recipe
    from framepack.recipes.override import override
    from framepack.resources.hollow import find_architecture
    from framepack.resources.sections import grid_of
    from framepack.training.estimate import SECTIONS, estimate_training

    make = fine_tune_recipe(recipe)
    architecture = find_architecture(model)
    spec = architecture.spec
    return estimate_training(
        architecture,
        override(make(spec), *settings),
        spec.method(method, schedule, untrained=True),
        grid_of(spec, size),
        sections=sections or SECTIONS,
        **options,
    )


def show_training(found: TrainingEstimate, console: Console) -> None:
    """What each device holds, then a row for each kind of sample, then what the numbers hang on."""
    height, width = found.size
    shared = f"{found.devices} x {found.device}" if found.devices > 1 else found.device
    console.print(
        f"[bold]{found.model}[/], {width} x {height}, clips of {found.clip:g} s: {found.training}, "
        f"{found.trained:,} of {found.parameters:,} parameters, on {shared} with {found.memory / GB:.4g} GB"
    )
    held = ", ".join(f"{name} {in_gb(size)}" for name, size in found.held.items())
    console.print(f"  on each device: {held}; {in_gb(found.system)} of system memory while it is loaded")
    console.print(_rows(found))
    for line in found.assumptions:
        console.print(f"  {line}", style="dim", markup=False)


def _rows(found: TrainingEstimate) -> Table:
    timed = ("step",) if any(row.seconds is not None for row in found.rows) else ()
    devices = (f"of {found.devices}",) if found.devices > 1 else ()
    columns = ("section", "history", "tokens", "batch", *devices, "memory", "in", "a sample", "FLOP a sample")
    table = table_of("Steps", (*columns, *timed))
    for row in found.rows:
        table.add_row(*_cells(row, found.devices), style="" if row.fits else "dim")
    return table


def _cells(row: TrainingRow, devices: int) -> list[str]:
    own, context = row.tokens
    cells = [str(row.section), row.history, f"{own:,} + {context:,}", str(row.batch) if row.batch else "none"]
    if devices > 1:
        cells.append(str(row.batch * devices) if row.batch else "none")
    memory = in_gb(row.most)
    cells += [memory if row.fits else f"[red]{memory}[/]", row.part, in_gb(row.a_sample)]
    cells.append(f"{row.operations:.3g}")
    return cells + ([] if row.seconds is None else [in_time(row.seconds)])
