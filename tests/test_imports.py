"""The shape of the package: who may import whom, what starts fast, what outsiders may name."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "framepack"
ROOMS = [
    *("errors", "packing", "planning", "video", "codecs", "conditioning", "models", "sampling", "resources"),
    *("generation", "metrics", "data", "training", "recipes", "evaluation", "serving", "cli"),
]
HEAVY = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "matplotlib",
    "av",
    "gradio",
    "ray",
    "fastapi",
    "sqlalchemy",
)
TORCHLESS = (
    *("errors", "planning", "video", "packing.schedule", "packing.notation", "models.spec"),
    "evaluation.arena",
    *("serving.service", "serving.api", "serving.app", "serving.batch", "serving.page"),
)


def imports_of(tree: ast.AST) -> set[str]:
    """Full dotted names of everything imported anywhere in a module, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def test_every_folder_is_a_room() -> None:
    found = {p.relative_to(SOURCE).parts[0].removesuffix(".py") for p in modules()} - {"__init__", "__main__"}
    assert found <= set(ROOMS), f"not in the list of rooms: {sorted(found - set(ROOMS))}"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_up(path: Path) -> None:
    room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if room in ("__init__", "__main__"):
        return
    allowed = ROOMS[: ROOMS.index(room) + 1]
    for name in imports_of(ast.parse(path.read_text())):
        if name.split(".")[0] == "framepack" and name != "framepack.__version__":
            assert name.split(".")[1] in allowed, f"{room} imports {name}: it may use {', '.join(allowed)}"


@pytest.mark.parametrize("name", TORCHLESS)
def test_integers_and_pictures_need_no_torch(name: str) -> None:
    base = SOURCE / Path(*name.split("."))
    files = sorted(base.rglob("*.py")) if base.is_dir() else [base.with_suffix(".py")]
    for path in files:
        tops = {imported.split(".")[0] for imported in imports_of(ast.parse(path.read_text()))}
        assert not tops & {"torch", "diffusers", "transformers"}, path


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["serve", "--help"],
        ["batch", "--help"],
        ["generate", "--help"],
        ["plan", "--help"],
        ["--version"],
    ],
)
def test_help_starts_without_heavy_imports(arguments: list[str]) -> None:
    # Counted in modules, not in seconds: a busy machine must not fail this.
    code = f"""
import sys
from framepack.cli import main
sys.argv = ["framepack", *{arguments!r}]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print("LOADED", *(name for name in {HEAVY!r} if name in sys.modules))
"""
    assert run_python(code).splitlines()[-1].split() == ["LOADED"]


def test_the_server_answers_without_torch() -> None:
    """The page's library is loaded beside it, models by workers alone."""
    code = (
        "import sys, framepack.serving.app as a; print(*({'torch', 'gradio', 'ray'} & set(sys.modules)), '.')"
    )
    assert run_python(code).split() == ["."]


def test_planning_runs_without_torch() -> None:
    code = (
        "import sys, framepack.planning.planners, framepack.packing.schedule; print('torch' in sys.modules)"
    )
    assert run_python(code).split() == ["False"]


# What other programs may import and rely on. A name that leaves this list is a break; say so in the
# release notes. Everything else may change at any time: what such a module defines for framepack's own
# use is listed after it.
PUBLIC = {
    "framepack": ["FramePackPipeline", "__version__"],
    "framepack.errors": [
        "FramePackError",
        "InputError",
        "LostProcessError",
        "ModelError",
        "NotationError",
        "OutOfMemoryError",
        "OutputError",
        "RunConflictError",
        "UnknownNameError",
        "UntrainedMethodError",
    ],
    "framepack.packing.schedule": ["Level", "PackingSchedule", "Tail"],
    "framepack.planning.method": ["METHODS", "Importance", "Method", "named_method"],
    "framepack.planning.timeline": ["Timeline"],
    "framepack.planning.prompts": ["SectionPrompts", "read_prompt"],
    "framepack.planning.script": ["Cue", "Script"],
    "framepack.planning.storyboard": ["Scene", "Storyboard", "read_storyboard"],
    "framepack.planning.planners": ["PLANNERS", "Plan", "plan"],
    "framepack.planning.sections": ["ContextLevel", "Section", "Span"],
    "framepack.video.io": ["check_output", "read_image", "read_video", "write_video"],
    "framepack.video.resize": ["nearest_bucket", "to_bucket"],
    "framepack.video.sheet": ["contact_sheet"],
    "framepack.models.variants": ["VARIANTS"],
    "framepack.generation.events": [
        "Decoded",
        "Decoding",
        "Finished",
        "Grown",
        "Remark",
        "SectionFinished",
        "Started",
        "Step",
    ],
    "framepack.generation.pipeline": ["FramePackOutput", "FramePackPipeline", "Settings"],
    "framepack.generation.prepare": ["prepare"],
    "framepack.models.source": ["Source", "resolve_model"],
    "framepack.generation.request": ["GenerateRequest"],
    "framepack.cli": ["main"],
}


INTERNAL = {
    "framepack.errors": ["first_line", "ran_out"],
    "framepack.packing.schedule": [
        "check_grid",
        "context_tensor_tokens",
        "read_levels",
        "released",
        "unpacked",
    ],
    "framepack.planning.method": ["NamedMethod", "method_from_spec"],
    "framepack.planning.prompts": ["script_of"],
    "framepack.planning.script": ["Turn"],
    "framepack.planning.planners": [
        "again",
        "anti_drifting",
        "forward",
        "inverted",
        "paddings",
        "planned",
        "tile",
        "tiles",
        "scene_endpoints",
    ],
    "framepack.video.io": ["VideoFile", "describe", "encode", "encode_video", "taking_name", "unwritable"],
    "framepack.video.resize": ["cover_box"],
    "framepack.video.sheet": ["spread"],
    "framepack.models.variants": ["Variant", "kept_layers", "repeated_layers"],
    "framepack.generation.events": ["event_json"],
    "framepack.generation.prepare": ["encode_given", "prompt_warnings", "with_loras"],
    "framepack.generation.request": ["check_prompt", "check_seed", "one_prompt"],
}


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_are_there(module: str) -> None:
    loaded = importlib.import_module(module)
    for name in PUBLIC[module]:
        assert hasattr(loaded, name), f"{module}.{name}"
        public = getattr(loaded, name)
        if callable(public):
            assert public.__doc__, f"{module}.{name} has no docstring"


@pytest.mark.parametrize("module", PUBLIC)
def test_no_name_becomes_public_unnoticed(module: str) -> None:
    """A new function or class is promised to others, or listed as our own, or starts with an underscore."""
    file = importlib.import_module(module).__file__
    assert file is not None
    defined = {
        node.name
        for node in ast.parse(Path(file).read_text()).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    }
    new = defined - {*PUBLIC[module], *INTERNAL.get(module, ())}
    assert not new, f"{module} defines {sorted(new)}: enter them in PUBLIC or INTERNAL, or rename them"
