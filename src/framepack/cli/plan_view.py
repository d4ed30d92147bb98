"""A plan as a picture: rows are sections in the order they are made, columns are the video's time.

One grid of small integers is painted twice, in the terminal and as a PNG. A cell shows the most
telling of the latent frames under it, so that a plan of a thousand sections still reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from framepack.cli.outputs import save_png
from framepack.packing.schedule import Kernel
from framepack.planning.planners import Plan, tiles
from framepack.planning.script import Script, Turn
from framepack.planning.sections import Section

ALL_ROWS, SAMPLED_ROWS = 60, 40
"""A terminal shows every section up to the first number, else a sample of the second."""

MOST_WORDS = 40
"""Cells of a terminal's row for the prompt of its section, at most."""

UNKNOWN, UNSEEN, TAIL, COARSEST = 0, 1, 2, 3
"""Codes of a cell, less telling first; after COARSEST come finer kernels, then the target."""

NEW = "#f2a33a"
ON_PAPER = ("#0d3b7a", "#b9d5ef")
ON_TERMINAL = ("#2d6fd6", "#86a9d6")
"""Finest and coarsest kernel. Terminals are dark or light, so theirs are of middling brightness."""
CONTEXT = "#2d6fb5"
TAIL_COLOUR = "#e3dbf1"
TAIL_ON_TERMINAL = "#9a86c4"
UNSEEN_COLOUR = "#e6e6e2"
PAPER = "#fcfcfa"
INK = "#25272c"
FAINT = "#8a8d94"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """``codes`` (rows, columns); ``rows`` holds the section of each row; kernels fine to coarse."""

    codes: np.ndarray
    rows: tuple[int, ...]
    kernels: tuple[Kernel, ...]

    @property
    def target(self) -> int:
        return COARSEST + len(self.kernels)

    def code(self, kernel: Kernel) -> int:
        return self.target - 1 - self.kernels.index(kernel)


def shades(count: int, dark: str, light: str) -> list[str]:
    """``count`` colours from dark to light, of which two are not the extremes."""
    first, last = (np.array([int(c[i : i + 2], 16) for i in (1, 3, 5)]) for c in (dark, light))
    steps = [i / max(count - 1, 2) for i in range(count)]
    return ["#" + "".join(f"{round(v):02x}" for v in first + (last - first) * step) for step in steps]


def cells(plan: Plan, max_rows: int, max_columns: int) -> Grid:
    """Reduce a plan to at most ``max_rows`` x ``max_columns`` cells.

    Where there are more sections than rows, rows are spread evenly and keep the first and the last;
    what happened in between still counts as made.
    """
    length = plan.timeline.latent_frames
    kernels = sorted(
        {level.kernel for s in plan.sections for level in s.context}, key=lambda k: (k[0] * k[1] * k[2], k)
    )
    columns = min(length, max_columns)
    edges = np.arange(columns + 1) * length // columns
    shown = _spread(len(plan.sections), max_rows)
    grid = Grid(codes=np.zeros((len(shown), columns), np.int8), rows=tuple(shown), kernels=tuple(kernels))
    made = np.zeros(length, np.int8)
    made[list(plan.timeline.known)] = UNSEEN
    wanted = set(shown)
    row = 0
    for index, section in enumerate(plan.sections):
        if index in wanted:
            line = made.copy()
            _paint_context(line, section, grid)
            line[list(section.frames)] = grid.target
            grid.codes[row] = np.maximum.reduceat(line, edges[:-1])
            row += 1
        made[list(section.frames)] = UNSEEN
    return grid


def _paint_context(line: np.ndarray, section: Section, grid: Grid) -> None:
    for level in section.context:
        frames = [f for f in level.frames if f is not None]
        code = TAIL if level.role == "tail" else grid.code(level.kernel)
        line[frames] = np.maximum(line[frames], code)


def _spread(count: int, rows: int) -> list[int]:
    if count <= rows:
        return list(range(count))
    return [round(i * (count - 1) / (rows - 1)) for i in range(rows)]


