"""Fixtures that several files use."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def _imports_are_not_searched_for_garbage() -> None:
    """Modules and what pytest holds are a million objects, which every collection would look at."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Sums over other numbers of threads round differently; and tiny models gain nothing from a second."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
