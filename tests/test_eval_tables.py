"""Numbers, tables and sentences of a suite, against hand-computed values and planted differences."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from framepack.errors import InputError
from framepack.evaluation.analysis import REVISIT, Measured, measured
from framepack.evaluation.cells import Cell, markdown_text, number
from framepack.evaluation.findings import findings, frontier, listed
from framepack.evaluation.paper import agreements, kendall
from framepack.evaluation.results import ClipScores, Revisit, RowResult
from framepack.evaluation.tables import shown, tables
from framepack.evaluation.texts import as_csv, as_markdown
from framepack.metrics.bootstrap import bootstrap, bootstrap_means
from framepack.metrics.significance import family_p
from tiny_suite import METRICS, Info, row, suite


def texts(found: Measured, topic: str | None = None) -> list[str]:
    return [finding.text for finding in findings(found) if topic in (None, finding.topic)]


def cell(found: Measured, key: str, name: str, column: int) -> Cell:
    table = next(table for table in tables(found) if table.key == key)
    return next(cells for cells in table.rows if cells[0].text == name)[column]


def scored(name: str, *clips: list[float], **more) -> RowResult:
    held = tuple(
        ClipScores(clip=f"clip-{n:03d}", values={"sharpness": tuple(values)})
        for n, values in enumerate(clips)
    )
    return RowResult(name=name, clips=held, wanted=more.pop("wanted", len(held)), **more)


# Statistics --------------------------------------------------------------------------------------------


def test_means_of_many_columns_are_those_of_one() -> None:
    samples = np.random.default_rng(3).exponential(size=(15, 4))
    samples[2, 1] = samples[9, 1] = np.nan
    samples[:, 3] = np.nan
    found = bootstrap_means(samples)
    for n in range(3):
        kept = samples[~np.isnan(samples[:, n]), n]
        one = bootstrap(kept)
        assert found[0, n] == pytest.approx(one.value)
        assert found[1:, n] == pytest.approx([one.low, one.high], abs=0.03)
    assert np.isnan(found[:, 3]).all()


def test_p_of_a_family() -> None:
    ones = np.ones((6, 1))
    assert family_p(ones) == pytest.approx([2 / 64])  # of 64 sets of signs two are as far from 0
    noise = np.random.default_rng(0).normal(size=(6, 40))
    wide = family_p(np.concatenate([ones + 0.2 * noise[:, :1], noise], axis=1))
    assert wide[0] >= family_p(ones + 0.2 * noise[:, :1])[0]
    assert family_p(np.full((4, 1), 5.0)) == 1  # too few to tell
    assert family_p(np.zeros((9, 2))) == pytest.approx([1, 1])
    missing = np.concatenate([np.ones((8, 1)), np.full((3, 1), np.nan)])
    assert family_p(missing)[0] < 0.02


def test_false_claims_are_few() -> None:
    """Five rows without any difference, skewed scores: claims in about one of twenty suites."""
    wrong = 0
    for seed in range(80):
        scores = np.random.default_rng(seed).exponential(size=(3, 5, 16))
        pairs = [part[i] - part[j] for part in scores for i in range(5) for j in range(i)]
        wrong += bool((family_p(np.stack(pairs, axis=1), flips=1000) < 0.05).any())
    assert wrong <= 10  # of 80 4 are expected; more than 10 have a chance of 0.3 %


@pytest.mark.parametrize(
    ("first", "second", "tau"),
    [([1, 2, 3, 4], [1, 2, 3, 4], 1), ([1, 2, 3, 4], [4, 3, 2, 1], -1), ([1, 2, 3, 4], [1, 2, 4, 3], 4 / 6)],
)
def test_kendall(first: list[float], second: list[float], tau: float) -> None:
    assert kendall(first, second)[0] == pytest.approx(tau)


def test_kendall_with_ties_and_its_p() -> None:
    # 5 of 6 pairs differ in the first list, all 6 in the second; 5 concordant: 5 / sqrt(5 * 6)
    assert kendall([1, 1, 2, 3], [1, 2, 3, 4])[0] == pytest.approx(5 / np.sqrt(30))
    _, p = kendall([1, 2, 3, 4], [1, 2, 3, 4])
    assert p == pytest.approx(2 / 24, abs=0.01)  # of the 24 orders, this one and its reverse
    assert np.isnan(kendall([1, 2], [1, 2])[0])
    assert np.isnan(kendall([1, 1, 1], [1, 2, 3])[0])


# Numbers -----------------------------------------------------------------------------------------------


def test_values_and_drift_by_hand() -> None:
    # 20 frames: 3 at either end. 0..19: ends 1 and 18; twice that; and a level clip.
    rising = list(map(float, range(20)))
    found = measured(
        suite(scored("a", rising, [2 * x for x in rising], [7.0] * 20), scored("b", rising, rising, rising)),
        METRICS,
    )
    value, drift = (found.measures[kind, "sharpness"] for kind in ("value", "drift"))
    assert value.samples[0].tolist() == [9.5, 19.0, 7.0]
    assert drift.samples[0].tolist() == [17.0, 34.0, 0.0]
    assert drift.estimates[0].value == 17.0
    assert np.isnan(drift.estimates[0].low)  # three clips have no interval
    assert drift.difference(0, 1).value == pytest.approx((0 + 17 - 17) / 3)
    assert cell(found, "drift", "a", 1).text == "17.0"


def test_beyond_the_world_is_drift_of_the_difference() -> None:
    world = [[float(n * k) for n in range(20)] for k in range(6)]
    made = [[x + 0.5 * n for n, x in enumerate(clip)] for clip in world]
    found = measured(suite(scored("the world", *world, reference=True), scored("a", *made)), METRICS)
    beyond = found.measures["beyond", "sharpness"]
    assert beyond.samples[1] == pytest.approx([8.5] * 6)  # 17 frames between the ends, half a level each
    assert np.isnan(beyond.samples[0]).all()
    assert beyond.compared() == [1]
    beyond_table = next(table for table in tables(found) if table.key == "beyond")
    assert [cells[0].text for cells in beyond_table.rows] == ["a"]


def test_clips_of_another_length_than_the_worlds_are_not_beyond_it() -> None:
    found = measured(
        suite(
            scored("the world", [1.0] * 20, reference=True), scored("a", [1.0] * 19), scored("b", [2.0] * 20)
        ),
        METRICS,
    )
    samples = found.measures["beyond", "sharpness"].samples
    assert np.isnan(samples[1, 0])
    assert samples[2, 0] == 0


def test_frames_without_a_score_are_left_out_and_clips_with_few_are_counted() -> None:
    nan = float("nan")
    found = measured(
        suite(scored("a", [1, nan, 1, 3], [nan, nan, nan, nan, 5], [nan] * 4, [1.0, 1, 1, 1])), METRICS
    )
    assert found.measures["value", "sharpness"].samples[0] == pytest.approx([5 / 3, nan, nan, 1], nan_ok=True)
    assert found.measures["drift", "sharpness"].samples[0, 0] == 2  # of the three that there are
    assert found.lost == {(0, "sharpness"): 2}
    notes = next(table for table in tables(found) if table.key == "value").notes
    assert any(note.startswith("a: up to 2 clips left out") for note in notes)


def test_revisits_by_frames_away() -> None:
    walks = tuple(
        Revisit(clip=f"walk-{n}", away=(8, 16, 8, 90), error=(1.0, 2.0, 3.0, float("nan"))) for n in range(6)
    )
    found = measured(suite(replace(scored("a", [1.0, 1.0]), revisits=walks)), METRICS)
    assert [title for title, _ in found.bins] == ["8", "16"]
    assert [parts[0].value for _, parts in found.bins] == [2.0, 2.0]
    assert found.measures["revisit", REVISIT].estimates[0].value == 2.0
    assert found.growth[0][0].value == 0


def test_many_distances_become_few_bins() -> None:
    walk = Revisit(clip="walk", away=tuple(range(1, 24)), error=(0.0,) * 23)
    found = measured(suite(replace(scored("a", [1.0, 1.0]), revisits=(walk,))), METRICS)
    assert [title for title, _ in found.bins] == ["1 to 5", "6 to 10", "11 to 15", "16 to 19", "20 to 23"]


def test_against() -> None:
    rows = (row("the world", reference=True), row("f1"), row("vanilla"))
    assert measured(suite(*rows), METRICS).against == 2
    assert measured(suite(*rows[:2]), METRICS).against == 1
    assert measured(suite(*rows), METRICS, against="f1").against == 1
    with pytest.raises(InputError, match=r"unknown row 'vanila'.*nearest is vanilla"):
        measured(suite(*rows), METRICS, against="vanila")
    assert measured(suite(), METRICS).against is None


# What is claimed ---------------------------------------------------------------------------------------


def test_planted_differences_are_found() -> None:
    rows = (
        row("the world", reference=True, own=0),
        row("vanilla", drift=3),
        row("f1", drift=3),
        row("inverted"),
    )
    found = measured(suite(*rows), METRICS)
    told = texts(found, "drift")
    assert told[0].startswith("Drift beyond the world's: inverted is best in 3 of 3 metrics; in 3 of them")
    assert any(text.startswith("Sharpness: inverted drifts least") for text in told)
    beyond = found.measures["beyond", "sharpness"]
    assert beyond.differ(3, 1) and beyond.differ(3, 2) and not beyond.differ(1, 2)
    difference = cell(found, "drift-paired", "inverted", 1)
    assert difference.mark == "better" and difference.plain.startswith("-")
    assert cell(found, "drift-paired", "f1", 1).mark == ""
    assert cell(found, "ranks", "inverted", 5).text == "3"


def test_null_differences_are_not_claimed() -> None:
    claims = 0
    for seed in range(12):
        rows = [row(name, seed=seed, forgets=0.0) for name in ("vanilla", "f1", "inverted", "planned")]
        found = measured(suite(*rows), METRICS)
        told = [text for text in texts(found) if "no difference found" not in text.lower()]
        told = [text for text in told if not text.startswith(("No relation", "No growth"))]
        claims += bool(told)
    assert claims <= 3  # four families of 5 % each in 12 suites: 2 are expected


def test_rows_that_are_not_finished_are_told_and_not_compared() -> None:
    waiting = row("waiting", drift=-9, level=9, clips=8, wanted=12)
    training = row("training", clips=0, wanted=12, training=(120, 300))
    found = measured(suite(row("vanilla", drift=3), row("inverted"), waiting, training), METRICS)
    assert texts(found, "state") == ["Not finished, and not compared: waiting and training."]
    assert not any("waiting" in text or "training" in text for text in texts(found)[1:])
    assert cell(found, "rows", "waiting", 5).text == "8 of 12 clips"
    assert cell(found, "rows", "training", 5).text == "training, 120 of 300 steps"
    assert cell(found, "value", "waiting", 0).detail == "not finished"
    assert "n=8" in cell(found, "value", "waiting", 1).detail
    assert cell(found, "value", "training", 1).text == "–"
    measure = found.measures["value", "sharpness"]
    own, other = measure.samples[2], measure.samples[0]
    assert measure.differences[2].value == pytest.approx(np.nanmean(own[:8] - other[:8]))
    assert measure.differences[2].clips == 8
    assert "waiting" not in [cells[0].text for t in tables(found) if t.key == "ranks" for cells in t.rows]


def test_no_row_is_finished() -> None:
    found = measured(suite(row("a", wanted=30), row("b", wanted=30)), METRICS)
    assert texts(found) == ["Not finished, and not compared: a and b."]


def test_best_is_over_the_clips_that_all_have() -> None:
    # b is better in the clips that a has; one more clip, which is hard, would turn it.
    a = scored("a", *[[5.0, 5.0]] * 6, wanted=6)
    b = scored("b", *[[6.0, 6.0]] * 6, [-90.0, -90.0], wanted=6)
    found = measured(suite(a, b), METRICS)
    assert found.measures["value", "sharpness"].best() == 1


def test_few_clips_claim_nothing() -> None:
    found = measured(suite(row("vanilla", drift=9, clips=3), row("inverted", clips=3)), METRICS)
    assert texts(found, "drift") == ["Drift: with fewer than 5 clips nothing is claimed."]
    assert cell(found, "drift", "vanilla", 1).detail == ""


def test_metrics_without_scores_have_a_line_and_no_number() -> None:
    rows = (row("vanilla", metrics=["sharpness"]), row("inverted", metrics=["sharpness", "noise"]))
    found = measured(
        suite(*rows, unavailable={"flow": "no weights: pip install x", "musiq": "gone"}), METRICS
    )
    assert found.absent == {"flow": "no weights: pip install x", "musiq": "gone"}
    assert cell(found, "value", "vanilla", 2).text == "–"
    text = as_markdown(found)
    assert "- flow: no weights: pip install x" in text
    assert "Motion" not in text
    assert not [line for line in as_csv(found).splitlines() if ",flow," in line or ",musiq," in line]


def test_a_metric_that_the_table_does_not_have_is_shown() -> None:
    found = measured(suite(row("a"), row("b")), {"sharpness": METRICS["sharpness"]})
    assert list(found.metrics) == ["sharpness", "noise", "flow"]
    assert found.metrics["noise"].better == "neither"


def test_forgetting() -> None:
    rows = (row("keeps", forgets=0.0), row("forgets", forgets=2.0))
    told = texts(measured(suite(*rows), METRICS), "forgetting")
    assert told[0].startswith("Revisit error: keeps errs least")
    assert "grow from near (8 frames away) to far (64) in 1 of 2 rows: forgets; most in forgets" in told[1]
    assert told[1].endswith("No growth found in keeps.")


def test_paradox() -> None:
    pairs = [(3.0, 0.0), (2.4, 0.5), (1.8, 1.0), (1.2, 1.5), (0.6, 2.0), (0.0, 2.5)]
    rows = [row(f"r{n}", drift=d, forgets=f, spread=0.1) for n, (d, f) in enumerate(pairs)]
    (text,) = texts(measured(suite(*rows), METRICS), "paradox")
    assert text.startswith("Rows that forget less drift more")
    assert "tau -1.00" in text


def test_frontier() -> None:
    assert frontier([3, 1, 2, 2.5], [1, 3, 2, 2.5]) == [1, 2, 0]
    assert frontier([1, 1], [1, 1]) == [0, 1]


# The paper ---------------------------------------------------------------------------------------------


def test_the_papers_order() -> None:
    rows = (
        row("vanilla", drift=0, paper={"clarity drift": 3.18, "ELO": 1074}, spread=0.1),
        row("inverted", drift=3, paper={"clarity drift": 2.25}, spread=0.1),
        row("f1", drift=9, paper={"clarity drift": 9.9}, spread=0.1),
        row("new", drift=5),
    )
    found = measured(suite(*rows), METRICS)
    (agreement,) = agreements(found)
    assert agreement.measure.metric == "sharpness" and not agreement.near
    assert agreement.pairs == 3 and agreement.tau == pytest.approx(1 / 3)
    assert [(pair.first, pair.second) for pair in agreement.sure] == [(1, 0)]
    (text,) = texts(found, "paper")
    assert (
        "2 of 3 pairs are in the paper's order, 2 by more than chance; 1 in the other, 1 by more than chance"
        in text
    )
    assert "there inverted (2.25) is before vanilla (3.18), here vanilla leads by" in text


def test_what_the_paper_has_equal_is_no_pair_and_what_is_only_near_is_told() -> None:
    metrics = {name: replace(info, stands_for="") for name, info in METRICS.items()}
    rows = [row(f"r{n}", drift=n, paper={"clarity": figure}) for n, figure in enumerate((70.0, 70.0, 60.0))]
    (agreement,) = agreements(measured(suite(*rows), metrics))
    assert agreement.near and agreement.pairs == 2 and not agreement.turned
    found = measured(suite(*rows), metrics)
    assert "the nearest here, Sharpness" in texts(found, "paper")[0]
    assert cell(found, "paper", "r0", 1).text == "70"


def test_of_metrics_that_are_better_low_the_order_is_that_of_quality() -> None:
    metrics = {"sharpness": Info(title="Blur", better="lower", stands_for="clarity")}
    rows = [row(f"r{n}", level=-3 * n, paper={"clarity": 50.0 + n}, metrics=["sharpness"]) for n in range(3)]
    (agreement,) = agreements(measured(suite(*rows), metrics))
    assert agreement.tau == pytest.approx(1)


# Texts -------------------------------------------------------------------------------------------------


def test_csv_holds_every_number() -> None:
    rows = (
        row("the world", reference=True),
        row("vanilla", cost={"samples": 9.0}),
        row('a "b", c', forgets=1.0),
    )
    found = measured(suite(*rows), METRICS)
    lines = list(csv.DictReader(io.StringIO(as_csv(found))))
    assert {line["kind"] for line in lines} == {"value", "drift", "beyond", "revisit", "cost"}
    (line,) = [
        x
        for x in lines
        if x["row"] == 'a "b", c' and x["metric"] == "noise" and x["kind"] == "drift" and not x["against"]
    ]
    estimate = found.measures["drift", "noise"].estimates[2]
    assert [float(line[k]) for k in ("value", "low", "high", "clips")] == pytest.approx(
        [estimate.value, estimate.low, estimate.high, 12]
    )
    paired = [
        x for x in lines if x["against"] == "vanilla" and x["metric"] == "noise" and x["kind"] == "drift"
    ]
    assert {x["row"] for x in paired} == {"the world", 'a "b", c'}
    assert [x["p"] == "" for x in paired] == [True, False]  # the world is not compared


def test_markdown_keeps_its_columns_with_hostile_names() -> None:
    names = ("vanilla", "a|b", "<script>alert(1)</script>", "[x](http://y)", "*_`\n#")
    text = as_markdown(measured(suite(*(row(name, note=name) for name in names)), METRICS))
    assert "<script" not in text and "[x](http" not in text
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("| ")]
    assert len(blocks) >= 5
    for block in blocks:
        bars = {line.replace("\\|", "").count("|") for line in block}
        assert len(bars) == 1 and len(block) >= 6


def test_the_terminal_gets_every_row_in_any_width() -> None:
    result = suite(row("vanilla"), row("[bold]x[/]"), row("not there", clips=0, wanted=4))
    for width in (60, 160):
        console = Console(width=width, record=True, file=io.StringIO())
        for part in shown(result, METRICS, width):
            console.print(part)
        text = console.export_text()
        assert max(map(len, text.splitlines())) <= width
        assert text.count("[bold]x[/]") >= 5 and "Motion" in text


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (1234.5, 0, "1,234"),
        (-0.001, 2, "0.00"),
        (float("nan"), 1, "–"),
        (float("-inf"), 1, "-∞"),
        (-1.25, 1, "-1.2"),
    ],
)
def test_numbers(value: float, digits: int, text: str) -> None:
    assert number(value, digits) == text


def test_signed_numbers_and_lists() -> None:
    assert [number(x, 1, signed=True) for x in (0.04, -0.04, -3, 3)] == ["+0.0", "+0.0", "-3.0", "+3.0"]
    assert listed(["a"]) == "a" and listed(["a", "b", "c"]) == "a, b and c"
    assert listed(list("abcdefg")) == "a, b, c, d and 3 more"
    assert markdown_text("a | b\nc") == "a \\| b c"
