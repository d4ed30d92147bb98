"""Fine-tuning the real families on cached clips: what changes, what comes out, and that a run goes on."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    HeliosTransformer3DModel,
    HunyuanVideoFramepackPipeline,
    HunyuanVideoFramepackTransformer3DModel,
    WanTransformer3DModel,
)
from safetensors.torch import load_file
from typer.testing import CliRunner

from framepack.cli import app
from framepack.data.reader import EncodedClips
from framepack.errors import InputError, ModelError, OutputError, UnknownNameError
from framepack.models.loading import load_bundle
from framepack.models.lora import Lora, apply_loras
from framepack.models.shift import RELEASED, shift_for
from framepack.models.source import resolve_model
from framepack.recipes import finetune as recipes
from framepack.recipes.override import override
from framepack.training import masters as masters_module
from framepack.training.draw import draw_section
from framepack.training.finetune import finetune, taught_methods
from framepack.training.finetune_config import FineTuneConfig, FlowConfig
from framepack.training.flow_matching import Shown, flow_loss, noise_levels, show
from framepack.training.lora import PLAIN_FILE
from tiny import save_tiny
from tiny_clips import SECTION, save_clips, save_model, wan_transformer

FAMILIES = ("hunyuan_video", "wan")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Model folder and cache of each family."""
    root = tmp_path_factory.mktemp("families")
    models = {family: save_model(family, root / family) for family in FAMILIES}
    return {family: (model, save_clips(model, root / f"{family}-clips")) for family, model in models.items()}


def config_of(model: Path, recipe: str, *settings: str) -> FineTuneConfig:
    spec = resolve_model(str(model)).spec
    small = ["dtype=float32", "device=cpu", "steps=3", "batch=2", "micro=2", "warmup=1", "samples.every=null"]
    small += ["lora.rank=4", "lora.alpha=8"] if recipe == "lora" else []
    return override(getattr(recipes, recipe)(spec), *small, "rate=0.01", "ema=0.5", *settings)


def weights(model: Path | str, folder: str = "transformer") -> dict[str, torch.Tensor]:
    return load_file(Path(model) / folder / "diffusion_pytorch_model.safetensors")


def batch_of(model: Path, cache: Path, image: bool = True) -> Shown:
    """A section with history: always the same."""
    spec = resolve_model(str(model)).spec
    config = FlowConfig(guidance=spec.embedded_guidance, drop_image=0.0, drop_prompt=0.0)
    draws = replace(recipes.lora(spec).draw, image=1.0 if image else 0.0, first=0.0, full=1.0, short=0.0)
    rng, clips = np.random.default_rng(1), EncodedClips(cache)
    while True:
        draw = draw_section(rng, draws, dict(spec.methods), clips.longest)
        if len(draw.before) == 1 and len(draw.section.frames) == SECTION:
            break
    return show(rng, draw, 2, clips, config, clips.channel_std(), aligned=False, from_start=True)


@torch.no_grad()
def output_of(transformer: Any, shown: Shown) -> torch.Tensor:
    noise = torch.randn(shown.target.shape, generator=torch.Generator().manual_seed(3))
    times = torch.tensor([300.0, 800.0])
    return transformer(noise, times, shown.conditioning, shown.positions, shown.context)


@torch.no_grad()
def loss_on(transformer: Any, shown: Shown) -> float:
    config = FlowConfig(shift=1.0)
    losses = [
        flow_loss(np.random.default_rng(seed), shown, transformer, config, (1, 2, 2), torch.float32)
        for seed in range(8)
    ]
    return float(torch.stack(losses).mean())


