"""What does not change within a section is computed once; and how the blocks are computed, by option."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

from framepack.conditioning.embeds import Conditioning
from framepack.errors import UnknownNameError
from framepack.generation.pipeline import FramePackPipeline
from framepack.generation.prepare import prepare
from framepack.generation.request import GenerateRequest
from framepack.models import hunyuan_video as hunyuan_room
from framepack.models.attention import attention_for, attention_names, check_attention
from framepack.models.bundle import compiled
from framepack.packing.context import ContextTensors, PackedContext
from test_step_cache import CHANNELS, GRID, KERNELS, STEPS, WIDTH, blocks_of, hunyuan, said, sampled, wan
from tiny import save_tiny, tiny_bundle

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


def counting(make: Callable[..., Any], calls: list[Any]) -> Callable[..., Any]:
    def counted(*given: Any, **named: Any) -> Any:
        calls.append(given)
        return make(*given, **named)

    return counted


@pytest.mark.parametrize("make", [wan, hunyuan])
def test_phases_and_masks_once_for_a_section_and_branch(
    make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, phases, masks = make(), [], []
    expected = sampled(model, negative=said(3), guidance=2.0)
    monkeypatch.setattr(model, "_phases", counting(model._phases, phases))
    monkeypatch.setattr(hunyuan_room, "_used", counting(hunyuan_room._used, masks))
    for sections in (1, 2):
        assert torch.equal(sampled(model, negative=said(3), guidance=2.0), expected)
        assert len(phases) == 2 * sections and len(masks) == (2 * sections if make is hunyuan else 0)


def test_a_mask_with_holes_is_cropped_as_before() -> None:
    """Rows of unlike length: columns that none uses are gone, and the rest is masked."""
    model, prompt = hunyuan(), torch.randn(2, 6, WIDTH, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]]).bool()
    pooled, noise = prompt[:, 0], torch.randn(2, CHANNELS, 1, *GRID)
    times = torch.tensor([500.0, 400.0])
    wide, cut = (
        Conditioning(prompt=prompt[:, :length], mask=mask[:, :length], pooled=pooled) for length in (6, 4)
    )
    with torch.inference_mode():
        found = model(noise, times, wide, None, PackedContext().remembering())
        torch.testing.assert_close(found, model(noise, times, cut), atol=1e-5, rtol=1e-5)
        assert torch.equal(found, model(noise, times, wide))


@torch.inference_mode()
def test_each_timestep_is_embedded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as a timestep for every token, which the blocks are still given."""
    model, rows, given = wan(num_layers=1), [], []
    generator = torch.Generator().manual_seed(0)
    levels = [
        ContextTensors(torch.randn(2, CHANNELS, n, *GRID, generator=generator), torch.arange(n), kernel)
        for n, kernel in ((2, KERNELS[1]), (1, KERNELS[0]))
    ]
    noise, times = torch.randn(2, CHANNELS, 1, *GRID), torch.tensor([500.0, 400.0])
    prompt = Conditioning(prompt=torch.randn(2, 3, WIDTH, generator=generator))
    embedder, noisy = model.condition_embedder, GRID[0] * GRID[1] // 4
    model.blocks[0].register_forward_pre_hook(lambda _, args: given.append(args[2]))
    embedder.time_embedder.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[:-1].numel()))
    own = replace(levels[0], timestep=torch.tensor([90.0, 80.0]))
    for context, each in (
        (PackedContext((levels[0], levels[1]), timestep=0.0), [[0.0, 0.0]] * 2),
        (PackedContext((own, levels[1]), timestep=0.0), [[90.0, 80.0], [0.0, 0.0]]),
    ):
        sizes = [model.packing_kernels(level.latents, level.kernel).shape[1] for level in context.levels]
        model(noise, times, prompt, None, context)
        distinct = len({tuple(values) for values in each}) + 1
        assert rows.pop() == 2 * distinct
        columns = [torch.tensor(values)[:, None].expand(-1, n) for values, n in zip(each, sizes, strict=True)]
        whole = torch.cat([*columns, times[:, None].expand(-1, noisy)], dim=1)
        reference = embedder(whole.flatten(), prompt.prompt, timestep_seq_len=whole.shape[1])[1]
        rows.clear()
        torch.testing.assert_close(given.pop(), reference.unflatten(-1, (6, -1)), atol=1e-6, rtol=1e-5)
    model(noise, times, prompt, None, PackedContext((own, levels[1])))
    assert rows == [2] and given.pop().shape == (2, 6, model.config.num_attention_heads * 12)


# --- how it is computed ---


@pytest.mark.parametrize("make", [wan, hunyuan, lambda: hunyuan("zero")])
def test_every_block_would_be_compiled(make: Callable[[], Any]) -> None:
    model = make()
    model.compile_repeated_blocks()
    assert all(block._compiled_call_impl is not None for block in blocks_of(model))
    assert model._compiled_call_impl is None


def test_a_compiled_model_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    model = str(save_tiny(tmp_path / "model"))
    from framepack.models.wan import PackedWanTransformer3DModel as Transformer

    monkeypatch.setattr(Transformer, "compile_repeated_blocks", lambda self: calls.append(self))
    request = GenerateRequest(
        model=model, prompt="red ball left", frames=9, device="cpu", out=tmp_path / "v.mp4"
    )
    plain, quick = prepare(request), prepare(replace(request, compile=True))
    assert calls == [quick.bundle.transformer] and compiled(quick.bundle) == quick.bundle
    assert quick.config.to_json() == plain.config.to_json() | {"compiled": True}
    pipe = FramePackPipeline(plain.bundle)
    pipe.compile_repeated_blocks()
    pipe.compile_repeated_blocks()
    assert len(calls) == 2 and pipe.bundle.compiled


def test_attention_by_name(tmp_path: Path) -> None:
    assert attention_names(CPU) == ["native"]
    assert check_attention(None, CPU) is None and check_attention("native", CPU) == "native"
    with pytest.raises(UnknownNameError, match=r"^unknown attention .flash.: choose one of native$"):
        prepare(GenerateRequest(attention="flash", device="cpu", out=tmp_path / "v.mp4"))
    assert check_attention("native", torch.device("cuda")) is None, "what it takes by itself there"
    names = attention_names(torch.device("cuda"))
    assert {"native", "_native_math"} <= set(names) and not any("hub" in name for name in names)
    assert set(names) <= {backend.value for backend in AttentionBackendName}
    pipe = FramePackPipeline(tiny_bundle())
    pipe.set_attention_backend("native")
    run = prepare(GenerateRequest(prompt="red ball", frames=9, out=tmp_path / "v.mp4"), pipe.bundle)
    assert run.config.to_json()["attention"] == "native"
    with pytest.raises(UnknownNameError, match="choose one of native"):
        pipe.set_attention_backend("sage")


def test_the_named_attention_is_the_one_that_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 on a CPU framepack's own stands in the place of PyTorch's, but for where that is named."""
    q, k, v = torch.randn(3, 1, 40, 2, 8, generator=torch.Generator().manual_seed(0)).bfloat16().unbind(0)
    plain = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in (q, k, v))).transpose(1, 2)
    made = {}
    for name in (None, "native"):
        with attention_for(CPU, torch.bfloat16, name):
            made[name] = dispatch_attention_fn(q, k, v)
    assert torch.equal(made["native"], plain) and not torch.equal(made[None], plain)
    seen: list[Any] = []
    monkeypatch.setattr(
        "framepack.sampling.section.attention_for", counting(lambda *given: attention_for(*given[:2]), seen)
    )
    sampled(wan(), attention="native")
    assert seen == [(CPU, torch.float32, "native")] * STEPS
