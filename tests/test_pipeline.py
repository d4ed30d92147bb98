"""The front door for Python on the small model: the same video by every way in, and faults by name."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from framepack import FramePackPipeline
from framepack.conditioning.embeds import Conditioning
from framepack.errors import InputError, ModelError, OutputError, UnknownNameError
from framepack.generation.events import Finished, SectionFinished, Step
from framepack.generation.given import Keyframe
from framepack.generation.placement import layer_by_layer
from framepack.models.loading import load_bundle
from framepack.video.io import read_video
from tiny import CHANNELS, save_tiny, tiny_bundle

FRAMES, SIDE = 7, 4
ASKED = {"num_frames": FRAMES, "num_inference_steps": 2, "method": "f1", "seed": 3}
PROMPT = "a red ball moves left"


@pytest.fixture
def pipe() -> FramePackPipeline:
    return FramePackPipeline(tiny_bundle())


def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def latents(pipe: FramePackPipeline, prompt: str = PROMPT, **settings) -> torch.Tensor:
    return pipe(prompt, picture(), output_type="latent", **{**ASKED, **settings}).frames


def test_a_call_and_a_stream_make_the_same_latents(pipe: FramePackPipeline, tmp_path: Path) -> None:
    told: list[object] = []
    called = pipe(PROMPT, picture(), output_type="latent", on_event=told.append, **ASKED).frames
    assert called.shape == (CHANNELS, FRAMES, SIDE, SIDE)
    events = list(pipe.stream(PROMPT, picture(), out=tmp_path / "v.mp4", **ASKED))
    assert isinstance(events[-1], Finished)
    sections = [event for event in events if isinstance(event, SectionFinished)]
    for section in sections:
        stored = load_file(section.latents)
        (held,) = (value for value in stored.values() if value.ndim == 4)
        assert torch.equal(held, called[:, list(section.frames)])
    assert sum(isinstance(event, Step) for event in told) == 2 * len(sections)
    assert sum(1 for _ in read_video(tmp_path / "v.mp4").frames) == FRAMES


def test_a_stream_that_was_closed_goes_on_where_it_was(pipe: FramePackPipeline, tmp_path: Path) -> None:
    places = {"out": tmp_path / "v.mp4", "workdir": tmp_path / "run"}
    opened = pipe.stream(PROMPT, picture(), **places, **ASKED)
    first = next(event for event in opened if isinstance(event, SectionFinished))
    opened.close()
    rest = [e for e in pipe.stream(PROMPT, picture(), **places, **ASKED) if isinstance(e, SectionFinished)]
    assert not first.cached and rest[0].cached and not rest[-1].cached


def test_what_frames_can_be(pipe: FramePackPipeline) -> None:
    shown = {kind: pipe(PROMPT, picture(), output_type=kind, **ASKED) for kind in ("pil", "np", "pt")}
    pixels = np.stack([np.asarray(frame) for frame in shown["pil"].frames])
    assert pixels.shape == (FRAMES, 32, 32, 3) and shown["pil"].fps == 8
    np.testing.assert_allclose(shown["np"].frames, pixels / 255.0, atol=1e-6)
    assert torch.equal(shown["pt"].frames.permute(0, 2, 3, 1), torch.from_numpy(shown["np"].frames))
    with pytest.raises(InputError, match="choose one of pil, np, pt, latent"):
        pipe(PROMPT, output_type="gif")  # type: ignore[arg-type]


def test_a_picture_by_any_means(pipe: FramePackPipeline, tmp_path: Path) -> None:
    picture().save(tmp_path / "p.png")
    images = [picture(), tmp_path / "p.png", str(tmp_path / "p.png"), np.asarray(picture())]
    found = [pipe(PROMPT, image, output_type="latent", **ASKED).frames for image in images]
    assert all(torch.equal(found[0], other) for other in found[1:])
    with pytest.raises(InputError, match=r"give uint8 \(height, width, 3\)"):
        pipe(PROMPT, np.zeros((4, 4, 3)), **ASKED)


def test_embeddings_stand_in_for_prompts(pipe: FramePackPipeline) -> None:
    said = latents(pipe, negative_prompt="blue", guidance_scale=2.0)
    encode = pipe.bundle.conditioner.encode
    given = latents(
        pipe,
        "",
        prompt_embeds=encode([PROMPT]).prompt,
        negative_prompt_embeds=encode(["blue"]),
        guidance_scale=2.0,
    )
    assert torch.equal(said, given)
    other = latents(pipe, "", prompt_embeds=Conditioning(prompt=-encode([PROMPT]).prompt))
    assert not torch.equal(latents(pipe), other)
    with pytest.raises(InputError, match="prompt and prompt_embeds were both given"):
        latents(pipe, prompt_embeds=encode([PROMPT]))


def test_a_generator_draws_the_seed(pipe: FramePackPipeline) -> None:
    generator = torch.Generator().manual_seed(5)
    first, second = (latents(pipe, seed=None, generator=generator) for _ in range(2))
    again = latents(pipe, seed=None, generator=torch.Generator().manual_seed(5))
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert torch.equal(latents(pipe, seed=0), latents(pipe, seed=None))


def test_settings_that_there_are_not(pipe: FramePackPipeline) -> None:
    with pytest.raises(TypeError, match="no setting num_frame: choose among negative_prompt, num_frames"):
        pipe(PROMPT, num_frame=9)  # type: ignore[call-arg]
    with pytest.raises(InputError, match="height 32 and width None: give both"):
        pipe(PROMPT, height=32)
    with pytest.raises(InputError, match="tiny takes none"):
        latents(pipe, embedded_guidance=10.0)
    with pytest.raises(UnknownNameError, match="choose one of euler, unipc"):
        latents(pipe, solver="rk45")


def test_the_settings_named_as_diffusers_names_them(pipe: FramePackPipeline) -> None:
    plain = latents(pipe)
    for change in ({"guidance_scale": 3.0}, {"num_inference_steps": 3}, {"solver": "unipc"}):
        assert not torch.equal(plain, latents(pipe, **change)), change
    assert latents(pipe, height=24, width=40).shape[2:] == (3, 5)


def lora(folder: Path, seed: int = 1) -> Path:
    layer = "blocks.0.attn1.to_q"
    generator = torch.Generator().manual_seed(seed)
    save_file(
        {
            f"transformer.{layer}.lora_A.weight": torch.randn(2, 32, generator=generator),
            f"transformer.{layer}.lora_B.weight": torch.randn(32, 2, generator=generator),
        },
        folder / "style.safetensors",
    )
    return folder / "style.safetensors"


def test_loras_for_a_call_and_for_good(tmp_path: Path) -> None:
    pipe = FramePackPipeline.from_pretrained(save_tiny(tmp_path / "model"), device="cpu")
    file, plain = lora(tmp_path), latents(pipe)
    once = latents(pipe, loras=[file])
    assert not torch.equal(plain, once) and torch.equal(plain, latents(pipe))
    assert pipe.load_lora(f"{file}:0.5") == []
    half = latents(pipe)
    assert not torch.equal(half, once) and not torch.equal(half, plain)
    assert torch.equal(latents(pipe, loras=[]), plain) and torch.equal(latents(pipe), half)
    assert not torch.equal(latents(pipe, loras=[lora(tmp_path, seed=2)]), once), "another file, same name"
    lora(tmp_path)
    pipe.save_pretrained(tmp_path / "saved")
    assert torch.equal(latents(pipe), half)
    saved = FramePackPipeline.from_pretrained(tmp_path / "saved", device="cpu")
    assert torch.equal(latents(saved), plain)
    save_file({"transformer.blocks.0.nowhere.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "no.safetensors")
    with pytest.raises(ModelError, match="nowhere"):
        pipe.load_lora(tmp_path / "no.safetensors")
    assert torch.equal(latents(pipe), half)


def test_saved_and_loaded_gives_the_same_bytes(pipe: FramePackPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "model")
    again = FramePackPipeline.from_pretrained(tmp_path / "model", device="cpu", torch_dtype=pipe.dtype)
    assert again.spec == pipe.spec and again.device == torch.device("cpu")
    assert torch.equal(latents(pipe), latents(again))
    with pytest.raises(UnknownNameError, match="unknown model"):
        FramePackPipeline.from_pretrained(tmp_path / "nothing")


def test_a_model_saved_over_a_sharded_one_is_the_one_that_is_loaded(tmp_path: Path) -> None:
    pipe, folder = FramePackPipeline(tiny_bundle()), tmp_path / "model"
    pipe.transformer.save_pretrained(folder / "transformer", max_shard_size="20KB")
    assert (folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json").is_file()
    (folder / "transformer" / "notes.txt").write_text("mine")
    pipe.save_pretrained(folder)
    left = {path.name for path in (folder / "transformer").iterdir()}
    assert left == {"config.json", "diffusion_pytorch_model.safetensors", "notes.txt"}
    again = FramePackPipeline.from_pretrained(folder, device="cpu", torch_dtype=pipe.dtype)
    assert torch.equal(latents(pipe), latents(again))


def test_a_memory_policy_says_where_weights_lie_and_what_they_are_stored_in(tmp_path: Path) -> None:
    """On a CPU, where a placement changes no byte and a smaller storage type does."""
    load = partial(FramePackPipeline.from_pretrained, save_tiny(tmp_path / "m"), device="cpu")
    plain = latents(load(torch_dtype=torch.float32))
    for memory in ("layers", "low", "models-tiled"):
        assert torch.equal(latents(load(torch_dtype=torch.float32, memory=memory)), plain), memory
    parted = load(torch_dtype=torch.float32, memory="split")
    assert torch.equal(latents(parted), plain) and parted.device == torch.device("cpu")
    rounded = load(torch_dtype=torch.float32, memory="fp8")
    assert rounded.transformer.blocks[0].ffn.net[2].weight.dtype == torch.float8_e4m3fn
    assert 0 < (latents(rounded) - plain).abs().max() < 1
    with pytest.raises(InputError, match="its memory policy has them: load it anew"):
        parted.to("cpu")


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"memory": "auto"}, "'auto' needs a video to choose for: ask framepack estimate"),
        ({"memory": "small"}, "unknown memory policy 'small'"),
        ({"devices": 2}, "2 devices: a pipeline has one with memory 'full': choose 'split'"),
        ({"memory": "split", "devices": 2}, "1 layers cannot be split among 2 devices"),
    ],
)
def test_policies_that_cannot_be(tmp_path: Path, asked: dict, told: str) -> None:
    with pytest.raises(InputError, match=told):
        FramePackPipeline.from_pretrained(save_tiny(tmp_path / "m"), device="cpu", **asked)


def test_kernels_made_under_group_offload_are_offloaded_too(tmp_path: Path) -> None:
    """diffusers' group offload, from CPU to CPU."""
    cpu = torch.device("cpu")
    bundle = load_bundle(str(save_tiny(tmp_path / "m")), cpu)
    asked = {"schedule": "geometric", "untrained": True}
    plain = latents(FramePackPipeline(load_bundle(str(tmp_path / "m"), cpu)), **asked)
    pipe = FramePackPipeline(layer_by_layer(bundle, cpu))
    before = set(pipe.transformer.packing_kernels.projections)
    assert torch.equal(latents(pipe, **asked), plain)
    made = set(pipe.transformer.packing_kernels.projections) - before
    assert made
    for name in made:
        assert "group_offloading" in pipe.transformer.packing_kernels.projections[name]._diffusers_hook.hooks


