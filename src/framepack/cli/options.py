"""Options that several verbs share, written once: the selection of what is to be made, and how."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from framepack.generation.given import Keyframe

WHAT = "What to make"
HOW = "How to make it"
WHERE = "Where it goes"

Image = Annotated[
    Path | None,
    typer.Option(
        "--image",
        help="Picture the video starts from; without it, text-to-video.",
        show_default=False,
        rich_help_panel=WHAT,
    ),
]
EndImage = Annotated[
    Path | None,
    typer.Option("--end-image", help="Picture the video ends on.", show_default=False, rich_help_panel=WHAT),
]
Keyframes = Annotated[
    list[str] | None,
    typer.Option(
        "--keyframe",
        help="Picture at a time in seconds, such as 2.5=door.png; repeatable.",
        metavar="SECONDS=FILE",
        show_default=False,
        rich_help_panel=WHAT,
    ),
]
FromClip = Annotated[
    Path | None,
    typer.Option("--from-clip", help="Video that it goes on from.", show_default=False, rich_help_panel=WHAT),
]
ToClip = Annotated[
    Path | None,
    typer.Option("--to-clip", help="Video that it leads to.", show_default=False, rich_help_panel=WHAT),
]
CopyClips = Annotated[
    bool,
    typer.Option(
        "--copy-clips",
        help="Show clips as they are, not as the model's codec has them.",
        rich_help_panel=WHAT,
    ),
]
Loop = Annotated[bool, typer.Option("--loop", help="Have the end lead to the start.", rich_help_panel=WHAT)]
Prompt = Annotated[
    str | None,
    typer.Option(
        "--prompt",
        help="What happens. By time: '[0s: ...] [2s-3.5s: ...] [5s blend 1s: ...]'; by section: "
        "'0:...;;;2-3:...;;;-1:...'.",
        show_default=False,
        rich_help_panel=WHAT,
    ),
]
Storyboard = Annotated[
    Path | None,
    typer.Option(
        "--storyboard",
        help="YAML file of scenes, instead of --prompt and --seconds.",
        show_default=False,
        rich_help_panel=WHAT,
    ),
]
Seconds = Annotated[
    float | None, typer.Option("--seconds", help="Length in seconds.", show_default="5", rich_help_panel=WHAT)
]
Frames = Annotated[
    int | None,
    typer.Option(
        "--frames",
        help="Length in frames, instead of --seconds; kept exactly.",
        show_default=False,
        rich_help_panel=WHAT,
    ),
]
Size = Annotated[
    str,
    typer.Option(
        "--size",
        help="WIDTHxHEIGHT in pixels; 'auto' takes the model's size nearest in shape.",
        metavar="auto|WxH",
        rich_help_panel=WHAT,
    ),
]
Method = Annotated[
    str | None,
    typer.Option(
        "--method",
        help="What is generated when, and what it sees: vanilla, f1, "
        "anti-drifting, inverted, inverted-plain, planned, or a string such as "
        "f1k1_x_g9_f1k1f2k2f16k4_td.",
        metavar="NAME|STRING",
        show_default="the model's",
        rich_help_panel=HOW,
    ),
]
Schedule = Annotated[
    str | None,
    typer.Option(
        "--schedule",
        help="Packing of the history: a name such as geometric or symmetric, or lambda=2, or budget=2.625.",
        metavar="NAME|lambda=X|budget=X",
        show_default="the method's",
        rich_help_panel=HOW,
    ),
]
Untrained = Annotated[
    bool,
    typer.Option("--untrained", help="Allow methods the model was not trained for.", rich_help_panel=HOW),
]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        help="bundled, a model folder, a .safetensors file, or a hub id such as owner/name.",
        metavar="NAME|DIR|FILE|HUB-ID",
        rich_help_panel=HOW,
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        "--steps", help="Denoising steps per section.", show_default="the model's", rich_help_panel=HOW
    ),
]
Guidance = Annotated[
    float | None,
    typer.Option(
        "--guidance",
        help="Strength of the prompt; 1 is none.",
        show_default="the model's",
        rich_help_panel=HOW,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite", help="Replace a file of another origin at the output's place.", rich_help_panel=WHERE
    ),
]


def keyframes(texts: list[str] | None, end: Path | None) -> tuple[Keyframe, ...]:
    """What ``--keyframe`` and ``--end-image`` ask for. Raises InputError: a keyframe of another form."""
    from framepack.generation.given import Keyframe

    ends = () if end is None else (Keyframe(picture=end),)
    return (*(Keyframe.parse(text) for text in texts or ()), *ends)
