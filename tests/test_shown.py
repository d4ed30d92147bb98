"""What a section is shown under a method: noise on its history that is told, and guidance on it."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from framepack.conditioning.embeds import Conditioning
from framepack.errors import InputError
from framepack.generation.events import SectionFinished
from framepack.generation.maker import noise_seed
from framepack.generation.prepare import prepare
from framepack.generation.request import GenerateRequest
from framepack.generation.settle import settle
from framepack.generation.store import Edit
from framepack.models.codebook import Codebook
from framepack.packing.context import ContextTensors, PackedContext, pack
from framepack.packing.discretisation import discretized
from framepack.planning.method import Importance, named_method
from framepack.planning.planners import plan
from framepack.planning.timeline import Timeline
from framepack.sampling.flow import make_sigmas
from framepack.sampling.section import sample_section
from framepack.sampling.shown import history_generator, shown, without_history
from framepack.sampling.solvers import euler
from framepack.training.rollout import rollout
from tiny import BASE, CHANNELS, SECTION, tiny_bundle

pytestmark = pytest.mark.usefixtures("one_thread")
FRAMES, GRID, SIGMA = 13, (4, 4), 0.25
LATENTS = torch.randn(1, CHANNELS, FRAMES, *GRID, generator=torch.Generator().manual_seed(0))
BOOK = torch.randn(8, CHANNELS, generator=torch.Generator().manual_seed(1))


def method_of(name: str, **changes):
    return replace(named_method(name, base=BASE, section_size=SECTION, max_gap=8), **changes)


def timeline(frames: int = FRAMES) -> Timeline:
    return Timeline(frames=frames, fps=8.0, stride=1, known=(0,))


def fetch(frames) -> torch.Tensor:
    return LATENTS[:, :, list(frames)]


def section_of(method, index: int = 2):
    return plan(timeline(), method).sections[index]


def shown_of(method, index: int = 2, seed: int = 7, **more) -> PackedContext:
    section = section_of(method, index)
    generator = history_generator(seed)
    template = LATENTS[:, :, : len(section.frames)]
    return shown(section, method, fetch, template, aligned=True, generator=generator, centroids=BOOK, **more)


def same(one: PackedContext, two: PackedContext) -> bool:
    levels = zip(one.levels, two.levels, strict=True)
    return torch.equal(one.aligned, two.aligned) and all(torch.equal(a.latents, b.latents) for a, b in levels)


# --- noise on history ---


@pytest.mark.parametrize("name", ["vanilla", "f1", "inverted"])
@pytest.mark.parametrize("coded", [False, True])
def test_without_noise_it_is_what_is_packed(name, coded):
    method = method_of(name, discretized=coded)
    section = section_of(method)
    packed = pack(section, fetch, LATENTS[:, :, :SECTION], aligned=True, timestep=None)
    found = shown_of(method)
    assert same(found, discretized(packed, section, BOOK) if coded else packed)
    assert found.timestep is None and all(level.timestep is None for level in found.levels)


@pytest.mark.parametrize("name", ["vanilla", "f1", "inverted"])
def test_noise_is_on_history_and_told_and_pinned_frames_stay(name):
    method = method_of(name)
    clean, found = shown_of(method), shown_of(replace(method, history_noise=SIGMA))
    roles = [level.role for level in section_of(method).context]
    assert "history" in roles and ("start" in roles) == (name != "vanilla")
    assert found.timestep == 0
    spread = []
    for role, a, b in zip(roles, clean.levels, found.levels, strict=True):
        if role == "start":
            assert torch.equal(a.latents, b.latents) and b.timestep is None
        else:
            noise = (b.latents - (1 - SIGMA) * a.latents) / SIGMA
            spread.append(noise.flatten())
            assert b.timestep.tolist() == [SIGMA * 1000]
    assert torch.cat(spread).std() == pytest.approx(1, abs=0.1)


def test_the_same_frame_has_the_same_noise_beside_the_target():
    method = method_of("vanilla", history_noise=SIGMA)
    found = shown_of(method)
    nearest = found.levels[-1].latents[:, :, -1]
    for column in range(SECTION):
        assert torch.equal(found.aligned[:, :CHANNELS, column], nearest)
    assert not found.aligned[:, CHANNELS : 2 * CHANNELS].any(), "nothing lies ahead"
    assert torch.equal(found.aligned[:, 2 * CHANNELS :], shown_of(method_of("vanilla")).aligned[:, -2:])


def test_what_is_absent_stays_zero_under_noise():
    method = method_of("f1", absent="zeros", history_noise=SIGMA)
    found, seen = shown_of(method, index=0), 0
    for level, planned in zip(found.levels, section_of(method, 0).context, strict=True):
        for column, frame in enumerate(planned.frames):
            assert bool(level.latents[:, :, column].any()) == (frame is not None)
            seen += frame is None
    assert seen > 0


@pytest.mark.parametrize("name", ["appended", "compressed"])
def test_a_tail_gets_its_noise_after_averaging(name):
    method = replace(tiny_bundle().spec.methods[name], history_noise=SIGMA)
    clean = shown_of(replace(method, history_noise=0.0), index=3)
    given = shown_of(method, index=3, tail=lambda level: clean.levels[0].latents)
    assert section_of(method, 3).context[0].role == "tail"
    assert same(given, shown_of(method, index=3)), "wherever it was averaged"
    assert (given.levels[0].latents - (1 - SIGMA) * clean.levels[0].latents).abs().max() > 0.1 * SIGMA


def test_noise_follows_from_the_seed_and_is_not_the_sections_own():
    method = method_of("vanilla", history_noise=1.0)
    assert same(shown_of(method), shown_of(method))
    assert not same(shown_of(method), shown_of(method, seed=8))
    found = shown_of(method).levels[0].latents
    own = torch.randn(found.shape, generator=torch.Generator().manual_seed(7))
    assert not torch.equal(found, own)


# --- in generation and in whole videos in memory ---


def seen_by_model(monkeypatch, make) -> list[PackedContext]:
    seen = []
    cls = type(tiny_bundle().transformer)
    real = cls.forward

    def forward(self, hidden_states, timestep, conditioning, positions=None, context=None):
        seen.append(context)
        return real(self, hidden_states, timestep, conditioning, positions, context)

    monkeypatch.setattr(cls, "forward", forward)
    make()
    return seen


def prompts(section) -> Conditioning:
    with torch.no_grad():
        return tiny_bundle().conditioner.encode(["a red ball"])


def rolled(method, seed: int = 0, frames: int = FRAMES, batch: int = 1, guidance: float = 1.0):
    return rollout(
        tiny_bundle().transformer,
        plan(timeline(frames), method),
        {0: LATENTS[:, :, 0].expand(batch, -1, -1, -1)},
        prompts,
        prompts(None),
        shape=(batch, CHANNELS, *GRID),
        seed=seed,
        steps=2,
        guidance=guidance,
        shift=2.0,
        base_kernel=BASE,
        centroids=BOOK,
    )


@pytest.mark.parametrize("coded", [False, True])
def test_generation_and_rollouts_show_it_so(coded, tmp_path, monkeypatch):
    """A section of each, and what it must have been shown by its seed and by what lies before it."""
    method = method_of("vanilla", history_noise=0.5, discretized=coded)
    bundle = tiny_bundle()
    spec = replace(bundle.spec, methods={"noisy": method}, default_method="noisy")
    bundle = replace(bundle, spec=spec, codebook=Codebook.of(BOOK), digest="noisy")
    out = {"out": tmp_path / "v.mp4", "workdir": tmp_path / "run"}
    job = prepare(GenerateRequest(prompt="a red ball", frames=9, guidance=1.0, **out), bundle)
    finished = []
    generated = seen_by_model(monkeypatch, lambda: finished.extend(job.events()))
    store = [load_file(e.latents)["latents"] for e in finished if isinstance(e, SectionFinished)]
    whole = []
    rolled_out = seen_by_model(monkeypatch, lambda: whole.append(rolled(method, seed=5)))
    sections = {
        "generation": (job.plan.sections[1], torch.cat(store, dim=1)[None], generated),
        "rollout": (section_of(method), whole[0], rolled_out),
    }
    seeds = {"generation": noise_seed(job.config, job.plan.sections[1], Edit()), "rollout": 5 * 100_003 + 2}
    for name, (section, video, seen) in sections.items():
        wanted = shown(
            section,
            method,
            lambda frames, video=video: video[:, :, list(frames)],
            video[:, :, : len(section.frames)],
            aligned=True,
            generator=history_generator(seeds[name]),
            centroids=BOOK,
        )
        found = [
            context
            for context in seen
            if [x.latents.shape for x in context.levels] == [x.latents.shape for x in wanted.levels]
        ]
        assert any(same(context, wanted) for context in found), name


# --- guidance on history ---


class Model:
    """Answers the mean of the prompt plus ten times that of the context."""

    class config:
        prediction = "sample"

    def __init__(self) -> None:
        self.names: list[str] = []

    def cache_context(self, name):
        self.names.append(name)
        return nullcontext()

    def __call__(self, hidden_states, timestep, conditioning, positions, context):
        said = conditioning.prompt.mean((1, 2))
        past = sum(level.latents.mean((1, 2, 3, 4)) for level in context.levels)
        beside = 0 if context.aligned is None else context.aligned.mean((1, 2, 3, 4))
        answer = said**2 + 10 * past + 3 * beside * said
        return torch.ones_like(hidden_states) * answer.view(-1, 1, 1, 1, 1)


LEVEL = ContextTensors(torch.full((1, 2, 1, 2, 2), 0.5), torch.tensor([0]), BASE)
SEEN = PackedContext((LEVEL,), torch.full((1, 6, 1, 2, 2), 2.0))


def sampled(subject, context=SEEN, words=2, **more) -> torch.Tensor:
    return sample_section(
        subject,
        noise=torch.randn(1, 2, 1, 2, 2, generator=torch.Generator().manual_seed(0)),
        positions=torch.arange(1),
        context=context,
        prompt=Conditioning(prompt=torch.full((1, 2, 2), 3.0)),
        negative=Conditioning(prompt=torch.full((1, words, 2), 1.0)),
        sigmas=make_sigmas(2, 2.0),
        solver=euler,
        **more,
    )


@pytest.mark.parametrize("words", [2, 5], ids=["prompts in one call", "in two calls"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_guidance_on_history_is_of_three_calls(guidance, words):
    blank = without_history(SEEN, method_of("vanilla"))
    assert blank.levels == () and not blank.aligned.any()
    found = sampled(Model(), words=words, guidance=guidance, history_guidance=1.5, without=blank)
    cond, no_prompt, no_history = (
        sampled(Model(), context=context, guidance=scale)
        for context, scale in ((SEEN, 1.0), (SEEN, 0.0), (blank, 1.0))
    )
    wanted = cond + (guidance - 1) * (cond - no_prompt) + 0.5 * (cond - no_history)
    torch.testing.assert_close(found, wanted)
    assert (cond - no_history).abs().min() > 1 and (cond - no_prompt).abs().min() > 1


def test_a_call_more_only_where_there_is_a_history_to_be_guided_by():
    blank = without_history(SEEN, method_of("vanilla"))
    names = []
    for context, scale in ((SEEN, 1.0), (blank, 1.5), (SEEN, 1.5)):
        subject = Model()
        sampled(subject, context=context, guidance=1.0, history_guidance=scale, without=blank)
        names.append(subject.names)
    assert names == [["cond"] * 2, ["cond"] * 2, ["cond", "without"] * 2], "with a cache of its own"
    plain = sampled(Model(), guidance=2.0)
    assert torch.equal(sampled(Model(), guidance=2.0, history_guidance=1.0, without=blank), plain)


def test_absent_history_is_zeros_where_the_method_has_it_so():
    blank = without_history(SEEN, method_of("f1", absent="zeros"))
    assert len(blank.levels) == 1 and not blank.levels[0].latents.any()


def test_a_video_is_guided_by_its_history():
    plain, guided = (rolled(method_of("vanilla", history_guidance=w), guidance=2.0) for w in (1.0, 1.5))
    first = 1 + SECTION
    assert not torch.equal(plain[:, :, 1:first], guided[:, :, 1:first]), "the start picture is history"
    assert guided.isfinite().all()


# --- history ranked by its latents, in memory ---


def test_a_rollout_ranks_history_as_generation_does():
    method = method_of("vanilla", importance=Importance(kind="similarity", pool=16))
    frames = 40
    video = rolled(method, frames=frames)
    by_time = rolled(method_of("vanilla"), frames=frames)
    assert not torch.equal(video, by_time)
    planned = plan(timeline(frames), method)
    last = planned.sections[-1]
    held = {frame: video[:, :, frame] for frame in range(frames)}

    def from_video(wanted):
        return torch.stack([held[frame] for frame in wanted], dim=2)

    chosen = settle(last, method, planned.timeline, from_video)
    assert chosen != last
    noise = torch.randn(
        1, CHANNELS, len(last.frames), *GRID, generator=torch.Generator().manual_seed(last.index)
    )
    context = shown(chosen, method, from_video, noise, aligned=True, generator=history_generator(last.index))
    again = sample_section(
        tiny_bundle().transformer,
        noise=noise,
        positions=torch.tensor(chosen.positions),
        context=context,
        prompt=prompts(None),
        negative=None,
        guidance=1.0,
        sigmas=make_sigmas(2, 2.0),
        solver=euler,
    )
    assert torch.equal(again, video[:, :, list(last.frames)])


def test_several_videos_cannot_be_ranked_together():
    method = method_of("vanilla", importance=Importance(kind="hybrid"))
    with pytest.raises(InputError, match="one at a time, not 2"):
        rolled(method, batch=2)