def test_weights_stored_in_another_type_are_another_run(tmp_path: Path) -> None:
    load = partial(FramePackPipeline.from_pretrained, save_tiny(tmp_path / "m"), device="cpu")
    list(load().stream(PROMPT, out=tmp_path / "v.mp4", **ASKED))
    rounded = load(memory="fp8")
    with pytest.raises(OutputError, match="not of this run"):
        list(rounded.stream(PROMPT, out=tmp_path / "v.mp4", **ASKED))
    with pytest.raises(InputError, match="rounded for storage"):
        rounded.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_one_video_at_a_time(pipe: FramePackPipeline, tmp_path: Path) -> None:
    """Two would share a transformer, and so each other's LoRAs."""
    opened = pipe.stream(PROMPT, out=tmp_path / "v.mp4", **ASKED)
    next(opened)
    others = [
        lambda: latents(pipe),
        lambda: next(pipe.stream(PROMPT, out=tmp_path / "w.mp4", **ASKED)),
        lambda: pipe.load_lora(),
        lambda: pipe.save_pretrained(tmp_path / "m"),
        lambda: pipe.to("cpu"),
    ]
    for other in others:
        with pytest.raises(InputError, match="is making a video"):
            other()
    assert not (tmp_path / "w.mp4").exists() and not (tmp_path / "m").exists()
    opened.close()
    latents(pipe)
    with pytest.raises(InputError):
        latents(pipe, num_frames=-1)
    latents(pipe)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"prompt": torch.zeros(2, 8, 16)}, r"prompt is \(2, 8, 16\), tiny takes \(1, tokens, 16\)"),
        ({"prompt": torch.zeros(1, 8, 15)}, r"prompt is \(1, 8, 15\)"),
        ({"prompt": torch.zeros(8, 16)}, r"prompt is \(8, 16\)"),
        ({"pooled": torch.zeros(1, 4)}, r"pooled is \(1, 4\), tiny takes none"),
        ({"mask": torch.ones(1, 7)}, r"mask is \(1, 7\), its prompt \(1, 8, 16\)"),
    ],
)
def test_embeddings_of_another_shape(pipe: FramePackPipeline, change: dict, told: str) -> None:
    given = Conditioning(**{"prompt": torch.zeros(1, 8, 16)} | change)
    with pytest.raises(InputError, match=f"^prompt_embeds: {told}"):
        latents(pipe, "", prompt_embeds=given)


