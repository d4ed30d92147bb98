"""Helios's samplers against diffusers' schedulers and pipelines."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    HeliosDMDScheduler,
    HeliosPipeline,
    HeliosPyramidPipeline,
    HeliosScheduler,
    HeliosTransformer3DModel,
)

from framepack.conditioning.embeds import Conditioning
from framepack.models.helios import adopt_helios
from framepack.models.shift import UNCAPPED
from framepack.packing.context import PackedContext, gather
from framepack.planning.method import named_method
from framepack.planning.planners import plan
from framepack.planning.timeline import Timeline
from framepack.sampling.helios import block_noise, helios_sigmas, pyramid, unipc2
from framepack.sampling.section import sample_section

torch.set_num_threads(1)
S = 9


def transformer() -> HeliosTransformer3DModel:
    torch.manual_seed(0)
    return HeliosTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        text_dim=32,
        freq_dim=32,
        ffn_dim=64,
        num_layers=1,
        rope_dim=(8, 8, 8),
    ).eval()


def codec() -> AutoencoderKLWan:
    return AutoencoderKLWan(
        base_dim=3,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )


def sampled(source, count, grid, generator, *, guidance, sigmas, solver, prompt, negative):
    """Sections in turn, with noise drawn as the pipeline draws it."""
    model = adopt_helios(source)
    made = torch.zeros(1, 16, count * S, *grid)
    timeline = Timeline(frames=1 + (count * S - 1) * 4, fps=24, stride=4)
    for section in plan(timeline, named_method("f1")).sections:
        levels = gather(section.context, lambda frames: made[:, :, list(frames)], made)
        (span,) = section.spans
        made[:, :, span.start : span.stop] = sample_section(
            model,
            noise=torch.randn(1, 16, S, *grid, generator=generator),
            positions=torch.tensor(section.positions),
            context=PackedContext(levels, timestep=0.0),
            prompt=Conditioning(prompt=prompt),
            negative=Conditioning(prompt=negative),
            guidance=guidance,
            sigmas=sigmas,
            solver=solver,
        )
    return made


@pytest.fixture
def exact_factor(monkeypatch):
    """The pipeline factors its covariance, singular but for 1e-8, in single precision; some CPUs refuse."""
    real = torch.linalg.cholesky
    exact = real(torch.eye(4).double() * (4 / 3 + 1e-8) - 1 / 3)
    monkeypatch.setattr(
        torch.linalg, "cholesky", lambda m: exact.to(m) if m.dtype == torch.float32 else real(m)
    )


def test_unipc2_is_helios_base():
    """Two chunks of text to video with guidance, as HeliosPipeline makes them."""
    source, prompt, negative = transformer(), torch.randn(1, 7, 32), torch.randn(1, 7, 32)
    scheduler = HeliosScheduler(stages=1, stage_range=[0, 1], use_dynamic_shifting=True)
    pipe = HeliosPipeline(None, None, codec(), scheduler, source)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(
        prompt_embeds=prompt,
        negative_prompt_embeds=negative,
        height=64,
        width=96,
        num_frames=66,
        num_inference_steps=5,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
    ).frames
    found = sampled(
        source,
        2,
        (8, 12),
        torch.Generator().manual_seed(3),
        guidance=3.0,
        sigmas=helios_sigmas(5, S * 4 * 6, UNCAPPED),
        solver=unipc2,
        prompt=prompt,
        negative=negative,
    )
    assert (found - expected).abs().max() < 1e-3, (found - expected).abs().max()


@pytest.mark.parametrize("amplified", [False, True])
def test_pyramid_is_helios_distilled(exact_factor, amplified):
    """Chunks of three stages without guidance, as HeliosPyramidPipeline makes them."""
    source, prompt = transformer(), torch.randn(1, 7, 32)

    def scheduler() -> HeliosDMDScheduler:
        return HeliosDMDScheduler(use_dynamic_shifting=True, time_shift_type="linear")

    pipe = HeliosPyramidPipeline(None, None, codec(), scheduler(), source, is_distilled=True)
    pipe.set_progress_bar_config(disable=True)
    count = 1 if amplified else 2
    expected = pipe(
        prompt_embeds=prompt,
        height=64,
        width=128,
        num_frames=33 * count,
        pyramid_num_inference_steps_list=[2, 2, 2],
        guidance_scale=1.0,
        is_amplify_first_chunk=amplified,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
    ).frames
    generator = torch.Generator().manual_seed(3)
    found = sampled(
        source,
        count,
        (8, 16),
        generator,
        guidance=1.0,
        sigmas=torch.zeros(1 + (12 if amplified else 6)),
        solver=pyramid(scheduler(), generator=generator),
        prompt=prompt,
        negative=prompt,
    )
    assert (found - expected).abs().max() < 1e-3, (found - expected).abs().max()


def test_pyramid_is_helios_mid_with_plain_guidance(exact_factor):
    source, prompt, negative = transformer(), torch.randn(1, 7, 32), torch.randn(1, 7, 32)

    def scheduler() -> HeliosScheduler:
        return HeliosScheduler(use_dynamic_shifting=True)

    pipe = HeliosPyramidPipeline(None, None, codec(), scheduler(), source)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(
        prompt_embeds=prompt,
        negative_prompt_embeds=negative,
        height=64,
        width=128,
        num_frames=33,
        pyramid_num_inference_steps_list=[3, 3, 3],
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
    ).frames
    generator = torch.Generator().manual_seed(3)
    found = sampled(
        source,
        1,
        (8, 16),
        generator,
        guidance=3.0,
        sigmas=torch.zeros(10),
        solver=pyramid(scheduler(), generator=generator),
        prompt=prompt,
        negative=negative,
    )
    assert (found - expected).abs().max() < 1e-3, (found - expected).abs().max()


def test_pyramid_is_the_same_for_the_same_noise():
    solver = pyramid(HeliosDMDScheduler(use_dynamic_shifting=True))
    noise = torch.randn(1, 4, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    asked: list[tuple[int, int, float]] = []

    def denoise(x: torch.Tensor, sigma: float, index: int) -> torch.Tensor:
        asked.append((index, x.shape[-1], sigma))
        return torch.tanh(x)

    first, second = (solver(denoise, noise, torch.zeros(7)) for _ in range(2))
    other = solver(denoise, noise + 1e-3, torch.zeros(7))
    assert torch.equal(first, second) and (first - other).abs().max() > 1e-2
    assert [(i, size) for i, size, _ in asked[:6]] == [(0, 4), (1, 4), (2, 8), (3, 8), (4, 16), (5, 16)]


def test_block_noise_has_variance_one_and_a_sum_of_almost_zero_in_every_block():
    noise = block_noise((2, 3, 4, 64, 64), (2, 2), 1 / 3, torch.Generator().manual_seed(0))
    blocks = noise.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2))
    assert abs(float(noise.var()) - 1) < 0.02
    # Four values of covariance -1/3 sum to a variance of 4 - 12/3 = 0.
    assert float(blocks.sum((-1, -3)).abs().max()) < 0.01


def test_a_section_of_zero_steps_does_not_ask_the_model():
    asked: list[int] = []

    def denoise(x: torch.Tensor, sigma: float, index: int) -> torch.Tensor:
        asked.append(index)
        return 0.5 * x

    pyramid(HeliosScheduler(use_dynamic_shifting=True), zero_steps=2)(
        denoise, torch.randn(1, 4, 1, 16, 16), torch.zeros(10)
    )
    assert asked == list(range(2, 9))
