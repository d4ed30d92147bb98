"""Step caches: placed, of one section and one branch, and the steps that they skip are really skipped."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig, HunyuanVideoTransformer3DModel, TaylorSeerCacheConfig
from diffusers.models.transformers.transformer_wan import WanTransformerBlock

from framepack.conditioning.embeds import Conditioning
from framepack.errors import InputError, ModelError, UnknownNameError
from framepack.generation.events import SectionFinished
from framepack.generation.pipeline import FramePackPipeline
from framepack.generation.prepare import prepare
from framepack.generation.request import GenerateRequest
from framepack.models.bundle import Bundle
from framepack.models.hunyuan_video import PackedHunyuanVideoTransformer3DModel
from framepack.models.spec import BUNDLED, ModelSpec
from framepack.models.step_cache import (
    KINDS,
    RATIOS_FILE,
    StepCache,
    calibrating,
    read_ratios,
    step_cache,
    write_ratios,
)
from framepack.models.wan import PackedWanTransformer3DModel
from framepack.packing.context import ContextTensors, PackedContext
from framepack.sampling.section import sample_section
from framepack.sampling.solvers import euler
from tiny import BASE, CHANNELS, tiny_bundle

pytestmark = pytest.mark.usefixtures("one_thread")
GRID, STEPS, WIDTH = (4, 6), 10, 16
KERNELS = ((1, 2, 2), (2, 4, 4))


def wan(**changes: Any) -> PackedWanTransformer3DModel:
    torch.manual_seed(0)
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "text_dim": WIDTH,
        "freq_dim": 16,
        "ffn_dim": 32,
        "num_layers": 3,
        "context_kernels": KERNELS,
        "latent_channels": CHANNELS,
    }
    return PackedWanTransformer3DModel(**config | changes).eval()


def hunyuan(timestep: str = "noisy") -> PackedHunyuanVideoTransformer3DModel:
    torch.manual_seed(0)
    base = HunyuanVideoTransformer3DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=2,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        rope_axes_dim=(4, 6, 6),
        guidance_embeds=False,
    )
    return PackedHunyuanVideoTransformer3DModel.adopt(base, KERNELS, history_timestep=timestep).eval()


FAMILIES: dict[str, Callable[[], Any]] = {
    "wan": wan,
    "wan, isolated history": lambda: wan(isolated_history=True),
    "hunyuan video": hunyuan,
    "hunyuan video, history at 0": lambda: hunyuan("zero"),
}
CACHES = {
    # Computed steps of ten, by what each kind is told; of first-block, those of all blocks after the first.
    "first-block=10": (1, "first-block"),
    "mag=0": (4, "mag"),  # 0 and 1 are retained, and three in a row is the most that is skipped
    "taylorseer=2": (6, "taylorseer"),  # 0, 1, 2, 4, 6, 8
}


def cache_of(text: str) -> StepCache:
    found = StepCache.parse(text)
    return replace(found, ratios=(1.0,) * STEPS) if found.kind == "mag" else found


def context(model: Any) -> PackedContext:
    latents = torch.randn(1, CHANNELS, 2, *GRID, generator=torch.Generator().manual_seed(1))
    level = ContextTensors(latents, torch.tensor([0, 1]), KERNELS[1])
    own = model.config.get("isolated_history") or model.config.get("image_condition_type") == "token_replace"
    return PackedContext((level,), timestep=0.0 if own else None)


def said(length: int) -> Conditioning:
    generator = torch.Generator().manual_seed(length)
    prompt = torch.randn(1, length, WIDTH, generator=generator)
    pooled = torch.randn(1, WIDTH, generator=generator)
    return Conditioning(prompt=prompt, mask=torch.ones(1, length, dtype=torch.bool), pooled=pooled)


def sampled(model: Any, **changes: Any) -> torch.Tensor:
    settings: dict[str, Any] = {
        "noise": torch.randn(1, CHANNELS, 2, *GRID, generator=torch.Generator().manual_seed(3)),
        "positions": torch.tensor([2, 3]),
        "context": context(model),
        "prompt": said(5),
        "negative": None,
        "guidance": 1.0,
        "sigmas": torch.linspace(1, 0, STEPS + 1),
        "solver": euler,
    }
    return sample_section(model, **settings | changes)


def blocks_of(model: Any) -> list[Any]:
    stacks = ("blocks", "transformer_blocks", "single_transformer_blocks")
    return [block for name in stacks for block in getattr(model, name, ())]


def counted(model: Any, make: Callable[[], Any]) -> list[int]:
    """How often each block's attention was computed meanwhile."""
    found = [0] * len(blocks_of(model))

    def hook(index: int) -> Callable[..., None]:
        def count(*_: Any) -> None:
            found[index] += 1

        return count

    attention = [getattr(block, "attn1", None) or block.attn for block in blocks_of(model)]
    handles = [part.register_forward_hook(hook(n)) for n, part in enumerate(attention)]
    make()
    for handle in handles:
        handle.remove()
    return found


