"""``python -m framepack``, which ``torchrun -m framepack`` starts on every process."""

from __future__ import annotations

from framepack.cli import main

if __name__ == "__main__":
    main()
