"""Rows of the lab's tables: a method, and how weights are trained for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from framepack.planning.method import Method


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row: what generates its clips.

    name: for people, and unique in its suite. note: one line on what it is and where it is from.
    method: what the model sees while it generates.
    taught: what it sees while it is trained; None is ``method``.
    settings: changes to the training recipe, ``path=value`` each, as ``--set`` takes them.
    weights: the row whose weights it generates with, in place of a training of its own.
    paper: figures that the paper gives for it, by the paper's names.
    """

    name: str
    method: Method
    note: str = ""
    taught: Method | None = None
    settings: tuple[str, ...] = ()
    weights: str | None = None
    paper: Mapping[str, float] = field(default_factory=dict)
