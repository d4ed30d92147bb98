"""The report of a fine-tuning run on the held-out ends of its clips: table, JSON, Markdown and a picture.

report.json          every score of every frame, and the table
report.md            the table, for people
continuations.png    truth, codec, before, after and copy of a few ends, over time
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from framepack.data.encoded import whole, write_json
from framepack.metrics.bootstrap import bootstrap
from framepack.metrics.features import INSTALL
from framepack.training.continuation import Compared
from framepack.video.sheet import PAPER, contact_sheet, spread

JSON, MARKDOWN, PICTURE = "report.json", "report.md", "continuations.png"
METRICS = {"psnr": "PSNR, dB", "distance": "feature distance"}
HORIZONS = ("whole end", "first section", "later")
SHOWN = {
    "before": "before",
    "after": "after",
    "gain": "after - before",
    "copy": "copy of last frame",
    "codec": "codec's ceiling",
}
MANY, FEW = 8, 5
"""So many clips, and the interval tells of other clips; fewer than so many of anything have none."""
ENDS, COLUMNS, TILE = 3, 8, 128
"""Of the picture: ends, moments of each, width of a frame in px."""


def write_report(compared: Sequence[Compared], out: Path, said: dict[str, Any]) -> dict[str, Any]:
    """Write the report's three files, and return what report.json holds.

    Args:
        said: what is told of the run beside the scores, as JSON has it.

    Raises:
        OutputError: they cannot be written.
    """
    many = len(compared) >= MANY
    report = said | {
        "truth": "video" if all(each.real for each in compared) else "codec",
        "intervals_over": "clips" if many else "frames",
        "table": list(_table(compared, many)),
        "ends": [
            {
                "file": each.file,
                "seconds": round(each.seconds, 3),
                "clip": each.end.clip,
                "latents": [each.end.start, each.end.latents],
                "frames": len(each.truth),
                "first_section": each.first,
                "scores": {
                    row: {name: np.round(values, 4).tolist() for name, values in scores.items()}
                    for row, scores in each.scores.items()
                },
            }
            for each in compared
        ],
    }
    with whole(out / PICTURE) as part:
        _picture(compared).save(part, format="PNG")
    with whole(out / MARKDOWN) as part:
        part.write_text(markdown(report), encoding="utf-8")
    write_json(out / JSON, report)
    return report


def report_of(out: Path) -> dict[str, Any]:
    """What report.json of a run holds; nothing where there is none."""
    file = out / JSON
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def loss_of(log: Path) -> dict[str, float]:
    """Means of the first and the last tenth of the rows of metrics.jsonl, at least one each."""
    rows = [json.loads(line)["loss"] for line in log.read_text().splitlines()]
    some = max(1, len(rows) // 10)
    return {"first": float(np.mean(rows[:some])), "last": float(np.mean(rows[-some:]))}


# Numbers -----------------------------------------------------------------------------------------------


def _table(compared: Sequence[Compared], many: bool) -> Iterator[dict[str, Any]]:
    """A row for each metric, what is compared, and horizon; ``low`` and ``high`` where there is enough."""
    measured = [name for name in METRICS if all(name in each.scores["before"] for each in compared)]
    for metric in measured:
        for row in SHOWN:
            if row == "codec" and not all(each.real for each in compared):
                continue  # it is the truth itself
            for horizon in HORIZONS:
                parts = [part for each in compared if len(part := _scores(each, metric, row, horizon))]
                if not parts:
                    continue
                units = np.array([part.mean() for part in parts]) if many else np.concatenate(parts)
                found = bootstrap(units)
                told = {"metric": metric, "row": row, "horizon": horizon, "value": found.value}
                yield told | ({"low": found.low, "high": found.high} if len(units) >= FEW else {})


def _scores(each: Compared, metric: str, row: str, horizon: str) -> NDArray[np.float64]:
    """(F,) of one horizon; the gain is the difference in every frame."""
    if row == "gain":
        found = each.scores["after"][metric] - each.scores["before"][metric]
    else:
        found = each.scores[row][metric]
    return {"whole end": found, "first section": found[: each.first], "later": found[each.first :]}[horizon]


# Words -------------------------------------------------------------------------------------------------


def title_of(report: dict[str, Any]) -> str:
    frames = sum(end["frames"] for end in report["ends"])
    against = "the video's frames" if report["truth"] == "video" else "the codec's frames (no video at hand)"
    return (
        f"{frames} held-out frames of {len(report['ends'])} clips against {against}, "
        f"{report['seeds']} seeds, {report['method']}"
    )


def blocks_of(report: dict[str, Any]) -> Iterator[tuple[str, list[list[str]]]]:
    """For each metric its name, and rows of cells: what is compared, then a cell for each horizon."""
    values = {(told["metric"], told["row"], told["horizon"]): told for told in report["table"]}
    for metric, name in METRICS.items():
        rows = [
            [words, *(_cell(metric, row, values.get((metric, row, horizon))) for horizon in HORIZONS)]
            for row, words in SHOWN.items()
            if any((metric, row, horizon) in values for horizon in HORIZONS)
        ]
        yield name, rows


def notes_of(report: dict[str, Any]) -> list[str]:
    """What is to be said under the table."""
    loss, few, steps = report["loss"], report["not_drawn"], report["steps"]
    told = [
        "a higher PSNR and a lower distance are nearer",
        f"loss {loss['first']:.4g} to {loss['last']:.4g} (first and last tenth of {steps:,} steps)",
    ]
    if any("low" in row for row in report["table"]):
        told.append(f"in brackets 95 % bootstrap intervals of means over {report['intervals_over']}")
    if report["intervals_over"] == "frames":
        told[-1] += ": they tell of these clips, not of others"
    if not any(row["metric"] == "distance" for row in report["table"]):
        told.append(f"feature distance is unavailable without its weights: {INSTALL}")
    if few:
        told.append(f"{few} clips are shorter than a section without their held-out ends, and not drawn from")
    return told


def markdown(report: dict[str, Any]) -> str:
    lines = [f"# {title_of(report)}", ""]
    for name, rows in blocks_of(report):
        if rows:
            lines += [f"| {name} | {' | '.join(HORIZONS)} |", "|---|" + "---:|" * len(HORIZONS)]
            lines += ["| " + " | ".join(cells) + " |" for cells in rows] + [""]
    return "\n".join([*lines, *(f"- {note}" for note in notes_of(report)), "", f"![]({PICTURE})", ""])


def _cell(metric: str, row: str, told: dict[str, Any] | None) -> str:
    if told is None:
        return ""
    value = f"{told['value']:{'+' if row == 'gain' else ''}.2f}"
    if "low" not in told:
        return value
    digits = 1 if metric == "psnr" else 2
    low, high = (round(told[bound], digits) + 0.0 for bound in ("low", "high"))  # without a -0.00
    return f"{value} [{low:.{digits}f}, {high:.{digits}f}]"


# The picture -------------------------------------------------------------------------------------------


def _picture(compared: Sequence[Compared]) -> Image.Image:
    """A block for each of a few ends: a row each for the truth and what stands in its place, of one seed."""
    blocks = []
    for each in (compared[number] for number in spread(len(compared), ENDS)):
        rows = {
            "truth": each.truth,
            **{row: each.pictures[row] for row in ("codec", "before", "after", "copy")},
        }
        moments = spread(len(each.truth), COLUMNS)
        blocks.append(
            contact_sheet(
                [frames[moment] for frames in rows.values() for moment in moments],
                len(moments),
                [f"{row}, frame {moment + 1}" for row in rows for moment in moments],
                title=f"{each.file} from {each.seconds:.2f} s",
                tile_width=TILE,
            )
        )
    sheet = Image.new("RGB", (max(b.width for b in blocks), sum(b.height for b in blocks)), PAPER)
    top = 0
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height
    return sheet