def hooks_of(model: Any) -> int:
    registries = [getattr(module, "_diffusers_hook", None) for module in model.modules()]
    return sum(len(registry.hooks) for registry in registries if registry is not None)


# --- on a model ---


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", CACHES)
def test_each_cache_has_its_place_and_skips_what_it_says(family: str, text: str) -> None:
    model, (computed, kind) = FAMILIES[family](), CACHES[text]
    plain = sampled(model)
    with step_cache(model, cache_of(text), STEPS):
        assert hooks_of(model) >= len(blocks_of(model))
        made: list[torch.Tensor] = []
        first, *others = counted(model, lambda: made.append(sampled(model)))
    assert others == [computed] * len(others) and first == (STEPS if kind == "first-block" else computed)
    assert not torch.equal(made[0], plain) and made[0].isfinite().all()
    assert hooks_of(model) == 0 and torch.equal(sampled(model), plain), "nothing of it stays"


def test_a_threshold_of_nothing_changes_nothing() -> None:
    model = wan()
    with step_cache(model, StepCache.parse("first-block=0"), STEPS):
        assert torch.equal(sampled(model), sampled(model))
        found = counted(model, lambda: sampled(model))
    assert found == [STEPS] * 3
    with step_cache(model, StepCache.parse("first-block=0"), STEPS):
        cached = sampled(model)
    assert torch.equal(cached, sampled(model))


@pytest.mark.parametrize("text", CACHES)
def test_a_section_knows_nothing_of_the_one_before(text: str) -> None:
    model = wan()
    with step_cache(model, cache_of(text), STEPS):
        alone = sampled(model)
    with step_cache(model, cache_of(text), STEPS):
        sampled(model, noise=torch.ones(1, CHANNELS, 2, *GRID), prompt=said(3))
        assert torch.equal(sampled(model), alone)


