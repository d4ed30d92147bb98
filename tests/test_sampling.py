"""Noise levels and solvers against closed forms."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from framepack.conditioning.embeds import Conditioning
from framepack.errors import InputError, UnknownNameError
from framepack.models.shift import RELEASED, UNCAPPED, Balance, shift_for, shift_from_json, shift_to_json
from framepack.packing.context import EMPTY, ContextTensors, PackedContext
from framepack.sampling.flow import make_sigmas, shift_sigmas, to_data
from framepack.sampling.section import sample_section
from framepack.sampling.solvers import SOLVERS, euler, solver_named
from tiny import tiny_bundle


def test_balanced_shift_at_the_published_points():
    """1,520 tokens a frame: about 2.0, 3.4, 5.7 for 1, 3, 5 frames, 7.0 from 6 on."""
    found = [round(shift_for(RELEASED, 1520 * frames), 1) for frames in (1, 3, 5, 6, 50)]
    assert found == [2.0, 3.4, 5.7, 7.0, 7.0]
    assert shift_for(RELEASED, 256) == pytest.approx(math.exp(0.5))
    assert shift_for(RELEASED, 4096) == pytest.approx(math.exp(1.15))


def test_anchors_are_the_models_own():
    """A line through both anchors, flat from the cap on, and read back as it was said."""
    own = Balance(low=(24, 0.2), high=(384, 0.8), cap=1.0)
    assert [shift_for(own, tokens) for tokens in (24, 384, 10_000)] == pytest.approx(
        [math.exp(0.2), math.exp(0.8), math.exp(1.0)]
    )
    assert shift_for(UNCAPPED, 20_000) > 7 == pytest.approx(shift_for(RELEASED, 20_000))
    assert shift_for(3.0, 24) == 3.0
    for shift in (own, UNCAPPED, 2.5):
        assert shift_from_json(json.loads(json.dumps(shift_to_json(shift)))) == shift


@pytest.mark.parametrize(
    "value",
    [{"low": (9, 1.0), "high": (9, 2.0)}, {"low": (1, math.inf)}, {"low": (1, 2, 3)}, {"cap": math.nan}],
)
def test_anchors_that_make_no_line(value):
    with pytest.raises(InputError, match="anchors"):
        Balance(**value)


@pytest.mark.parametrize(
    "value", [{"low": [1, 2]}, {"low": [1, 2], "high": [3, 4], "middle": 2}, {"low": 1, "high": 2}]
)
def test_what_is_no_record_of_a_shift(value):
    with pytest.raises(InputError, match="balanced shift"):
        shift_from_json(value)


def test_sigmas_fall_from_one_to_zero_by_the_published_rule():
    sigmas = make_sigmas(8, 3.0)
    assert len(sigmas) == 9 and sigmas[0] == 1 and sigmas[-1] == 0 and bool((sigmas.diff() < 0).all())
    middle = torch.tensor([0.3], dtype=torch.float64)
    mu = math.log(3.0)
    assert float(shift_sigmas(middle, 3.0)) == pytest.approx(math.exp(mu) / (math.exp(mu) + 1 / 0.3 - 1))


def test_flow_and_sample_mean_the_same_data():
    data, noise, sigma = torch.randn(3), torch.randn(3), 0.4
    x = (1 - sigma) * data + sigma * noise
    torch.testing.assert_close(to_data(noise - data, x, sigma, "flow"), data)
    assert to_data(data, x, sigma, "sample") is data


def gaussian(x: torch.Tensor, sigma: float, index: int) -> torch.Tensor:
    """The exact denoiser for data ~ N(2, 0.5^2)."""
    mean, variance = 2.0, 0.25
    gain = (1 - sigma) * variance / ((1 - sigma) ** 2 * variance + sigma**2)
    return mean + gain * (x - (1 - sigma) * mean)


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_reach_the_exact_transport_of_a_gaussian(name):
    """The flow carries noise z to 2 + 0.5 z."""
    noise = torch.linspace(-2, 2, 9, dtype=torch.float64).view(1, 1, 1, 3, 3)
    errors = [
        float((SOLVERS[name](gaussian, noise, make_sigmas(steps, 1.0)) - (2 + 0.5 * noise)).abs().max())
        for steps in (8, 64)
    ]
    assert errors[1] < errors[0] and errors[1] < 0.05


def test_higher_order_is_better_at_few_steps():
    noise = torch.linspace(-2, 2, 9, dtype=torch.float64).view(1, 1, 1, 3, 3)
    error = {
        n: float((f(gaussian, noise, make_sigmas(10, 1.0)) - 2 - 0.5 * noise).abs().max())
        for n, f in SOLVERS.items()
    }
    assert error["unipc"] < error["euler"] / 2


def test_unknown_solver_lists_the_choices():
    with pytest.raises(UnknownNameError, match="euler, unipc"):
        solver_named("rk45")


class Recorder:
    """Answers prompt means; counts its calls."""

    class config:
        prediction = "sample"

    def __init__(self) -> None:
        self.calls = 0

    def cache_context(self, name):
        import contextlib

        return contextlib.nullcontext()

    def __call__(self, hidden_states, timestep, conditioning, positions, context):
        self.calls += 1
        return torch.ones_like(hidden_states) * conditioning.prompt.mean((1, 2)).view(-1, 1, 1, 1, 1)


@pytest.mark.parametrize(
    ("guidance", "words", "value", "calls"),
    [(1.0, 2, 3.0, 4), (2.0, 2, 5.0, 4), (2.0, 5, 5.0, 8)],
)
def test_guidance_moves_away_from_the_negative_prompt(guidance, words, value, calls):
    """Prompts of one shape go through the model together on a CPU, others one after the other."""
    model, steps = Recorder(), []
    out = sample_section(
        model,
        noise=torch.randn(1, 2, 1, 2, 2),
        positions=torch.arange(1),
        context=EMPTY,
        prompt=Conditioning(prompt=torch.full((1, 2, 2), 3.0)),
        negative=Conditioning(prompt=torch.full((1, words, 2), 1.0)),
        guidance=guidance,
        sigmas=make_sigmas(4, 2.0),
        solver=euler,
        on_step=lambda done, total: steps.append((done, total)),
    )
    torch.testing.assert_close(out, torch.full_like(out, value))
    assert model.calls == calls and steps == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_both_prompts_in_one_call_see_what_each_sees_alone():
    """Through a real model with context, in float32: as a batch and as two calls."""
    bundle = tiny_bundle()
    model, spec = bundle.transformer, bundle.spec
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(1, spec.latent_channels, 2, 4, 4, generator=generator)
    shape = (1, spec.latent_channels, 2, 4, 4)
    level = ContextTensors(torch.randn(shape, generator=generator), torch.tensor([0, 1]), spec.base_kernel)
    aligned = torch.randn(1, 2 * spec.latent_channels + 2, 2, 4, 4, generator=generator)
    context = PackedContext((level,), aligned if model.config.aligned else None)
    prompt, negative = (bundle.conditioner.encode([text]) for text in ("a red ball", "a blue star"))
    # A mask that says nothing keeps the two from being joined.
    apart = replace(negative, mask=torch.ones(1, negative.prompt.shape[1], dtype=torch.bool))

    def sample(negative: Conditioning) -> torch.Tensor:
        return sample_section(
            model,
            noise=noise,
            positions=torch.tensor([2, 3]),
            context=context,
            prompt=prompt,
            negative=negative,
            guidance=3.0,
            sigmas=make_sigmas(3, 2.0),
            solver=euler,
        )

    assert prompt.joined(negative) is not None and prompt.joined(apart) is None
    torch.testing.assert_close(sample(negative), sample(apart), atol=1e-5, rtol=1e-4)
