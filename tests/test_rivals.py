"""The rival architectures: their methods, and that each can be taught and generates."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from framepack.codecs.frame import FrameAutoencoder
from framepack.data.fingerprint import module_digest
from framepack.data.latents import CacheConfig
from framepack.errors import InputError, UnknownNameError
from framepack.models.loading import load_bundle
from framepack.planning.method import Method, named_method
from framepack.planning.planners import plan
from framepack.planning.timeline import Timeline
from framepack.recipes.bundled import bundled
from framepack.recipes.override import override
from framepack.recipes.rivals import rivals
from framepack.training.check import held_out_pairs, make_videos
from framepack.training.config import NetworkConfig, TrainConfig
from framepack.training.draw import draw_section
from framepack.training.loop import train
from framepack.training.methods import trained_methods
from tiny import tiny_codec

pytestmark = pytest.mark.usefixtures("one_thread")
BASE, SECTION, FRAMES = (1, 1, 1), 6, 73
GRID = (8, 8)
ROWS = {row.name: row for row in rivals(BASE, SECTION, FRAMES, 48)}

#        name                         string                                             context tokens
METHODS = [
    ("repeating image-to-video", "td_f1k1h1w1_g6", 64),
    ("anchor frames", "f1k1h1w1_x_td_f2k1h1w1_g6", 192),
    ("causal attention", "td_f67k1h1w1_g6", 67 * 64),
    ("noisy history, sigma 0.1", "td_f16k4h4w4f2k2h2w2f1k1h1w1_g6", 96),
    ("noisy history, sigma 0.3", "td_f16k4h4w4f2k2h2w2f1k1h1w1_g6", 96),
    ("noisy history, sigma 0.5", "td_f16k4h4w4f2k2h2w2f1k1h1w1_g6", 96),
    ("history guidance", "td_f16k4h4w4f2k2h2w2f1k1h1w1_g6", 96),
    ("full history", "td_f67k1h1w1_g6", 67 * 64),
    ("sliding window", "td_f2k1h1w1_g6", 128),
    ("FramePack vanilla", "td_f16k4h4w4f2k2h2w2f1k1h1w1_g6", 96),
    ("FramePack vanilla +D", "td_f16k4h4w4f2k2h2w2f1k1h1w1_g6+D", 96),
    ("FramePack-F1", "f1k1h1w1_x_td_f16k4h4w4f2k2h2w2f1k1h1w1_g6", 160),
    ("FramePack anti-drifting", "td_f16k4h4w4f2k2h2w2f1k1h1w1_g6_x_f1k1h1w1", 160),
    ("FramePack inverted", "f1k1h1w1_x_g6_f1k1h1w1f2k2h2w2f16k4h4w4_td", 160),
]


def test_every_row_is_in_the_table():
    assert [row[0] for row in METHODS] == list(ROWS)


@pytest.mark.parametrize(("name", "text", "tokens"), METHODS)
def test_methods_are_those_of_the_notation(name, text, tokens):
    row = ROWS[name]
    assert str(row.method) == text
    assert row.method.max_gap == 48 and row.note
    assert Method.from_json(json.loads(json.dumps(row.method.to_json()))) == row.method
    made = plan(Timeline(frames=FRAMES, fps=8.0, stride=1, known=(0,)), row.method)
    assert max(section.tokens(GRID) for section in made.sections) == tokens


def test_all_of_a_video_is_seen_by_what_sees_all():
    for name in ("full history", "causal attention"):
        *_, last = plan(Timeline(frames=FRAMES, fps=8.0, stride=1, known=(0,)), ROWS[name].method).sections
        assert last.context_frames == tuple(range(FRAMES - SECTION))
        assert last.context[0].positions == last.context_frames, "no index is skipped or clamped"


def test_rows_that_share_weights_name_a_row_that_is_trained():
    shared = {row.name: row.weights for row in ROWS.values() if row.weights is not None}
    assert shared == dict.fromkeys(("noisy history, sigma 0.3", "noisy history, sigma 0.5"), METHODS[3][0])
    first = ROWS[METHODS[3][0]]
    for name in shared:
        assert replace(ROWS[name].method, history_noise=0.0) == first.taught


def test_the_papers_figures():
    told = {name: row.paper for name, row in ROWS.items() if row.paper}
    assert len(told) == 7
    assert {key for paper in told.values() for key in paper} == {
        *("clarity", "dynamic", "semantic", "clarity drift", "ELO")
    }
    best = {
        key: pick(told, key=lambda name: told[name][key])
        for key, pick in (("ELO", max), ("clarity drift", min), ("clarity", max))
    }
    assert best == {
        "ELO": "FramePack vanilla +D",
        "clarity drift": "FramePack inverted",
        "clarity": "FramePack inverted",
    }


def test_another_base_has_rows_of_its_own_kernels():
    rows = {row.name: row.method for row in rivals((1, 2, 2), 9, 100, 27)}
    assert str(rows["repeating image-to-video"]) == "td_f1k1_g9"
    assert str(rows["anchor frames"]) == "f1k1_x_td_f2k1_g9"
    assert str(rows["full history"]) == "td_f91k1_g9"
    assert rows["FramePack inverted"] == named_method("inverted", max_gap=27)


# --- taught, and made with ---


@pytest.fixture(scope="module")
def codec_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("codec")
    tiny_codec(stride=16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def config(codec_folder) -> TrainConfig:
    digest = module_digest(FrameAutoencoder.from_pretrained(codec_folder))
    return replace(
        bundled(digest),
        network=NetworkConfig(
            heads=1,
            head_dim=16,
            layers=2,
            ffn=16,
            base_kernel=BASE,
            kernels=(BASE, (2, 2, 2), (4, 4, 4)),
            prompt_width=8,
            prompt_length=8,
        ),
        cache=CacheConfig(clips=4, frames=20, sizes=((32, 32),), seed=0, codec=digest),
        steps=2,
        micro=2,
        draws=1,
        processes=1,
        warmup=1,
        device="cpu",
    )


@pytest.fixture(scope="module")
def start(config, codec_folder, tmp_path_factory):
    """A model of FramePack's methods, as the bundled one is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("framepack.training.loop.sample_sheet", lambda *given: None)
        return train(replace(config, steps=1), tmp_path_factory.mktemp("start"), codec_folder)