# What training does ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_learns_and_the_base_stays(
    family: str, places: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    model, cache = places[family]
    before = weights(model)
    file = finetune(config_of(model, "lora", "steps=12"), tmp_path, str(model), cache)
    assert file == tmp_path / "lora.safetensors"
    after = weights(model)
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)

    saved = load_file(file)
    kernels = {name for name in saved if name.startswith("packing_kernels.")}
    assert kernels == {name for name in before if name.startswith("packing_kernels.")}
    assert all(not torch.equal(saved[name], before[name]) for name in kernels)
    ups = [tensor for name, tensor in saved.items() if name.endswith("lora_B.weight")]
    assert len(saved) == len(kernels) + 2 * len(ups) and all(bool(up.any()) for up in ups)
    assert len(ups) == {"hunyuan_video": 12 + 5, "wan": 2 * 10}[family]

    plain, tuned = load_bundle(str(model)).transformer, load_bundle(str(model)).transformer
    assert apply_loras(tuned, [Lora(file)]) == []
    shown = batch_of(model, cache)
    assert loss_on(tuned, shown) < 0.95 * loss_on(plain, shown)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_weights_learn(family: str, places: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    model, cache = places[family]
    config = config_of(model, "full", "steps=12", "draw.methods.vanilla=1", "name=mine")
    folder = finetune(config, tmp_path, str(model), cache)
    before, after = weights(model), weights(folder)
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert before.keys() == after.keys() and not same
    bundle = load_bundle(str(folder))
    assert bundle.spec.name == "mine"
    assert set(bundle.spec.methods) == {*resolve_model(str(model)).spec.methods, "vanilla"}
    shown = batch_of(model, cache)
    assert loss_on(bundle.transformer, shown) < 0.95 * loss_on(load_bundle(str(model)).transformer, shown)


@pytest.mark.parametrize(
    ("family", "recipe", "settings"),
    [
        ("hunyuan_video", "lora", ("objective.rollout.share=0.5", "objective.rollout.steps=1")),
        ("wan", "full", ("dtype=bfloat16", "objective.drop_history=0.3")),
    ],
)
def test_stopped_and_resumed_equals_uninterrupted(
    family: str, recipe: str, settings: tuple[str, ...], places: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    model, cache = places[family]
    whole = config_of(model, recipe, "steps=5", "save_every=2", "log_every=1", "batch=4", *settings)
    finetune(whole, tmp_path / "one", str(model), cache)
    step, calls = masters_module.Masters.step, []

    def killed(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 4:  # after the checkpoint of step 2 and the row of step 3
            raise KeyboardInterrupt
        return step(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masters_module.Masters, "step", killed)
        with pytest.raises(KeyboardInterrupt):
            finetune(whole, tmp_path / "two", str(model), cache)
    assert len((tmp_path / "two" / "metrics.jsonl").read_text().splitlines()) == 3
    finetune(whole, tmp_path / "two", str(model), cache)
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()]
    assert len(files) > 3
    for path in files:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes(), path


def test_a_full_disk_leaves_the_checkpoint_before_it(
    places: dict[str, tuple[Path, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, cache = places["wan"]
    config = config_of(model, "lora", "steps=4", "save_every=2")
    finetune(replace(config, steps=2), tmp_path, str(model), cache)
    before = (tmp_path / "state.safetensors").read_bytes()

    def full(tensors: Any, file: Path, metadata: Any) -> None:
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(masters_module, "save_file", full)
    with pytest.raises(OutputError, match=r"state.safetensors' cannot be written \(No space"):
        finetune(config, tmp_path, str(model), cache)
    assert (tmp_path / "state.safetensors").read_bytes() == before
    assert not list(tmp_path.rglob("*.part"))
    monkeypatch.undo()
    finetune(config, tmp_path, str(model), cache)
    rows = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [2, 4]


def test_killed_at_random_moments_the_curve_joins(
    places: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    model, cache = places["wan"]
    config = config_of(model, "lora", "steps=24", "save_every=3", "log_every=1")
    finetune(config, tmp_path / "one", str(model), cache)
    rng, rows = random.Random(0), tmp_path / "two" / "metrics.jsonl"
    for target in sorted(rng.sample(range(1, 22), 5)):
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            finetune(config, tmp_path / "two", str(model), cache)
            os._exit(0)
        while not rows.exists() or len(rows.read_bytes().splitlines()) < target:
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "it ended by itself"
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    finetune(config, tmp_path / "two", str(model), cache)
    for name in ("metrics.jsonl", "state.safetensors", "lora.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


@pytest.mark.parametrize("recipe", ["lora", "full"])
def test_a_model_of_framepacks_own(recipe: str, tmp_path: Path) -> None:
    """It predicts the clean latent, sees what lies beside its targets, and its codec knows no time."""
    model = save_tiny(tmp_path / "model")
    cache = save_clips(model, tmp_path, frames=24)
    shares = ("draw.methods.similar=0", "draw.methods.planned=1")
    config = config_of(model, recipe, "steps=8", "log_every=1", *(shares if recipe == "full" else ()))
    assert config.draw.end > 0 and "similar" not in config.draw.taught
    made = finetune(config, tmp_path / "out", str(model), cache)
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 8 and all(row["norm"] > 0 for row in rows)
    loaded = load_bundle(str(made if recipe == "full" else model))
    if recipe == "lora":
        apply_loras(loaded.transformer, [Lora(made)])
    else:
        assert "planned" in loaded.spec.methods


@pytest.mark.parametrize("kind", ["isolated_history", "causal_history"])
def test_isolated_and_discretised_history_make_another_model(
    kind: str, places: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    model, cache = places["wan"]
    config = config_of(model, "full", f"{kind}=true", "codewords=8", "draw.methods.vanilla=1")
    bundle = load_bundle(str(finetune(config, tmp_path, str(model), cache)))
    assert bundle.transformer.config.isolated_history and bundle.codebook is not None
    assert bundle.transformer.config.causal_history == (kind == "causal_history")
    assert bundle.codebook.centroids.shape == (8, 16)
    methods = bundle.spec.methods
    assert set(methods) == {"f1", "vanilla"}
    assert all(m.discretized and m.history_timestep == "zero" for m in methods.values())


# What comes out ----------------------------------------------------------------------------------------


def theirs_of(transformer: Any, shown: Shown) -> torch.Tensor:
    """What diffusers' FramePack makes of what ``output_of`` gives ours."""
    noise = torch.randn(shown.target.shape, generator=torch.Generator().manual_seed(3))
    given, history = shown.conditioning, {}
    for kernel, name in (((1, 2, 2), "clean"), ((2, 4, 4), "history_2x"), ((4, 8, 8), "history_4x")):
        levels = [level for level in shown.context.levels if level.kernel == kernel]
        history[f"latents_{name}"] = torch.cat([level.latents for level in levels], dim=2)
        history[f"indices_latents_{name}"] = torch.cat([level.positions for level in levels])
    assert given.guidance is not None
    with torch.no_grad():
        return transformer(
            noise,
            torch.tensor([300.0, 800.0]),
            encoder_hidden_states=given.prompt,
            encoder_attention_mask=given.mask,
            pooled_projections=given.pooled,
            image_embeds=given.image,
            indices_latents=shown.positions,
            guidance=torch.full((len(given.prompt),), given.guidance * 1000.0),
            return_dict=False,
            **history,
        )[0]


def test_hunyuan_video_is_what_diffusers_own_class_loads(
    places: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    model, cache = places["hunyuan_video"]
    finetune(config_of(model, "full", "diffusers=true"), tmp_path, str(model), cache)
    theirs = HunyuanVideoFramepackTransformer3DModel.from_pretrained(tmp_path / "diffusers" / "transformer")
    shown = batch_of(model, cache)
    ours = output_of(load_bundle(str(tmp_path / "model")).transformer, shown)
    torch.testing.assert_close(theirs_of(theirs.eval(), shown), ours, rtol=1e-4, atol=1e-5)


def test_the_lora_acts_in_diffusers_too(places: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    model, cache = places["hunyuan_video"]
    config = config_of(model, "lora", "merge=true", "diffusers=true")
    file = finetune(config, tmp_path, str(model), cache)
    shown = batch_of(model, cache)
    tuned = load_bundle(str(model)).transformer
    apply_loras(tuned, [Lora(file)])
    wanted = output_of(tuned, shown)
    assert not torch.allclose(wanted, output_of(load_bundle(str(model)).transformer, shown), atol=1e-3)

    merged = load_bundle(str(tmp_path / "model")).transformer
    torch.testing.assert_close(output_of(merged, shown), wanted, rtol=1e-4, atol=1e-5)
    theirs = HunyuanVideoFramepackTransformer3DModel.from_pretrained(tmp_path / "diffusers" / "transformer")
    torch.testing.assert_close(theirs_of(theirs.eval(), shown), wanted, rtol=1e-4, atol=1e-5)

    # The files apart: kernels into the base, and the LoRA by the pipeline's own loader.
    from framepack.models.export import to_framepack

    base = load_bundle(str(model)).transformer
    missing, extra = base.load_state_dict(
        load_file(tmp_path / "diffusers" / "packing_kernels.safetensors"), strict=False
    )
    assert not extra and missing
    peer = to_framepack(base)
    names = ("vae", "scheduler", "tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")
    rest: dict[str, Any] = dict.fromkeys((*names, "image_encoder", "feature_extractor"))
    pipe = HunyuanVideoFramepackPipeline(transformer=peer, **rest)
    pipe.load_lora_weights(tmp_path / "diffusers")
    torch.testing.assert_close(theirs_of(peer, shown), wanted, rtol=1e-4, atol=1e-5)


def test_wan_is_what_helios_and_wan_load(places: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    model, cache = places["wan"]
    finetune(config_of(model, "full", "diffusers=true"), tmp_path / "full", str(model), cache)
    theirs = HeliosTransformer3DModel.from_pretrained(tmp_path / "full" / "diffusers" / "transformer")
    shown = batch_of(model, cache)
    trained = load_bundle(str(tmp_path / "full" / "model")).transformer
    from framepack.models.helios import adopt_helios

    # Helios's own forward is held against ours in its own tests, on the same keys.
    torch.testing.assert_close(output_of(adopt_helios(theirs).eval(), shown), output_of(trained, shown))

    finetune(config_of(model, "lora"), tmp_path / "lora", str(model), cache)
    peer = wan_transformer()
    peer.load_lora_adapter(tmp_path / "lora" / "diffusers", weight_name=PLAIN_FILE)
    tuned = load_bundle(str(model)).transformer
    apply_loras(tuned, [Lora(tmp_path / "lora" / "lora.safetensors")])
    assert isinstance(peer, WanTransformer3DModel)
    x, times = torch.randn(1, 16, 2, 8, 12), torch.tensor([500.0])
    with torch.no_grad():
        wanted = peer(x, times, shown.conditioning.prompt[:1], return_dict=False)[0]
        ours = tuned(x, times, replace(shown.conditioning, prompt=shown.conditioning.prompt[:1]))
        plain = wan_transformer()(x, times, shown.conditioning.prompt[:1], return_dict=False)[0]
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain, wanted, atol=1e-3)


def test_sample_videos_begin_with_the_clips(places: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    model, cache = places["wan"]
    settings = ("steps=2", "samples.every=2", "samples.sections=1", "samples.steps=1")
    finetune(config_of(model, "lora", *settings), tmp_path, str(model), cache)
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == ["clip-0.mp4", "clip-1.mp4", "step-000002-clip-0.mp4", "step-000002-clip-1.mp4"]


# What is drawn -----------------------------------------------------------------------------------------


def test_draws_show_their_clips_from_the_start(places: dict[str, tuple[Path, Path]]) -> None:
    model, cache = places["hunyuan_video"]
    clips, shown = EncodedClips(cache), batch_of(model, cache)
    start = [level for level in shown.context.levels if level.kernel == (1, 2, 2)]
    first = clips.latents(range(len(clips)), [[0]] * len(clips))
    seen = torch.cat([level.latents for level in start], dim=2)
    nearest = (seen[:, None] - first[None]).abs().flatten(3).mean(3).amin(1)
    # With noise of up to 0.15 of the spread, the start frame is some clip's first latent.
    assert float(nearest.amin(1).max()) < 0.2 * float(clips.channel_std().max())
    assert shown.conditioning.image is not None and shown.conditioning.pooled is not None
    assert batch_of(model, cache, image=False).conditioning.image is None


def test_dropped_prompt_and_history(places: dict[str, tuple[Path, Path]]) -> None:
    model, cache = places["wan"]
    clips, spec = EncodedClips(cache), resolve_model(str(model)).spec
    config = FlowConfig(drop_prompt=1.0, drop_history=1.0)
    rng = np.random.default_rng(0)
    draw = draw_section(rng, recipes.lora(spec).draw, dict(spec.methods), clips.longest)
    shown = show(rng, draw, 2, clips, config, clips.channel_std(), aligned=False, from_start=True)
    empty = clips.conditioning([0], [False]).prompt
    torch.testing.assert_close(shown.conditioning.prompt, empty.expand(2, -1, -1))
    assert draw.method.absent == "zeros" and shown.context.levels
    assert not any(bool(level.latents.any()) for level in shown.context.levels)


def test_noise_levels_by_their_rules() -> None:
    target = torch.zeros(4000, 1, 1, 8, 8)
    for times, shift in (("uniform", 1.0), ("uniform", 3.0), ("logit-normal", RELEASED)):
        rng = np.random.default_rng(0)
        sigma = noise_levels(rng, FlowConfig(times=times, shift=shift), target, (1, 2, 2))
        scale = shift_for(shift, 16)
        assert float(sigma.min()) > 0 and float(sigma.max()) < 1
        # The median of both is 1/2 before the shift.
        assert float(sigma.median()) == pytest.approx(scale / (1 + scale), abs=0.03)
        spread = float((sigma / (scale - (scale - 1) * sigma)).std())
        assert spread == pytest.approx(12**-0.5 if times == "uniform" else 0.2083, abs=0.01)


# What is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "settings", "told"),
    [
        ("lora", ("batch=3",), "batch 3 must be a multiple of micro 2"),
        ("lora", ("isolated_history=true",), "set lora=null"),
        ("lora", ("causal_history=true",), "set lora=null"),
        ("lora", ("diffusers=true",), "set merge=true"),
        ("full", ("merge=true",), "merge is for a LoRA"),
        ("lora", ("dtype=float8",), "unknown dtype 'float8': choose one of bfloat16, float32"),
        ("lora", ("objective.times=normal",), "nearest is logit-normal"),
        ("lora", ("objective.corruption.nois=1",), "unknown setting 'nois': .*; the nearest is noise"),
        ("lora", ("lora.rang=1",), "the nearest is rank"),
    ],
)
def test_values_that_no_training_could_have(
    recipe: str, settings: tuple[str, ...], told: str, places: dict[str, tuple[Path, Path]]
) -> None:
    with pytest.raises(InputError, match=told):
        config_of(places["wan"][0], recipe, *settings)


def test_what_cannot_be_trained_is_told(places: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    (model, cache), (other, theirs) = places["wan"], places["hunyuan_video"]

    def told(error: type[Exception], match: str, *settings: str, recipe: str = "lora", **change: Any) -> None:
        given = {"model": str(model), "data": cache} | change
        with pytest.raises(error, match=match):
            finetune(config_of(Path(given["model"]), recipe, *settings), tmp_path / "x", **given)

    told(InputError, "holds no cache: make it", data=tmp_path)
    told(InputError, "made with another codec than the model's", data=theirs)
    told(InputError, "match no linear layer", "lora.targets=nothing")
    told(InputError, "is no regular expression", "lora.targets=(")
    told(InputError, "no codebook: set codewords", 'draw.methods={"td_f1k1_g2+D": 1}')
    told(InputError, "longest clip of .* has 6 latents, a section has 9", 'draw.methods={"td_f1k1_g9": 1}')
    told(UnknownNameError, "unknown method 'sideways'", 'draw.methods={"sideways": 1}')
    told(InputError, "kernels .* which tiny-wan has not", 'draw.methods={"td_f1k8_g2": 1}')
    kernels = ("diffusers=true", 'draw.methods={"td_f1k8_g2": 1}')
    told(ModelError, "cannot be written as Helios", *kernels, recipe="full")
    guidance = "objective.guidance=null"
    told(InputError, "takes guidance as an input", guidance, model=str(other), data=theirs)
    causal = "causal_history=true"
    told(ModelError, "for models of the Wan family", causal, recipe="full", model=str(other), data=theirs)
    if not find_spec("tensorboard"):
        told(InputError, "TensorBoard is not installed", "tensorboard=true")
    with pytest.raises(InputError, match="recipe hunyuan-13b-lora is for family hunyuan_video"):
        recipes.hunyuan_13b_lora(resolve_model(str(model)).spec)


def test_another_configuration_is_refused(places: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    model, cache = places["wan"]
    config = config_of(model, "lora", "steps=1")
    finetune(config, tmp_path, str(model), cache)
    with pytest.raises(InputError, match=r"holds a run with other rate, seed: name another folder"):
        finetune(replace(config, rate=1.0, seed=4), tmp_path, str(model), cache)


def test_a_loss_that_is_not_finite_is_told_and_not_saved(
    places: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    model, cache = places["wan"]
    config = config_of(model, "lora", "steps=40", "rate=1e18", "log_every=1", "clip=1e30", "warmup=1")
    with pytest.raises(InputError, match=r"at step \d+: lower rate"):
        finetune(config, tmp_path, str(model), cache)
    assert not (tmp_path / "state.safetensors").exists()


# The command -------------------------------------------------------------------------------------------


def test_the_command_shows_and_trains(places: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    model, cache = places["hunyuan_video"]
    small = ["dtype=float32", "steps=1", "batch=1", "micro=1", "lora.rank=2", "samples.every=null"]
    sets = [word for setting in small for word in ("--set", setting)]
    command = ["train", "--recipe", "lora", "--model", str(model), "--data", str(cache), "--device", "cpu"]
    command += ["--out", str(tmp_path / "run"), *sets]
    shown = CliRunner().invoke(app, [*command, "--dry-run"])
    said = json.loads(shown.stdout)
    assert said["lora"]["rank"] == 2 and said["objective"]["guidance"] == 10.0
    assert said["draw"]["methods"] == {"inverted": 1.0, "f1": 1.0}
    assert not (tmp_path / "run").exists()
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0 and done.stdout.strip() == str(tmp_path / "run" / "lora.safetensors")
    with pytest.raises(InputError, match="starts from a model: add --model"):
        CliRunner().invoke(app, ["train", "--recipe", "full"], catch_exceptions=False)
    with pytest.raises(InputError, match="make a cache with `framepack data cache`, and add --data"):
        CliRunner().invoke(app, ["train", "--recipe", "full", "--model", str(model)], catch_exceptions=False)


def test_every_recipe_is_complete(places: dict[str, tuple[Path, Path]]) -> None:
    from framepack.cli.train import FINE_TUNES

    specs = {family: resolve_model(str(model)).spec for family, (model, _) in places.items()}
    bundled = resolve_model("bundled").spec
    for recipe in FINE_TUNES:
        make = getattr(recipes, recipe.replace("-", "_").replace(".", "_"))
        spec = specs["hunyuan_video"] if "hunyuan" in recipe else specs["wan"]
        spec = bundled if recipe == "bundled-finetune" else spec
        config = make(spec)
        assert set(taught_methods(config, spec)) == set(spec.methods)
    assert recipes.hunyuan_13b_lora(specs["hunyuan_video"]).batch == 64
    assert recipes.lora(bundled).draw.end > 0 and recipes.lora(specs["wan"]).draw.end == 0