@pytest.mark.parametrize("family", ["wan", "hunyuan video"])
@pytest.mark.parametrize("text", CACHES)
def test_branches_of_guidance_are_kept_apart(family: str, text: str) -> None:
    """On a path that their results do not change, each branch gives what it gives by itself."""
    model, prompt, other = FAMILIES[family](), said(5), said(3)  # too unlike to go as one batch

    def fixed(results: list[torch.Tensor]) -> Callable[..., torch.Tensor]:
        def solve(denoise: Any, x: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
            for n, sigma in enumerate(sigmas[:-1].tolist()):
                results.append(denoise(x * (1 - 0.05 * n), sigma, n))
            return x

        return solve

    def alone(conditioning: Conditioning) -> list[torch.Tensor]:
        results: list[torch.Tensor] = []
        with step_cache(model, cache_of(text), STEPS):
            sampled(model, prompt=conditioning, solver=fixed(results))
        return results

    for chosen, expected in ((0, alone(prompt)), (1, alone(other))):
        found: list[torch.Tensor] = []
        with step_cache(model, cache_of(text), STEPS):
            sampled(
                model,
                prompt=prompt,
                negative=other,
                guidance=2.0,
                guide=lambda c, u, x, sigma, scale, chosen=chosen: (c, u)[chosen],
                solver=fixed(found),
            )
        assert all(map(torch.equal, found, expected))


def refused(model: Any, cache: StepCache, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match), step_cache(model, cache, STEPS):
        pass


def test_what_cannot_have_a_cache() -> None:
    model, cache = wan(), StepCache.parse("first-block")
    refused(wan(num_layers=1), cache, ModelError, "skips blocks after the first, and this model has 1")
    model.enable_cache(FirstBlockCacheConfig())
    refused(model, cache, InputError, "has a cache already")
    assert model.is_cache_enabled, "somebody else's stays"
    model.disable_cache()

    class Other(WanTransformerBlock):
        """diffusers looks blocks up by their exact class."""

    model.blocks[1].__class__ = Other
    refused(model, cache, ModelError, "'first-block' does not fit this model")
    assert hooks_of(model) == 0 and not model.is_cache_enabled


def test_a_cache_that_finds_no_place_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As TaylorSeer on Wan by diffusers' own patterns, which says nothing."""
    import diffusers

    monkeypatch.setattr(
        diffusers, "TaylorSeerCacheConfig", lambda use_lite_mode, **given: TaylorSeerCacheConfig(**given)
    )
    model = wan()
    cache = StepCache.parse("taylorseer")
    refused(model, cache, ModelError, r"found no place on 4 of 4 modules .* such as blocks\.0")
    assert hooks_of(model) == 0


def test_magnitude_ratios_are_those_of_the_residuals() -> None:
    model, ends = wan(), []
    handles = [
        model.blocks[0].register_forward_pre_hook(lambda _, given: ends.append(given[0].clone())),
        model.blocks[-1].register_forward_hook(lambda _, given, made: ends.append(made.clone())),
    ]
    found: list[list[list[float]]] = []
    with calibrating(model, STEPS) as ratios:
        plain = sampled(model, on_step=lambda step, steps: found.append(ratios()))
    for handle in handles:
        handle.remove()
    norms = [(out - given).norm(dim=-1) for given, out in zip(ends[::2], ends[1::2], strict=True)]
    expected = [1.0] + [(new / old).mean().item() for old, new in pairwise(norms)]
    assert found[-1] == [pytest.approx(expected, rel=1e-5)] and len(expected) == STEPS
    assert torch.equal(plain, sampled(model)), "every step was computed"


# --- as text ---


@pytest.mark.parametrize("name", KINDS)
def test_a_name_alone_takes_its_value_from_the_table(name: str) -> None:
    parsed = StepCache.parse(name)
    assert parsed.value == KINDS[name].default == StepCache.parse(f"{name}={parsed.value:g}").value
    assert StepCache.from_json(json.loads(json.dumps(parsed.to_json()))) == parsed


@pytest.mark.parametrize("text", ["teacache", "", "=0.1", "First-Block"])
def test_unknown_names_are_listed(text: str) -> None:
    with pytest.raises(UnknownNameError, match="choose one of first-block, mag, taylorseer"):
        GenerateRequest(step_cache=text)


@pytest.mark.parametrize(
    "text", ["first-block=", "mag=x", "mag=-1", "mag=nan", "taylorseer=2.5", "taylorseer=1"]
)
def test_values_out_of_range(text: str) -> None:
    with pytest.raises(InputError, match=rf"^step cache '{text}': .* such as {text.partition('=')[0]}="):
        GenerateRequest(step_cache=text)


def test_ratios_in_a_folder(tmp_path: Path) -> None:
    assert read_ratios(tmp_path) == ()
    write_ratios((1.0, 1.25), tmp_path)
    assert read_ratios(tmp_path) == (1.0, 1.25)
    for text in ("[1.0]", "[1.0, -1]", "{}", "x", '["a", 1]', "[1.0, null]"):
        (tmp_path / RATIOS_FILE).write_text(text)
        with pytest.raises(ModelError, match=f"{RATIOS_FILE}' holds no magnitude ratios"):
            read_ratios(tmp_path)


def test_the_bundled_model_has_ratios_of_its_own_steps() -> None:
    ratios = read_ratios(BUNDLED)
    assert len(ratios) == ModelSpec.load(BUNDLED).steps and ratios[0] == 1 and len(set(ratios)) > 2


# --- in a run ---


@cache
def bundle() -> Bundle:
    torch.manual_seed(0)
    deep = PackedWanTransformer3DModel.from_config({**tiny_bundle().transformer.config, "num_layers": 3})
    return replace(tiny_bundle(), transformer=deep.eval().requires_grad_(False), mag_ratios=(1.0, 0.99, 0.9))


def ask(folder: Path, text: str | None, **changes: Any) -> GenerateRequest:
    settings = {
        "prompt": "red ball left",
        "frames": 13,
        "steps": STEPS,
        "step_cache": text,
        "method": "vanilla",
    }
    return GenerateRequest(**settings | {"out": folder / "v.mp4", "workdir": folder / "run"} | changes)


def latents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((folder / "run" / "latents").iterdir())}


