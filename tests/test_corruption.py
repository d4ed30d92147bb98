"""History as training shows it: noise by sample and by frame, and sections that the model made itself."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from framepack.conditioning.embeds import Conditioning
from framepack.errors import InputError, UnknownNameError
from framepack.packing.context import PackedContext
from framepack.planning.method import named_method
from framepack.planning.planners import plan
from framepack.planning.timeline import Timeline
from framepack.training.config import ObjectiveConfig
from framepack.training.corruption import (
    CorruptionConfig,
    RolloutConfig,
    added,
    corrupt,
    own_history,
    sections_to_make,
    strengths,
)
from framepack.training.draw import Draw
from framepack.training.objective import loss_of, make_batch
from framepack.training.rollout import rollout
from tiny import BASE, CHANNELS, SECTION, tiny_bundle

FRAMES, GRID = 13, (4, 4)
SPREAD = torch.tensor([0.5, 1.0, 2.0, 4.0])


class Clips:
    """Random latents in the place of a cache."""

    device = torch.device("cpu")
    config = SimpleNamespace(frames=FRAMES)

    def __init__(self) -> None:
        self.held = torch.randn(3, CHANNELS, FRAMES, *GRID, generator=torch.Generator().manual_seed(0))

    def draw(self, rng, count):
        return rng.integers(0, 3, count).tolist()

    def offsets(self, rng, clips, frames):
        return rng.integers(0, FRAMES - frames + 1, len(clips)).tolist()

    def scene(self, clip):
        return SimpleNamespace(words=lambda first, stop: ("red", "ball") if first % 2 else ("blue", "box"))

    def latents(self, clips, frames):
        return torch.stack([self.held[c][:, f] for c, f in zip(clips, frames, strict=True)])


def drawn(index: int = 3, name: str = "vanilla") -> Draw:
    """Section ``index`` of a video of four sections and a start picture."""
    method = named_method(name, base=BASE, section_size=SECTION, max_gap=8)
    sections = plan(Timeline(frames=FRAMES, fps=1.0, stride=1, known=(0,)), method).sections
    return Draw(name, method, sections[index], FRAMES, sections[:index])


def test_the_default_is_one_strength_for_half_of_the_samples():
    history = torch.randn(64, CHANNELS, 3, *GRID)
    rng, again = np.random.default_rng(1), np.random.default_rng(1)
    found = corrupt(rng, history, CorruptionConfig(), SPREAD)
    strength = again.uniform(0, 0.15, 64) * (again.random(64) < 0.5)
    noise = torch.randn(history.shape, generator=torch.Generator().manual_seed(int(again.integers(2**31))))
    scale = torch.as_tensor(strength, dtype=torch.float32)[:, None] * SPREAD
    assert torch.equal(found, history + noise * scale[:, :, None, None, None])
    assert rng.random() == again.random(), "no other draws"
    assert 20 < sum((found == history).flatten(1).all(1)) < 44


def test_each_frame_has_a_strength_of_its_own():
    config = CorruptionConfig(per="frame", noise=0.4, share=0.75)
    found = strengths(np.random.default_rng(0), config, 200, 20)
    assert found.shape == (200, 20) and found.max() <= 0.4
    assert abs((found == 0).float().mean() - 0.25) < 0.03
    assert found[found > 0].mean() == pytest.approx(0.2, abs=0.01)
    assert all(len(set(row.tolist())) > 10 for row in found), "not one for the whole sample"


def test_strengths_of_a_list():
    config = CorruptionConfig(levels=(0.1, 0.3), per="frame", share=1.0)
    found = strengths(np.random.default_rng(0), config, 50, 20)
    assert set(found.unique().tolist()) == {np.float32(0.1), np.float32(0.3)}
    assert (found > 0.2).float().mean() == pytest.approx(0.5, abs=0.05)


def test_noise_is_in_proportion_to_the_spread_of_its_channel_and_to_its_frame():
    history = torch.zeros(1, CHANNELS, 2, 64, 64)
    noise = torch.randn(history.shape, generator=torch.Generator().manual_seed(0))
    found = added(history, torch.tensor([[0.1, 0.5]]), SPREAD, noise).std(dim=(0, 3, 4))
    torch.testing.assert_close(found, SPREAD[:, None] * torch.tensor([0.1, 0.5]), rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"noise": -0.1}, "noise"),
        ({"share": 1.5}, "share"),
        ({"per": "clip"}, "sample, frame"),
        ({"kind": "blur"}, "add, mix"),
        ({"levels": (0.1, float("nan"))}, "levels"),
        ({"kind": "mix", "levels": (0.5, 1.5)}, "0 to 1"),
        ({"kind": "mix", "noise": 2.0}, "0 to 1"),
        ({"told": True}, "kind=mix and per=sample"),
        ({"told": True, "kind": "mix", "per": "frame"}, "kind=mix and per=sample"),
    ],
)
def test_settings_that_are_refused(values, told):
    with pytest.raises((InputError, UnknownNameError), match=told):
        CorruptionConfig(**values)


def test_a_batch_shows_corrupted_history_and_clean_targets():
    bundle, cache, draw = tiny_bundle(), Clips(), drawn()
    noisy = ObjectiveConfig(corruption=CorruptionConfig(per="frame", levels=(0.5,), share=1.0))
    clean = replace(noisy, corruption=CorruptionConfig(noise=0.0))
    shown, real = (
        make_batch(np.random.default_rng(0), draw, 2, cache, bundle.conditioner, config, SPREAD)
        for config in (noisy, clean)
    )
    assert torch.equal(shown.target, real.target)
    for a, b in zip(shown.context.levels, real.context.levels, strict=True):
        assert ((a.latents - b.latents).std(dim=(0, 2, 3, 4)) > 0.2 * SPREAD).all()
    # The same frame has the same noise wherever it stands.
    nearest = shown.context.levels[-1].latents[:, :, -1]
    assert torch.equal(shown.context.aligned[:, :CHANNELS, 0], nearest)


def batches(draw: Draw, *configs: ObjectiveConfig, seed: int = 0, size: int = 2) -> list[PackedContext]:
    """What the same samples are shown under each configuration."""
    said = tiny_bundle().conditioner
    return [
        make_batch(np.random.default_rng(seed), draw, size, Clips(), said, config, SPREAD).context
        for config in configs
    ]


def mixing(**changes) -> ObjectiveConfig:
    return ObjectiveConfig(corruption=CorruptionConfig(kind="mix", **changes))


CLEAN = ObjectiveConfig(corruption=CorruptionConfig(kind="mix", share=0.0))


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("name", ["f1", "inverted"])
def test_mixed_noise_is_on_history_as_in_generation(name, told):
    """On the path of the flow, beside the target too, and not on what is pinned."""
    draw = drawn(index=2, name=name)
    clean, shown = batches(draw, CLEAN, mixing(levels=(0.5,), share=1.0, told=told))
    roles = [level.role for level in draw.section.context]
    assert {"start", "history"} == set(roles)
    for role, a, b in zip(roles, clean.levels, shown.levels, strict=True):
        if role == "start":
            assert torch.equal(a.latents, b.latents) and b.timestep is None
            continue
        noise = (b.latents - 0.5 * a.latents) / 0.5
        assert noise.std() == pytest.approx(1, abs=0.25) and abs(noise.mean()) < 0.25
        assert b.timestep.tolist() == [500, 500] if told else b.timestep is None
    assert shown.timestep == (0.0 if told else None)
    side = slice(0, CHANNELS) if name == "f1" else slice(CHANNELS, 2 * CHANNELS)
    history = [x for role, x in zip(roles, shown.levels, strict=True) if role == "history"]
    near = min(history, key=lambda level: level.kernel)
    nearest = near.latents[:, :, -1 if name == "f1" else 0]
    assert torch.equal(shown.aligned[:, side, 0], nearest)


def test_each_sample_is_told_its_own_sigma():
    draw = drawn()
    clean, shown = batches(draw, CLEAN, mixing(noise=0.6, share=0.7, told=True), size=40)
    told = shown.levels[0].timestep / 1000
    assert 0.5 < told.max() <= 0.6 and 4 < int((told == 0).sum()) < 24
    for a, b in zip(clean.levels, shown.levels, strict=True):
        assert torch.equal(b.timestep, shown.levels[0].timestep)
        noise = b.latents - (1 - told.view(-1, 1, 1, 1, 1)) * a.latents
        torch.testing.assert_close(noise.flatten(1).std(1), told, rtol=0.3, atol=1e-6)


def test_each_frame_may_be_mixed_by_a_sigma_of_its_own():
    (shown,) = batches(drawn(), mixing(levels=(0.0, 1.0), share=1.0, per="frame"), size=1)
    (clean,) = batches(drawn(), CLEAN, size=1)
    left = [
        torch.equal(a.latents[:, :, n], b.latents[:, :, n])
        for a, b in zip(shown.levels, clean.levels, strict=True)
        for n in range(a.latents.shape[2])
    ]
    assert 0 < sum(left) < len(left)


def test_a_method_with_noise_is_taught_with_it():
    draw = drawn()
    noisy = replace(draw, method=replace(draw.method, history_noise=0.5))
    quiet = ObjectiveConfig(corruption=CorruptionConfig(noise=0.0))
    (clean,), (shown,) = batches(draw, quiet), batches(noisy, quiet)
    for a, b in zip(clean.levels, shown.levels, strict=True):
        assert ((b.latents - 0.5 * a.latents) / 0.5).std() == pytest.approx(1, abs=0.25)
        assert b.timestep.tolist() == [500, 500]


def test_the_model_hears_what_it_is_told():
    bundle, draw = tiny_bundle(), drawn()
    (shown,) = batches(draw, mixing(levels=(0.5,), share=1.0, told=True))
    history = [5] * len(shown.levels)
    times, tokens = bundle.transformer._timesteps(torch.tensor([900.0, 10.0]), history, 7, shown)
    assert tokens == [*history, 7]
    assert (times[:, :-1] == 500).all() and times[:, -1].tolist() == [900, 10]
    otherwise = replace(
        shown, levels=tuple(replace(level, timestep=level.timestep * 0) for level in shown.levels)
    )
    with torch.no_grad():
        said = bundle.conditioner.encode(["a red ball"] * 2)
        noise = torch.randn(2, CHANNELS, SECTION, *GRID)
        places = torch.tensor(draw.section.positions)
        a, b = (
            bundle.transformer(noise, torch.full((2,), 500.0), said, places, c) for c in (shown, otherwise)
        )
    assert (a - b).abs().max() > 1e-4


def test_history_is_dropped_whole_and_by_share():
    draw, counts = drawn(name="f1"), []
    for share in (0.0, 0.3, 1.0):
        config = ObjectiveConfig(drop_history=share)
        found = [context for seed in range(40) for context in batches(draw, config, seed=seed)]
        dropped = [context for context in found if not context.levels]
        assert all(not context.aligned.any() for context in dropped)
        counts.append(len(dropped))
    assert counts[0] == 0 and 4 < counts[1] < 22 and counts[2] == 40


# --- history that the model made ---


def maker(draw: Draw, depth: int):
    bundle = tiny_bundle()
    return own_history(
        np.random.default_rng(7),
        bundle.transformer,
        RolloutConfig(share=1.0, depth=depth, steps=2),
        shift=2.0,
        base_kernel=BASE,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )


def prompt(section) -> Conditioning:
    with torch.no_grad():
        return tiny_bundle().conditioner.encode(["a red ball"] * 2)


@pytest.mark.parametrize("name", ["vanilla", "f1"])
def test_made_history_is_what_generation_makes(name):
    draw = drawn(name=name)
    real = torch.randn(2, CHANNELS, FRAMES, *GRID, generator=torch.Generator().manual_seed(3))
    asked = []

    def fetch(frames):
        asked.extend(frames)
        return real[:, :, list(frames)]

    made = maker(draw, depth=3)(draw, fetch, prompt)
    whole = rollout(
        tiny_bundle().transformer,
        plan(Timeline(frames=FRAMES, fps=1.0, stride=1, known=(0,)), draw.method),
        {0: real[:, :, 0]},
        prompt,
        prompt(None),
        shape=(2, CHANNELS, *GRID),
        seed=int(np.random.default_rng(7).integers(2**31)),
        steps=2,
        guidance=1.0,
        shift=2.0,
        base_kernel=BASE,
    )
    assert set(made) == set(range(1, 10)), "the three sections before"
    for frame, latent in made.items():
        assert torch.equal(latent, whole[:, :, frame])


def test_only_the_last_sections_before_are_made():
    draw = drawn()
    assert sections_to_make(draw, 1) == draw.before[-1:]
    assert sections_to_make(drawn(index=0), 2) == ()
    inverted = drawn(name="inverted")
    (made,) = sections_to_make(inverted, 1)
    assert made.spans[0].start == inverted.section.spans[0].stop, "the neighbour in time"


def test_made_history_stands_in_a_batch_without_noise_and_can_be_learnt_from():
    bundle, cache, draw = tiny_bundle(), Clips(), drawn()
    config = ObjectiveConfig(corruption=CorruptionConfig(levels=(0.5,), share=1.0))
    kept = {}

    def making(*given):
        kept.update(maker(draw, depth=1)(*given))
        return kept

    batch = make_batch(
        np.random.default_rng(0), draw, 2, cache, bundle.conditioner, config, SPREAD, make_history=making
    )
    assert set(kept) == {7, 8, 9}
    for level, planned in zip(batch.context.levels, draw.section.context, strict=True):
        for column, frame in enumerate(planned.frames):
            if frame in kept:
                assert torch.equal(level.latents[:, :, column], kept[frame])
    bundle.transformer.requires_grad_(True)
    try:
        loss_of(np.random.default_rng(1), batch, bundle.transformer, bundle.conditioner, config).backward()
        kernels = bundle.transformer.packing_kernels
        assert all(p.grad.abs().sum() > 0 for p in kernels.projections["k1h1w1"].parameters())
    finally:
        bundle.transformer.requires_grad_(False)
        bundle.transformer.zero_grad()


def test_without_made_history_the_random_numbers_are_the_same():
    bundle, draw = tiny_bundle(), drawn(index=0)
    plain, made = (
        make_batch(
            np.random.default_rng(0), draw, 2, Clips(), bundle.conditioner, ObjectiveConfig(), SPREAD, **more
        )
        for more in ({}, {"make_history": maker(draw, 1)})
    )
    assert torch.equal(plain.rows, made.rows) and torch.equal(plain.target, made.target)
    for a, b in zip(plain.context.levels, made.context.levels, strict=True):
        assert torch.equal(a.latents, b.latents)
