"""Discretised history: the quantiser, the codebook, and ``+D`` in training and in generation."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from framepack.cli import main
from framepack.data.fingerprint import module_digest
from framepack.data.latents import CacheConfig, LatentCache, build_cache
from framepack.errors import InputError, ModelError
from framepack.generation.prepare import prepare
from framepack.generation.request import GenerateRequest
from framepack.models.codebook import Codebook, load_codebook
from framepack.models.loading import load_bundle
from framepack.packing import discretisation
from framepack.packing.context import pack
from framepack.packing.discretisation import codewords, discretized, quantised
from framepack.planning.method import named_method
from framepack.planning.planners import plan
from framepack.planning.timeline import Timeline
from framepack.recipes.bundled import bundled
from framepack.recipes.override import override
from framepack.training.codebook import fit_codebook, pixels_of
from framepack.training.loop import train
from tiny import BASE, CHANNELS, SECTION, SIZE, save_tiny, tiny_bundle, tiny_codec

GRID = (4, 4)


def book(size: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, CHANNELS, generator=torch.Generator().manual_seed(seed))


# --- the quantiser ---


def test_every_pixel_becomes_its_nearest_codeword(monkeypatch):
    latents, centroids = torch.randn(2, CHANNELS, 3, *GRID), book()
    found = quantised(latents, centroids)
    for b, n, y, x in np.ndindex(2, 3, *GRID):
        distances = (centroids - latents[b, :, n, y, x]).square().sum(1)
        assert torch.equal(found[b, :, n, y, x], centroids[distances.argmin()])
    assert torch.equal(quantised(found, centroids), found)
    monkeypatch.setattr(discretisation, "_CHUNK", 24)
    assert torch.equal(quantised(latents, centroids), found)


def test_one_codeword_leaves_no_memory_and_all_of_them_change_nothing():
    latents = torch.randn(1, CHANNELS, 2, *GRID)
    assert torch.equal(quantised(latents, book(1)), book(1).view(1, -1, 1, 1, 1).expand_as(latents))
    assert torch.equal(quantised(latents, latents.movedim(1, -1).flatten(0, -2)), latents)


def packed(name: str, index: int, history: torch.Tensor, given: tuple[int, ...] = (0,), **changes):
    method = replace(named_method(name, base=BASE, section_size=SECTION, max_gap=8), **changes)
    timeline = Timeline(frames=history.shape[2], fps=1.0, stride=1, known=given)
    section = plan(timeline, method).sections[index]
    like = history[:, :, : len(section.frames)]
    context = pack(section, lambda f: history[:, :, list(f)], like, aligned=True, timestep=None)
    return context, section


def test_history_is_discretised_and_pinned_frames_are_not():
    history = torch.randn(1, CHANNELS, 13, *GRID)
    clean, section = packed("f1", 2, history)
    found = discretized(clean, section, book())
    roles = [level.role for level in section.context]
    assert {"start", "history"} <= set(roles)
    for role, before, after in zip(roles, clean.levels, found.levels, strict=True):
        wanted = before.latents if role == "start" else quantised(before.latents, book())
        assert torch.equal(after.latents, wanted)
        assert after.positions is before.positions and after.kernel == before.kernel
    assert torch.equal(found.aligned[:, :CHANNELS], quantised(clean.aligned[:, :CHANNELS], book()))
    assert torch.equal(found.aligned[:, 2 * CHANNELS :], clean.aligned[:, 2 * CHANNELS :])


def test_what_is_absent_stays_zero():
    history = torch.randn(1, CHANNELS, 13, *GRID)
    clean, section = packed("f1", 0, history, absent="zeros")
    found = discretized(clean, section, book())
    seen = 0
    for after, level in zip(found.levels, section.context, strict=True):
        for column, frame in enumerate(level.frames):
            assert bool(after.latents[:, :, column].any()) == (frame is not None)
            seen += frame is None
    assert seen > 0
    assert not found.aligned[:, CHANNELS : 2 * CHANNELS].any(), "nothing lies ahead"


def test_small_drift_is_not_seen():
    torch.manual_seed(0)
    centroids = book(8) * 4
    history = centroids[torch.randint(8, (13, *GRID))].permute(3, 0, 1, 2)[None]
    apart = torch.cdist(centroids, centroids).fill_diagonal_(9e9).min()
    drift = torch.nn.functional.normalize(torch.randn(history.shape), dim=1) * 0.49 * apart
    (clean, section), (drifted, _) = (packed("vanilla", 2, h) for h in (history, history + drift))
    a, b = (discretized(context, section, centroids) for context in (clean, drifted))
    assert not torch.equal(clean.aligned, drifted.aligned) and torch.equal(a.aligned, b.aligned)
    for x, y in zip(a.levels, b.levels, strict=True):
        assert torch.equal(x.latents, y.latents)


# --- the codebook ---


def clusters(count: int, batches: int = 20, size: int = 400) -> tuple[torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    centres = 10 * torch.randn(count, CHANNELS, generator=generator)
    made = [
        centres[torch.randint(count, (size,), generator=generator)]
        + 0.1 * torch.randn(size, CHANNELS, generator=generator)
        for _ in range(batches)
    ]
    return centres, made


def test_clusters_are_found_again():
    centres, batches = clusters(12)
    found = fit_codebook(batches, 12)
    nearest = torch.cdist(centres, found).min(1)
    assert len(set(nearest.indices.tolist())) == 12
    assert nearest.values.max() < 0.05, "each is the mean of some 600 pixels of deviation 0.1"


def test_the_fit_is_as_good_as_that_of_whole_batches():
    pixels = torch.randn(4000, CHANNELS, generator=torch.Generator().manual_seed(2))

    def error(centroids):
        return (pixels - centroids[codewords(pixels, centroids)]).square().sum(1).mean()

    found = fit_codebook(pixels.repeat(5, 1).split(1000), 16)
    lloyd = pixels[:16].clone()
    for _ in range(50):
        rows = codewords(pixels, lloyd)
        lloyd = torch.stack([pixels[rows == k].mean(0) for k in range(16)])
    assert error(found) < 1.1 * error(lloyd)
    assert error(fit_codebook(pixels.split(1000), 128)) < 0.5 * error(found)


def test_the_same_pixels_and_seed_give_the_same_codebook():
    _, batches = clusters(5)
    assert torch.equal(fit_codebook(batches, 16, 3), fit_codebook(batches, 16, 3))
    assert not torch.equal(fit_codebook(batches, 16, 3), fit_codebook(batches, 16, 4))


def test_pixels_that_make_no_codebook():
    with pytest.raises(InputError, match="4 codewords, and the latents have 3 different pixels"):
        fit_codebook([torch.eye(3, CHANNELS).repeat(50, 1)], 4)
    with pytest.raises(InputError, match="not finite"):
        fit_codebook([torch.full((50, CHANNELS), torch.nan)], 4)


# --- a model that has one ---


def bundle_of(size: int = 8):
    """The tiny model, its codewords, and its methods once more with ``+D``."""
    bundle = tiny_bundle()
    methods = {name: replace(method, discretized=True) for name, method in bundle.spec.methods.items()}
    spec = replace(bundle.spec, methods=methods)
    return replace(bundle, spec=spec, codebook=Codebook.of(book(size)), digest=f"tiny {size}")


def job(folder, bundle, **values):
    out = {"out": folder / "v.mp4", "workdir": folder / "run"}
    return prepare(GenerateRequest(prompt="a red ball", frames=16, **(out | values)), bundle)


@pytest.mark.parametrize("method", ["vanilla", "f1", "anti-drifting", "inverted", "appended", "compressed"])
def test_generation_shows_codewords_only(method, tmp_path, monkeypatch):
    bundle = bundle_of()
    picture = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    seen = []
    real = type(bundle.transformer).forward

    def forward(self, hidden_states, timestep, conditioning, positions=None, context=None):
        seen.append(context)
        return real(self, hidden_states, timestep, conditioning, positions, context)

    monkeypatch.setattr(type(bundle.transformer), "forward", forward)
    prepared = job(tmp_path, bundle, method=method, image=Image.fromarray(picture))
    list(prepared.events())
    kinds = set()
    for context in seen:
        for level in context.levels:
            pixels = level.latents.movedim(1, -1).flatten(0, -2)
            kinds.add(bool((torch.cdist(pixels, book()).min(1).values < 1e-4).all()))
    pinned = any(level.role in ("start", "end") for s in prepared.plan.sections for level in s.context)
    assert kinds == ({True, False} if pinned else {True})


def test_other_codewords_are_another_run(tmp_path):
    assert job(tmp_path, bundle_of()).config.method["notation"].endswith("+D")
    plain, found = tiny_bundle(), bundle_of()
    found.save(tmp_path / "model")
    loaded = load_bundle(str(tmp_path / "model"))
    assert torch.equal(loaded.codebook.centroids, book())
    assert {p.name for p in (tmp_path / "model" / "codebook").iterdir()} == {
        "config.json",
        "diffusion_pytorch_model.safetensors",
    }
    replace(found, codebook=Codebook.of(book(seed=1))).save(tmp_path / "model")
    assert load_bundle(str(tmp_path / "model")).digest != loaded.digest
    loaded.save(tmp_path / "again")
    assert torch.equal(load_codebook(tmp_path / "again" / "codebook").centroids, book())
    assert plain.codebook is None


def test_a_codebook_of_other_channels_is_refused(tmp_path):
    replace(bundle_of(), codebook=Codebook.of(torch.randn(8, CHANNELS + 1))).save(tmp_path / "model")
    with pytest.raises(ModelError, match="codebook is of 5 channels, its latents have 4"):
        load_bundle(str(tmp_path / "model"))


def test_discretised_history_needs_a_codebook(tmp_path, monkeypatch, capsys):
    with pytest.raises(InputError, match="tiny has no codebook"):
        job(tmp_path, tiny_bundle(), method="td_f16k4f2k2f1k1_g3+D", untrained=True)
    method = f"{tiny_bundle().spec.methods['vanilla']}+D"
    words = ["--model", str(save_tiny(tmp_path / "tiny")), "--method", method]
    command = ["framepack", "generate", "--prompt", "a red ball", "--untrained", *words]
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(tmp_path / "v.mp4")])
    with pytest.raises(SystemExit) as end:
        main()
    told = capsys.readouterr().err.strip()
    assert end.value.code == 2 and "discretises its history, and tiny has no codebook" in " ".join(
        told.split()
    )
    assert not (tmp_path / "v.mp4").exists()


# --- training ---


def test_training_fits_a_codebook_and_saves_it_with_the_model(tmp_path):
    torch.manual_seed(0)
    codec = tiny_codec(stride=16)
    codec.save_pretrained(tmp_path / "codec")
    digest = module_digest(codec)
    cache = CacheConfig(clips=4, frames=20, sizes=((32, 32),), seed=0, codec=digest)
    base = replace(bundled(digest), cache=cache, steps=2, micro=2, processes=1, warmup=1, device="cpu")
    settings = ("network.heads=1", "network.head_dim=16", "network.layers=1", "network.ffn=16")
    more = ("codewords=6", "objective.rollout.share=1", "objective.rollout.steps=1")
    config = override(base, *settings, *more, "network.prompt_width=8", "sheet_every=100")
    folder = train(config, tmp_path / "out", tmp_path / "codec")
    loaded = load_bundle(str(folder))
    assert loaded.codebook.centroids.shape == (6, 4)
    assert all(str(method).endswith("+D") for method in loaded.spec.methods.values())
    assert all(p.isfinite().all() for p in loaded.transformer.parameters())
    # The same cache gives the same codewords.
    build_cache(tmp_path / "again", codec, cache)
    fitted = fit_codebook(pixels_of(LatentCache(tmp_path / "again", cache), 6, 0), 6, 0)
    assert torch.equal(fitted, loaded.codebook.centroids)