def test_a_refused_call_leaves_the_model_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = FramePackPipeline.from_pretrained(save_tiny(tmp_path / "m"), device="cpu")
    bundle, plain = pipe.bundle, latents(pipe)
    with pytest.raises(InputError):
        latents(pipe, num_frames=-1)
    assert pipe.bundle is bundle

    def refuse(prompts: object) -> list[str]:
        raise ModelError("a tokenizer that cannot be read")

    with monkeypatch.context() as patched:
        patched.setattr(bundle.conditioner, "remarks", refuse)
        with pytest.raises(ModelError, match="tokenizer"):
            latents(pipe, loras=[lora(tmp_path)])
    assert torch.equal(latents(pipe), plain)


def test_pictures_at_other_times_and_loops(pipe: FramePackPipeline) -> None:
    other = Image.fromarray(np.asarray(picture())[::-1].copy())
    keyframes = [Keyframe(at=0.5, picture=other)]
    given = {"method": "anti-drifting", "num_frames": 13}
    made = latents(pipe, **given, last_image=np.asarray(other), keyframes=keyframes)
    torch.testing.assert_close(made[:, 4], made[:, -1])
    assert not torch.equal(made[:, 0], made[:, -1])
    assert latents(pipe, **given, loop=True).shape == made.shape
    with pytest.raises(InputError, match="does not exist"):
        pipe(PROMPT, to_clip="none.mp4", **ASKED)
