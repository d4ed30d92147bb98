"""Long video generation whose cost does not grow with the length of the video."""

__version__ = "0.1.0"
