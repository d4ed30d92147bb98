"""What ``framepack data check`` shows: a survey as text, and as plain values."""

from __future__ import annotations

import re
from collections import Counter
from statistics import median
from typing import Any

from framepack.data.clips import Cutting, Survey
from framepack.data.videos import Found

SHOWN = 5
"""Files named for each reason; ``--json`` names them all."""


def survey_json(found: Found, survey: Survey, cutting: Cutting, model: str) -> dict[str, Any]:
    """Plain values: lengths in seconds, sizes as height x width."""
    lengths = [clip.seconds for clip in survey.clips]
    buckets = Counter(clip.bucket for clip in survey.clips)
    return {
        "model": model,
        "fps": cutting.fps,
        "shortest_frames": cutting.shortest,
        "longest_frames": cutting.longest,
        "videos": len(found.videos),
        "readable": len(survey.videos),
        "captions": len({video.caption for video in survey.videos if video.caption}),
        "without_caption": [video.name for video in survey.videos if not video.caption],
        "clips": len(survey.clips),
        "seconds": {
            "total": round(sum(lengths), 3),
            "shortest": round(min(lengths), 3),
            "median": round(median(lengths), 3),
            "longest": round(max(lengths), 3),
        },
        "buckets": {f"{h}x{w}": buckets.get((h, w), 0) for h, w in cutting.buckets},
        "remarks": list(survey.remarks),
        "rejected": [{"name": r.name, "reason": r.reason} for r in survey.rejected],
    }


def print_survey(found: Found, survey: Survey, cutting: Cutting, model: str) -> None:
    """On standard output."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    told = survey_json(found, survey, cutting, model)
    seconds = told["seconds"]
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"[bold]{told['readable']} of {told['videos']} videos[/] can be read, {told['captions']} captions, "
        f"{len(told['without_caption'])} videos without one"
    )
    console.print(
        f"[bold]{told['clips']} clips[/] at {cutting.fps:g} fps for {escape(model)}, "
        f"{seconds['total']:,.1f} s: from {seconds['shortest']:.2f} to {seconds['longest']:.2f} s, "
        f"median {seconds['median']:.2f} s"
    )
    table = Table(box=None, pad_edge=False)
    for name in ("bucket", "clips"):
        table.add_column(name, justify="right")
    for bucket, count in told["buckets"].items():
        if count:
            table.add_row(bucket, str(count))
    console.print(table)
    if survey.rejected:
        console.print(f"[yellow]{len(survey.rejected)} rejected[/]")
    # Reasons that differ in their numbers alone are one.
    alike: dict[str, list[int]] = {}
    for index, rejected in enumerate(survey.rejected):
        alike.setdefault(re.sub(r"[\d.]+", "#", rejected.reason), []).append(index)
    for indices in alike.values():
        for index in indices[:SHOWN]:
            console.print(
                f"  '{escape(survey.rejected[index].name)}' {escape(survey.rejected[index].reason)}"
            )
        if len(indices) > SHOWN:
            console.print(f"  [dim]and {len(indices) - SHOWN} more like it; --json names them all[/]")