def taught(config: TrainConfig, row, start) -> TrainConfig:
    method = row.taught or row.method
    words = (f"methods={json.dumps({'row': method.to_json()})}", 'draw.methods={"row": 1}')
    return override(replace(config, init=str(start)), *words, *row.settings)


SMALL = {row.name: row for row in rivals(BASE, 3, 13, 8)}


@pytest.mark.parametrize("name", [name for name, row in SMALL.items() if row.weights is None])
def test_every_rival_is_taught_and_generates(name, config, start, codec_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("framepack.training.loop.sample_sheet", lambda *given: None)
    row = SMALL[name]
    asked = taught(config, row, start)
    if asked.codewords:
        asked = replace(asked, codewords=8)  # there are few pixels
    bundle = load_bundle(str(train(asked, tmp_path, codec_folder)))
    assert bundle.spec.methods == {"row": row.taught or row.method}
    assert bundle.transformer.config.causal_history == (name == "causal attention")
    before = load_bundle(str(start)).transformer.state_dict()
    after = bundle.transformer.state_dict()
    assert any(not torch.equal(after[key], before[key]) for key in before)
    methods = [row.method, *(other.method for other in SMALL.values() if other.weights == name)]
    videos = [
        make_videos(bundle, held_out_pairs(1, (32, 32)), method, image=True, frames=13, guidance=1.0)[0]
        for method in methods
    ]
    assert all(video.shape == (13, 32, 32, 3) for video in videos)
    assert all(not np.array_equal(videos[0], video) for video in videos[1:])


@pytest.mark.parametrize("name", list(SMALL))
def test_configurations_survive_text(name, config, start):
    asked = taught(config, SMALL[name], start)
    written = json.loads(json.dumps(asdict(asked)))
    assert written["methods"]["row"] == (SMALL[name].taught or SMALL[name].method).to_json()
    again = override(config, *(f"{key}={json.dumps(written[key])}" for key in ("methods", "objective")))
    assert (again.methods, again.objective) == (asked.methods, asked.objective)


def test_records_are_taken_as_they_are_beside_friendly_names(config):
    record = Method.parse("td_f1k1h1w1_g2").to_json()
    words = (f"methods={json.dumps({'one': record})}", 'draw.methods={"one": 1, "f1": 3}', "codewords=4")
    asked = override(config, *words)
    found = trained_methods(asked)
    assert found["one"] == Method.parse("td_f1k1h1w1_g2")
    assert found["f1"].discretized and found["f1"].section_size == config.section_size
    draws = [draw_section(np.random.default_rng(i), asked.draw, found, 20) for i in range(40)]
    assert {draw.name for draw in draws} == {"one", "f1"}
    assert {len(span) for d in draws if d.name == "one" for span in d.section.spans} <= {1, 2}


def test_records_and_names_that_are_none(config):
    with pytest.raises(UnknownNameError, match=r"vanilla, .*row"):
        override(
            config, f"methods={json.dumps({'row': named_method('f1').to_json()})}", 'draw.methods={"x": 1}'
        )
    for record in ({"order": "f1"}, {"sideways": 1}, named_method("f1").to_json() | {"history_noise": 2}):
        with pytest.raises(InputError):
            override(config, f"methods={json.dumps({'row': record})}")
    with pytest.raises(InputError, match="drop_history"):
        override(config, "objective.drop_history=2")


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("FramePack vanilla +D", ("codewords=null",), "no codebook"),
        ("noisy history, sigma 0.3", ('objective.corruption={"kind": "mix"}',), "noise on noise"),
        ("noisy history, sigma 0.3", ("network.causal_history=true",), "timestep of 0"),
        ("full history", ("network.isolated_history=true",), "timestep of 0"),
        (
            "causal attention",
            ('objective.corruption={"kind": "mix", "told": true}',),
            "objective.corruption.told=false",
        ),
        ("full history", ("network.kernels=[[1,1,1]]",), r"kernels \(\(1, 1, 1\), \(2, 2, 2\)"),
    ],
)
def test_what_cannot_be_taught_is_told_at_once(name, settings, told, config, start, codec_folder, tmp_path):
    asked = override(taught(config, SMALL[name], start), *settings)
    with pytest.raises(InputError, match=told):
        train(asked, tmp_path, codec_folder)


def test_a_start_may_get_kernels_and_become_causal_but_not_go_back(
    config, start, codec_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("framepack.training.loop.sample_sheet", lambda *given: None)
    kernels = "network.kernels=[[1,1,1],[2,2,2],[4,4,4],[1,2,2]]"
    record = replace(Method.parse("td_f2k1h2w2f1k1h1w1_g3"), history_timestep="zero").to_json()
    words = (f"methods={json.dumps({'row': record})}", 'draw.methods={"row": 1}', f"init={start}")
    more = override(config, *words, kernels, "network.causal_history=true", "steps=1")
    made = train(more, tmp_path / "more", codec_folder)
    found = load_bundle(str(made)).transformer
    assert found.packing_kernels.has((1, 2, 2)) and found.config.causal_history
    back = override(more, f"init={made}", "network.causal_history=false", "network.isolated_history=true")
    with pytest.raises(InputError, match="causal_history"):
        train(back, tmp_path / "back", codec_folder)
