"""Long video generation whose cost does not grow with the length of the video."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from framepack.generation.pipeline import FramePackPipeline as FramePackPipeline

__version__ = "0.1.0"
__all__ = ["FramePackPipeline", "__version__"]


def __getattr__(name: str) -> object:
    # PyTorch takes seconds to load: only who makes a video waits for it.
    if name == "FramePackPipeline":
        from framepack.generation.pipeline import FramePackPipeline

        return FramePackPipeline
    raise AttributeError(f"module 'framepack' has no attribute '{name}'")