def _legend(grid: Grid) -> list[tuple[int, str]]:
    entries = [(grid.target, "being made")]
    entries += [(grid.code(kernel), f"context, kernel {_kernel_text(kernel)}") for kernel in grid.kernels]
    if (grid.codes == TAIL).any():
        entries.append((TAIL, "context, tail"))
    if (grid.codes == UNSEEN).any():
        entries.append((UNSEEN, "made earlier, out of sight"))
    return entries


def _kernel_text(kernel: Kernel) -> str:
    return f"{kernel[0]}x{kernel[1]}x{kernel[2]}"


def changes(plan: Plan, script: Script) -> list[tuple[Turn, float | None]]:
    """Each change of the prompt, and the seconds at which its first section begins; None: it is in none."""
    timeline = plan.shown
    found = script.switches(tiles(timeline, plan.method), timeline)
    return [
        (
            turn,
            None if span is None else timeline.frames_of(span.start).start / timeline.fps if turn.at else 0.0,
        )
        for turn, span in found
    ]


def print_plan(plan: Plan, title: str, facts: str, console: Console, script: Script | None = None) -> None:
    """Draw a plan in a terminal, as wide as it is; beside the sections their prompts, if these change.

    Each kind of cell has a character of its own too, for terminals without colours.
    """
    sections = len(plan.sections)
    margin = len(str(sections)) + 2
    room = max(8, console.width - margin - 1)
    if script is not None and len(script.turns) == 1:
        script = None
    if script is not None:
        words = min(MOST_WORDS, room // 3)
        room -= words + 1
    grid = cells(plan, sections if sections <= ALL_ROWS else SAMPLED_ROWS, room)
    # A plan of few frames is stretched by whole cells, so that it does not look lost.
    stretch = max(1, min(6, room // grid.codes.shape[1]))
    colours = ["", "dim", TAIL_ON_TERMINAL, *shades(len(grid.kernels), *ON_TERMINAL)[::-1], NEW]
    marks = [" ", "·", "~", *_characters(len(grid.kernels)), "█"]
    console.print(Text(title, style="bold"), soft_wrap=True)
    console.print(Text(facts, style="dim"), soft_wrap=True)
    console.print()
    for row, section in zip(grid.codes, grid.rows, strict=True):
        line = Text(f"{section + 1:>{margin - 1}} ", style="dim")
        for code in row:
            line.append(marks[code] * stretch, style=colours[code])
        if script is not None:
            line.append_text(_told(script, plan, section, words))
        console.print(line, no_wrap=True, crop=True)
    console.print(_time_axis(plan, grid.codes.shape[1] * stretch, margin))
    if len(grid.rows) < sections:
        console.print(Text(f"{len(grid.rows)} of {sections} sections are shown", style="dim"))
    console.print()
    for code, meaning in _legend(grid):
        mark = Text("  ")
        mark.append(marks[code] * 2, style=colours[code])
        mark.append(f" {meaning}")
        console.print(mark)
    if script is not None:
        console.print()
        console.print(_changes_table(plan, script))


def _told(script: Script, plan: Plan, section: int, width: int) -> Text:
    """The prompts of a section, one beside the other, in ``width`` cells and one before them."""
    mix = script.mix(plan.sections[section].spans[0], plan.timeline)
    line = Text()
    for prompt, weight in mix:
        share = f" {weight:.0%} " if len(mix) > 1 else " "
        part = Text(share + " ".join(prompt.split()))
        part.truncate((width + 1) // len(mix), overflow="ellipsis")
        line.append_text(part)
    return line


def _changes_table(plan: Plan, script: Script) -> RichTable:
    """When each prompt was asked for, and when the first section under it begins."""
    table = RichTable(box=None, padding=(0, 2), header_style="dim")
    for heading in ("asked for", "switches at"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("prompt", ratio=1)
    for turn, begins in changes(plan, script):
        blend = f", blend {turn.blend:g} s" if turn.blend else ""
        switches = "in no section" if begins is None else f"{begins:.2f} s"
        table.add_row(f"{turn.at:g} s{blend}", switches, Text(turn.prompt))
    return table


def _characters(count: int) -> list[str]:
    """Characters for kernels, coarse to fine."""
    fine_to_coarse = "▓▒░:-"
    return [fine_to_coarse[min(i, len(fine_to_coarse) - 1)] for i in range(count)][::-1]


def _time_axis(plan: Plan, width: int, margin: int) -> Text:
    seconds = plan.timeline.frames / plan.timeline.fps
    end = f"{seconds:g} s"
    return Text(" " * margin + "0 s" + end.rjust(max(0, width - 3)), style="dim")


def draw_png(
    plan: Plan, title: str, facts: str, tokens: list[tuple[int, int]], path: Path, source: str
) -> None:
    """Draw a plan as a PNG.

    Args:
        tokens: for each section, its context tokens and its own.
        source: the PNG's mark, see `save_png`.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    grid = cells(plan, max_rows=60, max_columns=900)
    rows, columns = grid.codes.shape
    palette = [PAPER, UNSEEN_COLOUR, TAIL_COLOUR, *shades(len(grid.kernels), *ON_PAPER)[::-1], NEW]
    height = min(9.5, max(3.4, 2.3 + 0.34 * rows))
    figure, (axes, side) = plt.subplots(
        1,
        2,
        figsize=(13, height),
        width_ratios=(6, 1),
        sharey=True,
        facecolor=PAPER,
        layout="constrained",
        dpi=130,
    )
    seconds = plan.timeline.frames / plan.timeline.fps
    small = rows * columns <= 4000  # thin white lines between cells only where cells are large
    axes.pcolormesh(
        np.linspace(0, seconds, columns + 1),
        np.arange(rows + 1),
        grid.codes,
        cmap=ListedColormap(palette),
        vmin=-0.5,
        vmax=len(palette) - 0.5,
        edgecolors=PAPER if small else "none",
        linewidth=1.1 if small else 0,
    )
    axes.set_xlim(0, seconds)
    axes.set_ylim(rows, 0)
    every = max(1, -(-rows // 24))
    marks = list(range(0, rows, every))
    axes.set_yticks([m + 0.5 for m in marks], [str(grid.rows[m] + 1) for m in marks])
    axes.set_xlabel("time in the video, seconds")
    axes.set_ylabel("section, in the order they are made")
    axes.set_title(f"{title}\n", loc="left", fontsize=14, color=INK, fontweight="bold")
    axes.annotate(facts, (0, 1), (0, 9), "axes fraction", "offset points", fontsize=10, color=FAINT)

    shown = [tokens[section] for section in grid.rows]
    places = np.arange(rows) + 0.5
    context, own = np.array(shown).T if rows else np.zeros((2, 0))
    side.barh(places, context, height=0.72, color=CONTEXT)
    side.barh(places, own, left=context, height=0.72, color=NEW)
    side.annotate(
        "tokens: context + new", (0, 1), (0, 9), "axes fraction", "offset points", fontsize=10, color=FAINT
    )
    side.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    side.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    side.tick_params(left=False)
    for ax in (axes, side):
        ax.set_facecolor(PAPER)
        ax.tick_params(colors=FAINT, labelsize=9, length=0)
        ax.xaxis.label.set_color(INK)
        ax.yaxis.label.set_color(INK)
        for spine in ax.spines.values():
            spine.set_visible(False)
    axes.spines["bottom"].set(visible=True, color=UNSEEN_COLOUR)
    side.spines["bottom"].set(visible=True, color=UNSEEN_COLOUR)
    entries = _legend(grid)
    # Matplotlib fills a legend by columns; these are to be read by rows.
    across = -(-len(entries) // -(-len(entries) // 7))
    entries = [entries[i] for column in range(across) for i in range(column, len(entries), across)]
    figure.legend(
        handles=[Patch(color=palette[code], label=words) for code, words in entries],
        loc="outside lower left",
        ncols=across,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )
    figure.canvas.draw()
    picture = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    plt.close(figure)
    save_png(picture, path, source)