@pytest.mark.parametrize("text", ["first-block=0.5", "mag=0.5", "taylorseer=3"])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path, text: str) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    list(prepare(ask(whole, text), bundle()).events())
    events = prepare(ask(stopped, text), bundle()).events()
    next(event for event in events if isinstance(event, SectionFinished))
    events.close()
    sections = [e for e in prepare(ask(stopped, text), bundle()).events() if isinstance(e, SectionFinished)]
    assert [event.cached for event in sections] == [True] + [False] * (len(sections) - 1)
    assert len(sections) > 2 and latents(whole) == latents(stopped)
    plain = tmp_path / "plain"
    list(prepare(ask(plain, None), bundle()).events())
    assert latents(plain).keys().isdisjoint(latents(whole)), "a section made otherwise has another key"
    assert hooks_of(bundle().transformer) == 0


def test_what_a_configuration_says_of_it(tmp_path: Path) -> None:
    plain, cached = (prepare(ask(tmp_path, text), bundle()).config for text in (None, "mag=0.5"))
    assert not {"step_cache", "compiled", "attention"} & plain.to_json().keys()
    told = {"kind": "mag", "value": 0.5, "ratios": [1.0, 0.99, 0.9]}
    assert cached.to_json()["step_cache"] == told == cached.sampling()["step_cache"]
    assert cached.to_json() == plain.to_json() | {"step_cache": told}
    other = prepare(ask(tmp_path, "mag=0.5"), replace(bundle(), mag_ratios=(1.0, 0.5))).config
    assert len({plain.job, cached.job, other.job}) == 3


def test_models_without_ratios_or_in_stages_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tiny has no mag_ratios.json.*calibrate_step_cache"):
        prepare(ask(tmp_path, "mag"), replace(bundle(), mag_ratios=()))
    staged = SimpleNamespace(pyramid=object(), name="helios")
    for name in KINDS:
        with pytest.raises(InputError, match=f"step cache '{name}': helios is sampled in stages"):
            StepCache.parse(name).of(staged, (1.0, 1.0))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="compiled blocks do not go together"):
        prepare(ask(tmp_path, "taylorseer"), replace(bundle(), compiled=True))
    assert not (tmp_path / "run").exists()


def test_a_pipeline_measures_its_own_ratios(tmp_path: Path) -> None:
    pipe = FramePackPipeline(replace(bundle(), mag_ratios=()))
    settings: Any = {"num_frames": 9, "num_inference_steps": 6, "method": "vanilla"}

    def made(**more: Any) -> torch.Tensor:
        return pipe("red ball left", output_type="latent", **settings, **more).frames

    with pytest.raises(InputError, match=r"no mag_ratios\.json"):
        made(step_cache="mag")
    plain, found = made(), pipe.calibrate_step_cache("red ball left", **settings)
    assert len(found) == 6 and found[0] == 1 and len(set(found)) > 2
    assert torch.equal(made(), plain) and not torch.equal(made(step_cache="mag=10"), plain)
    pipe.save_pretrained(tmp_path / "model")
    assert read_ratios(tmp_path / "model") == found
    again = FramePackPipeline.from_pretrained(tmp_path / "model", torch_dtype=torch.float32, device="cpu")
    assert again.bundle.mag_ratios == found and again.spec.base_kernel == BASE
