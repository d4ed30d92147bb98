"""Training: samples from the planners, explicit attention, resume, and the folder that comes out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from typer.testing import CliRunner

from framepack.cli import app
from framepack.codecs.frame import FrameAutoencoder
from framepack.conditioning.lexicon import parse
from framepack.data.fingerprint import module_digest
from framepack.data.latents import (
    CacheConfig,
    LatentCache,
    build_cache,
    claim_cache,
    encode_shard,
    shard_path,
)
from framepack.data.world import Motion
from framepack.errors import InputError, OutputError, UnknownNameError
from framepack.models.attention import ExplicitAttention
from framepack.models.loading import load_bundle
from framepack.models.shift import Balance
from framepack.planning.method import Importance
from framepack.recipes.bundled import bundled
from framepack.recipes.override import override
from framepack.training.check import (
    ABILITIES,
    follows_prompt,
    held_out_check,
    held_out_pairs,
    held_out_scenes,
    keyframes,
    make_videos,
    prompt_change,
    sentences,
)
from framepack.training.codec import CodecTraining
from framepack.training.config import NetworkConfig
from framepack.training.draw import draw_section
from framepack.training.loop import device_of, rate_scale, train
from framepack.training.machine import cores
from framepack.training.masters import Masters
from framepack.training.methods import trained_methods
from framepack.training.network import build_modules, spec_of
from framepack.training.objective import make_batch
from tiny import save_tiny, tiny_bundle, tiny_codec


@pytest.fixture(scope="module")
def codec_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("codec")
    tiny_codec(stride=16).save_pretrained(folder)
    return folder


@pytest.fixture
def config(codec_folder):
    digest = module_digest(FrameAutoencoder.from_pretrained(codec_folder))
    base = bundled(digest)
    return replace(
        base,
        network=NetworkConfig(
            heads=2,
            head_dim=16,
            layers=2,
            ffn=32,
            base_kernel=(1, 1, 1),
            kernels=base.network.kernels,
            prompt_width=8,
            prompt_length=8,
        ),
        cache=CacheConfig(clips=6, frames=20, sizes=((32, 32),), seed=0, codec=digest),
        steps=4,
        micro=2,
        processes=1,
        save_every=2,
        sheet_every=100,
        log_every=1,
        warmup=1,
        device="cpu",
    )


def test_explicit_attention_equals_the_fused_one_and_its_gradient():
    q, k, v = (torch.randn(2, 3, 17, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    weight = torch.randn(2, 3, 17, 8, dtype=torch.float64)
    outs, grads = [], []
    for explicit in (False, True):
        if explicit:
            with ExplicitAttention():
                out = F.scaled_dot_product_attention(q, k, v)
        else:
            out = F.scaled_dot_product_attention(q, k, v)
        outs.append(out)
        grads.append(torch.autograd.grad((out * weight).sum(), (q, k, v)))
    torch.testing.assert_close(*outs)
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


MASK = torch.tril(torch.ones(4, 4, dtype=torch.bool))


@pytest.mark.parametrize(
    ("positional", "named"),
    [
        ((), {"attn_mask": MASK}),
        ((MASK,), {}),
        ((None, 0.0, True), {}),
        ((), {"is_causal": True}),
        ((), {"scale": 0.5}),
        ((), {"enable_gqa": True}),
    ],
    ids=str,
)
def test_attention_that_is_not_plain_is_left_alone(positional, named):
    q = torch.randn(1, 4, 4, 8)
    k = q[:, :2] if "enable_gqa" in named else q
    with ExplicitAttention():
        out = F.scaled_dot_product_attention(q, k, k, *positional, **named)
    assert torch.equal(out, F.scaled_dot_product_attention(q, k, k, *positional, **named))


def test_draws_fit_their_clips_and_reach_every_kind_of_sample(config):
    methods = trained_methods(config)
    seen = set()
    for seed in range(400):
        draw = draw_section(np.random.default_rng(seed), config.draw, methods, 96)
        section = draw.section
        frames = [f for level in section.context for f in level.frames if f is not None] + list(
            section.frames
        )
        assert max(frames) < draw.frames <= 96
        assert not set(section.frames) & {f for level in section.context for f in level.present}
        kind = "bare" if not section.context else "context"
        ahead = any(f > max(section.frames) for f in frames)
        assert draw.method == methods[draw.name]
        seen.add((draw.name, kind))
        seen.add(("ahead", ahead))
        seen.add(("spans", len(section.spans)))
    assert {(name, kind) for name in methods for kind in ("bare", "context")} <= seen
    assert {("ahead", True), ("spans", 2)} <= seen


def test_draws_are_like_the_sections_of_long_videos(config):
    """Most sections are whole, and a fair share sees a history that fills every level."""
    methods = trained_methods(config)
    draws = [draw_section(np.random.default_rng(seed), config.draw, methods, 96) for seed in range(1000)]
    whole = [set(map(len, draw.section.spans)) == {config.section_size} for draw in draws]
    full = [any(len(level.present) == 16 for level in draw.section.context) for draw in draws]
    assert np.mean(whole) > 0.9
    assert np.mean(full) > 0.25


def test_history_ranked_by_latents_is_refused(config):
    methods = trained_methods(config)
    methods["vanilla"] = replace(methods["vanilla"], importance=Importance(kind="similarity"))
    with pytest.raises(InputError, match="importance"):
        draw_section(np.random.default_rng(0), replace(config.draw, methods={"vanilla": 1.0}), methods, 20)


def test_batches_show_the_planned_frames_of_their_clips(config, codec_folder, tmp_path):
    codec = FrameAutoencoder.from_pretrained(codec_folder)
    build_cache(tmp_path, codec, config.cache)
    cache = LatentCache(tmp_path, config.cache)
    _, conditioner = build_modules(config, 4)
    clean = replace(config.objective.corruption, noise=0.0)
    objective = replace(config.objective, corruption=clean, drop_prompt=0.0, drop_word=0.0)
    rng = np.random.default_rng(3)
    draw = draw_section(rng, config.draw, trained_methods(config), 20)
    while not draw.section.context or draw.section.past[0] is None:
        draw = draw_section(rng, config.draw, trained_methods(config), 20)
    clip_rng = np.random.default_rng(5)
    batch = make_batch(clip_rng, draw, 2, cache, conditioner, objective, cache.channel_std())
    again = np.random.default_rng(5)
    clips = cache.draw(again, 2)
    offsets = again.integers(0, 20 - draw.frames + 1, 2).tolist()

    def held(frames):
        return cache.latents(clips, [[o + f for f in frames] for o in offsets])

    assert torch.equal(batch.target, held(draw.section.frames))
    for level, planned in zip(batch.context.levels, draw.section.context, strict=True):
        assert torch.equal(level.latents, held(planned.frames))
    assert torch.equal(batch.context.aligned[:, :4, 0], held([draw.section.past[0]])[:, :, 0])
    clean = replace(draw, method=replace(draw.method, history_timestep="zero"))
    again = make_batch(np.random.default_rng(5), clean, 2, cache, conditioner, objective, cache.channel_std())
    assert batch.context.timestep is None and again.context.timestep == 0.0
    words = [
        cache.scene(c).words(o + draw.section.frames[0], o + draw.section.frames[-1] + 1)
        for c, o in zip(clips, offsets, strict=True)
    ]
    assert batch.rows.tolist() == [conditioner.rows_of(w) for w in words]


def test_stopped_and_resumed_equals_uninterrupted(config, codec_folder, tmp_path):
    train(config, tmp_path / "whole", codec_folder)
    stopped = tmp_path / "parts"

    class Stop(Exception):
        pass

    import framepack.training.loop as loop

    real = loop.draw_section
    calls = {"n": 0}

    def dying(*args):
        calls["n"] += 1
        if calls["n"] > 3 * config.draws:
            raise Stop
        return real(*args)

    loop.draw_section = dying
    try:
        with pytest.raises(Stop):
            train(config, stopped, codec_folder)
    finally:
        loop.draw_section = real
    train(config, stopped, codec_folder)
    one, two = (load_file(tmp_path / name / "state.safetensors") for name in ("whole", "parts"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert (tmp_path / "whole" / "metrics.jsonl").read_text() == (stopped / "metrics.jsonl").read_text()


def test_a_step_in_the_state_has_its_model(config, codec_folder, tmp_path, monkeypatch):
    """Killed while the last state is written, a run saves its model again; a stale one would stay."""
    monkeypatch.setattr(Masters, "save", lambda self, path: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train(replace(config, steps=1), tmp_path, codec_folder)
    monkeypatch.undo()
    assert load_bundle(str(tmp_path / "model"))
    assert not (tmp_path / "state.safetensors").exists()
    one = train(replace(config, steps=1), tmp_path, codec_folder) / "transformer"
    two = train(replace(config, steps=1), tmp_path / "whole", codec_folder) / "transformer"
    for file in one.glob("*.safetensors"):
        assert file.read_bytes() == (two / file.name).read_bytes()


def test_counters_of_steps_stay_on_the_cpu(tmp_path):
    """As the optimiser has them: moved to a GPU, every step of a resumed run would wait for them."""

    def network(device):
        return torch.nn.ModuleDict({name: torch.nn.Linear(2, 2, device=device) for name in ("blocks", "out")})

    saved = Masters({"m": network("cpu")}, rate=0.1, weight_decay=0.0, ema=0.9)
    for parameter in saved.live.values():
        parameter.grad = torch.ones_like(parameter)
    saved.step(1.0, 1.0)
    saved.save(tmp_path / "state.safetensors")
    resumed = Masters({"m": network("meta")}, rate=0.1, weight_decay=0.0, ema=0.9)
    resumed.load(tmp_path / "state.safetensors")
    slots = resumed.optimisers[1].state.values()
    assert {slot["step"].device.type for slot in slots} == {"cpu"}
    assert {slot["exp_avg"].device.type for slot in slots} == {"meta"}


def test_sheets_have_an_interval_of_their_own(config, codec_folder, tmp_path):
    train(replace(config, steps=3, save_every=2, sheet_every=1, log_every=100), tmp_path, codec_folder)
    assert sorted(path.name for path in tmp_path.glob("sheet-*")) == [
        f"sheet-00000{step}.png" for step in (1, 2, 3)
    ]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 3], "a row of its own before every saved state"


def test_what_is_trained_can_be_loaded_and_used(config, codec_folder, tmp_path):
    bundle = load_bundle(str(train(config, tmp_path, codec_folder)))
    assert set(bundle.spec.methods) == set(config.draw.methods)
    method = bundle.spec.method("vanilla")
    assert method.max_gap == config.max_gap
    pairs = held_out_pairs(2, (32, 32))
    videos = make_videos(bundle, pairs, method, image=True, frames=9)
    assert [v.shape for v in videos] == [(9, 32, 32, 3)] * 2


def test_the_loss_falls_on_one_clip(config, codec_folder, tmp_path):
    one = replace(config.cache, clips=1, frames=8)
    draw = replace(config.draw, methods={"vanilla": 1.0})
    train(replace(config, cache=one, draw=draw, steps=60, rate=0.01, save_every=100), tmp_path, codec_folder)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 60
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:5])


def test_clips_of_several_sizes(config, codec_folder, tmp_path):
    sizes = ((32, 32), (16, 48), (48, 16))
    several = replace(config, cache=replace(config.cache, sizes=sizes), steps=3)
    bundle = load_bundle(str(train(several, tmp_path, codec_folder)))
    assert bundle.spec.buckets == sizes
    cache = LatentCache(tmp_path / "cache", several.cache)
    shapes = set()
    for seed in range(20):
        clips = cache.draw(np.random.default_rng(seed), 3)
        shapes.add(tuple(cache.latents(clips, [[0, 1]] * 3).shape))
    assert shapes == {(3, 4, 2, h // 16, w // 16) for h, w in sizes}
    for index, (height, width) in enumerate(sizes):
        clip = several.cache.clips_of(index)[0]
        assert cache.scene(clip).aspect == height / width
        codec = FrameAutoencoder.from_pretrained(codec_folder)
        shown = cache.scene(clip).render([3], height, width)
        assert torch.equal(
            cache.latents([clip], [[3]])[:, :, 0], encode_shard(codec, shown[None])[:, 0].float()
        )
    (row,) = held_out_check(bundle, clips=3, frames=9, only=["text-to-video"])
    assert [m.video.shape[1:3] for m in row.measured] == list(sizes)
    row.save_sheets(tmp_path)
    assert len(list(tmp_path.glob("f1-text-to-video-*x*.png"))) == 3


def rows_of(folder):
    return [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_resume_in_a_relative_folder(config, codec_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    both = replace(config, processes=2, draws=1, save_every=1)
    train(replace(both, steps=1), Path("both"), codec_folder)
    (first,) = rows_of("both")
    with Path("both/metrics.jsonl").open("a") as log:
        log.write('{"step": 2, "loss": 9.0, "norm": 9.0}\n{"st')
    train(replace(both, steps=2), Path("both"), codec_folder)
    rows = rows_of("both")
    assert [row["step"] for row in rows] == [1, 2], "rows of steps that are made again are cut off"
    assert rows[0] == first and rows[1]["loss"] != 9
    train(replace(both, steps=1, processes=1), Path("one"), codec_folder)
    assert first["loss"] != rows_of("one")[0]["loss"], "the mean of both, not that of the first"


@pytest.mark.slow
def test_two_processes_give_the_same_bytes_whether_stopped_or_not(config, codec_folder, tmp_path):
    both = replace(config, processes=2, draws=1, steps=2, save_every=1)
    assert rate_scale(0, both) == rate_scale(0, replace(both, steps=1))
    train(both, tmp_path / "whole", codec_folder)
    for steps in (1, 2):
        train(replace(both, steps=steps), tmp_path / "parts", codec_folder)
    one, two = (load_file(tmp_path / name / "state.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "parts")


def test_training_from_a_model(config, codec_folder, tmp_path):
    start = train(replace(config, steps=1), tmp_path / "start", codec_folder)
    moved = replace(config, steps=1, init=str(start), rate=1e-12, warmup=1, weight_decay=0.0)
    after = load_bundle(str(train(moved, tmp_path / "after", codec_folder))).transformer.state_dict()
    before = load_bundle(str(start)).transformer.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)

    elsewhere = tmp_path / "elsewhere"
    start.rename(elsewhere)
    train(replace(moved, init=str(elsewhere)), tmp_path / "after", codec_folder)
    wide = replace(moved, init=str(elsewhere), network=replace(config.network, ffn=64))
    with pytest.raises(InputError, match="ffn 32"):
        train(wide, tmp_path / "wide", codec_folder)
    other = train(replace(config, steps=2), tmp_path / "other", codec_folder)
    with pytest.raises(InputError, match="init"):
        train(replace(moved, init=str(other)), tmp_path / "after", codec_folder)


def test_another_configuration_is_refused(config, codec_folder, tmp_path):
    train(replace(config, steps=1), tmp_path, codec_folder)
    with pytest.raises(InputError, match="rate"):
        train(replace(config, rate=1.0), tmp_path, codec_folder)


def test_rate_warms_up_holds_and_decays(config):
    plan = replace(config, steps=100, warmup=10, decay=0.5)
    scales = [rate_scale(step, plan) for step in range(100)]
    assert scales[0] == 0.1 and scales[20] == 1.0 and scales[49] == 1.0
    assert scales[75] == pytest.approx(0.5) and scales[99] == pytest.approx(0.02)


def test_override_by_path(config):
    assert override(config, "cache.clips=7").cache.clips == 7
    assert override(config, "rate=1").rate == 1.0
    assert override(config, "draw.methods.f1=0.5").draw.methods["f1"] == 0.5
    assert override(config, "cache.sizes=[[32, 48]]").cache.sizes == ((32, 48),)
    assert override(config, "init=null").init is None
    assert override(config, "init=folder").init == "folder"
    balanced = override(config, 'objective.shift={"low": [24, 0.5], "high": [384, 1]}').objective.shift
    assert balanced == Balance(low=(24, 0.5), high=(384, 1))
    assert override(config, "objective.shift={}", "objective.shift.cap=1").objective.shift == Balance(cap=1.0)
    both = override(config, "cache.clips=7", "cache.frames=30", "steps=9")
    assert (both.cache.clips, both.cache.frames, both.steps) == (7, 30, 9)
    assert override(CodecTraining(), "size=32", "crop=16").crop == 16, "together, as neither would do alone"
    assert override(CodecTraining(), "minutes=1").minutes == 1.0
    assert override(CodecTraining(), "minutes=null", "steps=3").steps == 3


@pytest.mark.parametrize(
    "bad",
    [
        *("rate", "steps=many", "steps=null", "init=3", "steps.x=1", "cache=1", "cache.sizes=[[32]]"),
        *("cache.sizes=[]", "cache.clips=0", "network.heads=0", "network.kernels=[[1,1]]"),
        *("warmup=0", "decay=0", "decay=2", "save_every=0", "log_every=0", "micro=0", "processes=0"),
        *("steps=0", "rate=-1", "rate=NaN", "clip=0", "ema=2", "draw.image=2", "draw.methods.f1=-1"),
        *("draw.methods={}", 'draw.methods={"vanilla": 0}', "objective.shift=0", "network={}"),
        *("objective.shift=[1]", 'objective.shift={"low": [3, 1], "high": [2, 1]}'),
    ],
)
def test_values_that_no_training_could_have(config, bad):
    with pytest.raises(InputError):
        override(config, bad)


def test_names_that_are_none(config):
    for bad in ("nothing=1", "cache.nothing=1", 'draw.methods={"backwards": 1}'):
        with pytest.raises(UnknownNameError):
            override(config, bad)
    with pytest.raises(InputError, match="CPU"):
        override(config, "processes=2", "device=cuda")
    assert device_of(override(config, "processes=2", "device=auto")) == torch.device("cpu")


def test_what_the_network_or_codec_cannot_do_is_told_at_once(config, codec_folder, tmp_path):
    with pytest.raises(InputError, match="multiples of 16"):
        train(override(config, "cache.sizes=[[40, 40]]"), tmp_path, codec_folder)
    with pytest.raises(InputError, match="kernels"):
        train(override(config, "network.kernels=[[1, 1, 1]]"), tmp_path, codec_folder)
    train(replace(config, steps=1), tmp_path, codec_folder)
    (tmp_path / "train.json").unlink()
    with pytest.raises(InputError, match="cache of another"):
        train(override(config, "cache.clips=7"), tmp_path, codec_folder)


def test_a_model_without_the_usual_default_method(config, codec_folder):
    codec = FrameAutoencoder.from_pretrained(codec_folder)
    only = override(config, 'draw.methods={"inverted": 0, "f1": 1, "vanilla": 1}')
    spec = spec_of(only, codec)
    assert set(spec.methods) == {"f1", "vanilla"} and spec.default_method == "f1"


def test_rendering_ahead_changes_no_byte_of_the_cache(config, codec_folder, tmp_path):
    codec = FrameAutoencoder.from_pretrained(codec_folder)
    more = replace(config.cache, clips=70, frames=3)
    for workers in (0, 1):
        build_cache(tmp_path / str(workers), codec, more, workers=workers)
    for shard in range(3):
        one, two = (shard_path(tmp_path / str(workers), shard).read_bytes() for workers in (0, 1))
        assert one == two


def test_the_card_of_a_cache_is_written_once(config, tmp_path, monkeypatch):
    """Another process may be reading it."""
    claim_cache(tmp_path, config.cache)
    monkeypatch.setattr(Path, "write_text", lambda *args: pytest.fail("written again"))
    claim_cache(tmp_path, config.cache)


def test_the_digest_of_a_codec_covers_its_scale(codec_folder):
    one, two = (FrameAutoencoder.from_pretrained(codec_folder) for _ in range(2))
    assert module_digest(one) == module_digest(two)
    two.register_to_config(scale=2.0)
    assert module_digest(one) != module_digest(two)


def test_cores_are_those_that_may_be_used(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {3}, raising=False)
    assert cores() == 1


def test_saving_over_a_model_is_all_or_nothing(tmp_path, monkeypatch):
    save_tiny(tmp_path / "model")
    before = {p: p.read_bytes() for p in (tmp_path / "model").rglob("*.*")}
    monkeypatch.setattr(FrameAutoencoder, "save_pretrained", lambda *args: (_ for _ in ()).throw(OSError))
    with pytest.raises(OSError):
        tiny_bundle().save(tmp_path / "model")
    assert before == {p: p.read_bytes() for p in (tmp_path / "model").rglob("*.*")}
    monkeypatch.undo()
    tiny_bundle().save(tmp_path / "model")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


# --- the command ---


def run(*arguments):
    return CliRunner().invoke(app, ["train", *map(str, arguments)], catch_exceptions=True)


TINY = [
    *("network.heads=1", "network.head_dim=8", "network.layers=1", "network.ffn=16"),
    *("cache.clips=2", "cache.frames=8", "cache.sizes=[[32,32]]", "steps=1", "micro=1", "draws=1"),
    *("processes=1", "device=cpu"),
]


def test_the_command_trains_resumes_and_refuses(codec_folder, tmp_path):
    flags = [part for setting in TINY for part in ("--set", setting)]
    arguments = ["--codec", codec_folder, "--out", tmp_path / "run", *flags]
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(tmp_path / "run" / "model")
    assert load_bundle(done.stdout.strip()).spec.default_method == "f1"
    assert run(*arguments, "--set", "steps=2").exit_code == 0
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2]
    assert isinstance(run(*arguments, "--set", "rate=-1").exception, InputError)
    assert isinstance(run(*arguments[:2], "--out", "/proc/nowhere", *flags).exception, OutputError)
    shown = json.loads(run("--recipe", "bundled-gpu", "--codec", codec_folder, "--dry-run").stdout)
    assert shown["cache"]["sizes"] == [[128, 128], [96, 160], [160, 96]]
    shown = json.loads(run("--recipe", "codec", "--set", "minutes=2", "--set", "steps=9", "--dry-run").stdout)
    assert (shown["minutes"], shown["steps"]) == (2.0, 9)


def test_the_command_checks_a_model(tmp_path):
    model, out = save_tiny(tmp_path / "tiny"), tmp_path / "check"
    done = run("--check", model, "--out", out, "--clips", 2, "--method", "vanilla", "--guidance", 1)
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["ability"] for row in rows] == list(ABILITIES)
    assert {row["method"] for row in rows} == {"vanilla"}
    assert json.loads((out / "check.json").read_text())["rows"] == rows
    for row in rows[:2]:
        assert 0 <= row["share"] <= 1 and row["by_direction"] == {"left": row["share"]}
    for row in rows[2:5]:
        assert row["psnr"] < row["psnr_of_copies"], "of random weights"
    sheets = {path.name for path in out.glob("*.png")}
    assert {f"vanilla-{name}-40x24.png" for name in ABILITIES} <= sheets
    for bad in (["--clips", 0], ["--method", "sideways"], ["--ability", "flying"], ["--guidance", -1]):
        failed = run("--check", model, "--out", tmp_path / "none", *bad)
        assert failed.exit_code != 0 and not (tmp_path / "none").exists(), bad


# --- what the check measures ---


class World:
    """Stands in for a model: the videos are the world's, of scenes found by their picture."""

    def __init__(self, size, frames):
        self.size, self.asked = size, []
        self.scenes = [scene for scene, _ in zip(held_out_scenes(frames, size), range(1500), strict=False)]

    def __call__(self, pairs, image, frames):
        videos = []
        for pair in pairs:
            self.asked.append(pair)
            scene = next(s for s in self.scenes if np.array_equal(s.render([0], *self.size)[0], pair.picture))
            motions = (Motion(start=0, direction=pair.direction),)
            if pair.then:
                motions += (Motion(start=frames // 2, direction=pair.then[-1]),)
            elif pair.given:
                motions = scene.motions[:1]
            scene = replace(scene, motions=motions, skies=(scene.skies[0],) * 2)
            videos.append(scene.render(range(frames), *self.size))
        return videos


def test_the_check_gives_full_marks_to_the_world_itself():
    size = (64, 64)
    world = World(size, 64)
    right = follows_prompt(world, 5, size, 25, image=True)
    assert [m.scores["share"] for m in right] == [1.0] * 5
    assert [m.direction for m in right] == ["left", "right", "up", "down", "still"]
    turned = prompt_change(world, 5, size, 25)
    assert [m.scores for m in turned] == [{"share_before": 1.0, "share_after": 1.0}] * 5
    ending = keyframes(World(size, 25), 2, size, 25, given=[24])
    assert all(m.scores["psnr"] == 60 > m.scores["psnr_of_copies"] for m in ending)


def test_prompts_of_the_check_are_sentences_in_two_languages():
    words = ("star", "yellow", "night", "sea", "left")
    said = sentences([words] * 4)
    assert [parse(sentence).words for sentence in said] == [words] * 4
    assert [sentence.isascii() for sentence in said] == [True, False] * 2
