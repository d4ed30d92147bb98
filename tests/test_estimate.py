"""Estimates before loading, against what the same models really hold, and what people are told of them."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from framepack.cli import main
from framepack.codecs.streaming import stream_decoder
from framepack.codecs.video_vae import load_codec
from framepack.errors import InputError, UnknownNameError
from framepack.evaluation.scale.measured import Measuring
from framepack.generation.decode import decode_frames
from framepack.generation.pipeline import FramePackPipeline
from framepack.models.loading import load_bundle
from framepack.models.wan import PackedWanTransformer3DModel
from framepack.packing.schedule import Level
from framepack.planning.method import named_method
from framepack.planning.timeline import Timeline
from framepack.resources.codec_cost import CodecCost
from framepack.resources.companions import PUBLISHED, encoders
from framepack.resources.estimate import Estimate, estimate
from framepack.resources.fitting import RESERVE
from framepack.resources.hollow import find_architecture
from framepack.resources.machine import GB
from framepack.resources.policy import LOWEST, POLICIES, SPLIT, find_policy
from framepack.resources.tally import Tally, bytes_of, tensors_in
from framepack.resources.weights import NF4_BLOCK, weigh
from tiny import save_tiny
from tiny_framepack import framepack_transformer, picture, save_parts, save_released
from tiny_parts import WIDTH, save_wan, wan_vae

pytestmark = pytest.mark.usefixtures("one_thread")

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SIZE = (64, 96)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """Of a codec of single frames."""
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def hunyuan(tmp_path_factory) -> Path:
    """HunyuanVideo as it is released, with all parts beside it."""
    folder = save_parts(tmp_path_factory.mktemp("models") / "framepacki2v")
    return save_released(folder)


@pytest.fixture(scope="module")
def wan(tmp_path_factory, tiny) -> Path:
    """Wan with a video codec and umT5."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "wan"
    base = (1, 2, 2)
    method = named_method("f1", base, 9)
    architecture = find_architecture(str(tiny))
    model = PackedWanTransformer3DModel(
        patch_size=base,
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=16,
        out_channels=16,
        text_dim=WIDTH,
        freq_dim=16,
        ffn_dim=48,
        num_layers=3,
        context_kernels=(base, (2, 4, 4), (4, 8, 8)),
        latent_channels=16,
    )
    folder.mkdir()
    model.save_pretrained(folder / "transformer")
    wan_vae().save_pretrained(folder / "vae")
    save_wan(folder)
    spec = replace(
        architecture.spec,
        name="tiny wan",
        base_kernel=base,
        latent_channels=16,
        temporal_stride=4,
        buckets=(SIZE,),
        methods={"f1": method},
        default_method="f1",
    )
    spec.save(folder)
    return folder


def of(folder: Path, **options) -> Estimate:
    wanted = {"size": SIZE, "device": "cpu", "dtype": "float32"}
    return estimate(str(folder), **wanted | options)


def bytes_held(*modules) -> int:
    return bytes_of(tensor for module in modules for tensor in tensors_in(module))


# Weights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["tiny", "wan", "hunyuan"])
def test_weights_are_those_of_the_loaded_model(family, request):
    folder = request.getfixturevalue(family)
    architecture, bundle = find_architecture(str(folder)), load_bundle(str(folder))
    kernels = bundle.spec.method(None).schedule.kernels
    bundle.transformer.add_kernels(kernels)
    assert weigh(architecture.hollow(kernels, torch.float32)).total == bytes_held(bundle.transformer)
    codec = CodecCost(architecture, (4, 4), CPU)
    assert codec.weights.total == bytes_held(getattr(bundle.codec, "vae", bundle.codec))
    found = {encoder.name: encoder.weights.total for encoder in encoders(architecture, CPU)}
    if family == "tiny":
        assert found == {"conditioner": bytes_held(bundle.conditioner)}
        return
    for name, held in found.items():
        files = (folder / name).glob("*.safetensors")
        # Beside the tensors a file has a header; buffers that are not saved are in neither of them.
        assert held == pytest.approx(sum(f.stat().st_size for f in files), rel=0.1)


def test_fp8_and_nf4_are_as_the_libraries_store_them(wan):
    functional = pytest.importorskip("bitsandbytes").functional
    architecture = find_architecture(str(wan))
    real = load_bundle(str(wan)).transformer.to(torch.bfloat16)
    found = weigh(architecture.hollow(dtype=torch.bfloat16), "nf4")
    hollow = architecture.hollow(dtype=torch.bfloat16)
    expected = bytes_held(hollow)
    largest = 0
    for name, layer in real.named_modules():
        kept = any(pattern in name for pattern in real._skip_layerwise_casting_patterns)
        if isinstance(layer, torch.nn.Linear) and not kept:
            packed, state = functional.quantize_4bit(layer.weight.data, blocksize=NF4_BLOCK, quant_type="nf4")
            expected += packed.nbytes + state.absmax.nbytes - layer.weight.nbytes
            largest = max(largest, layer.weight.nbytes + (layer.bias.nbytes if layer.bias is not None else 0))
    assert (found.total, found.unpacked) == (expected, largest)

    cast = weigh(architecture.hollow(dtype=torch.bfloat16), "fp8")
    model = architecture.hollow(dtype=torch.bfloat16)
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    assert cast.total == sum(p.nbytes for p in (*model.parameters(), *model.buffers()))
    plain = weigh(architecture.hollow(dtype=torch.bfloat16))
    assert found.total < cast.total < plain.total
    assert plain.unpacked == 0 and cast.unpacked > 0


def test_published_parts_have_their_parameters():
    """Billions: Llama 3 8B without its head, CLIP-L's text half, SigLIP's picture half, umT5-XXL."""
    found = {e.name: e for e in encoders(find_architecture("base"), CUDA)}
    assert [*found] == [name for family, name in PUBLISHED if family == "hunyuan_video"]
    assert found["text_encoder"].weights.total / 2e9 == pytest.approx(7.505, rel=0.001)
    assert found["text_encoder_2"].weights.total / 2e9 == pytest.approx(0.123, rel=0.01)
    assert found["image_encoder"].weights.total / 2e9 == pytest.approx(0.428, rel=0.01)
    umt5 = encoders(find_architecture("wan-14b"), CUDA)[0]
    assert umt5.weights.total / 2e9 == pytest.approx(5.681, rel=0.001)
    assert all(e.published for e in found.values())


def test_published_codecs_have_their_parameters():
    """Millions: of HunyuanVideo's, Wan 2.1's and Wan 2.2's VAE, at half or full precision as they run."""
    for name, millions, size in (("base", 246.5, 2), ("wan-1.3b", 126.9, 4), ("wan-5b", 704.7, 4)):
        cost = CodecCost(find_architecture(name), (4, 4), CUDA)
        assert cost.weights.total / size / 1e6 == pytest.approx(millions, rel=0.001), name


# At work -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["wan", "hunyuan"])
def test_activations_are_those_of_a_section_that_runs(family, request):
    folder = request.getfixturevalue(family)
    found = of(folder, seconds=8, guidance=1.0)
    stage = next(s for s in found.stages if s.name == "transformer")
    architecture = find_architecture(str(folder))
    spec, method = architecture.spec, architecture.spec.method(None)
    measuring = Measuring(
        architecture, (8, 12), device=CPU, dtype=torch.float32, steps=2, guidance=1.0, limit=0.0
    )
    timeline = Timeline(frames=1 + 36, fps=spec.fps, stride=4, known=(0,))
    (measured,) = measuring.measure({"packed": method}, timeline, [4], lambda line: None)
    real = measured.peak - bytes_held(measuring.model)
    print(f"{family}: activations {stage.activations / real - 1:+.1%} of those of a real section")
    assert stage.activations == pytest.approx(real, rel=0.15)
    assert found.section_operations == pytest.approx(found.steps * measured.operations / 2, rel=1e-6)


def decoded(codec, latents: int, size: tuple[int, int], *, copies: bool = True) -> int:
    """Most bytes at once of a real decode, beside the weights; ``copies`` as of a Tally."""
    torch.manual_seed(0)
    stride = codec.spatial_stride
    video = torch.randn(1, codec.latent_channels, latents, size[0] // stride, size[1] // stride)
    timeline = Timeline(frames=1 + (latents - 1) * codec.temporal_stride, fps=8.0, stride=4)
    with Tally(tensors_in(codec), copies=copies) as tally:
        before = tally.live
        frames = sum(1 for _ in decode_frames(codec, lambda at: video[:, :, list(at)], timeline))
    assert frames == timeline.frames
    return tally.peak - before


@pytest.mark.parametrize("latents", [1, 4, 11])
@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("family", ["wan", "hunyuan"])
def test_decoding_takes_what_a_real_decode_takes(family, tiled, latents, request):
    folder = request.getfixturevalue(family)
    codec = load_codec(folder / "vae")
    cost = CodecCost(find_architecture(str(folder)), (8, 12), CPU)
    for vae in (codec.vae, cost._codec.vae):  # tiles small enough that there are some
        vae.tile_sample_min_height = vae.tile_sample_min_width = 32
        vae.tile_sample_stride_height = vae.tile_sample_stride_width = 24
    if tiled:
        codec.enable_tiling()
    real, found = decoded(codec, latents, SIZE), cost.decode(latents, tiled=tiled)
    print(f"{family}, {latents} latents, tiled {tiled}: {found.activations / real - 1:+.1%} of a real decode")
    assert found.activations == pytest.approx(real, rel=0.15)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_convolution_on_a_cpu_copies_what_it_is_given(mode):
    convolution = torch.nn.Conv3d(4, 2, 3)
    with mode():
        given = torch.zeros(1, 4, 8, 8, 8)
        peaks = []
        for copies in (False, True):
            with Tally(copies=copies) as tally:
                made = convolution(given)
            peaks.append(tally.peak)
    assert peaks == [made.nbytes, made.nbytes + given.nbytes]


def test_caches_of_other_tiles_lie_in_the_system(wan):
    """What a real decode in tiles holds, less the caches of all tiles but one."""
    codec, architecture = load_codec(wan / "vae"), find_architecture(str(wan))
    cost = CodecCost(architecture, (8, 12), CUDA)
    for vae in (codec.vae, cost._codec.vae):
        vae.tile_sample_min_height = vae.tile_sample_min_width = 32
        vae.tile_sample_stride_height = vae.tile_sample_stride_width = 24
    codec.enable_tiling()
    decoder = stream_decoder(codec)
    for latent in torch.randn(1, 16, 3, 8, 12).split(1, dim=2):
        decoder.push(latent)
    caches = [
        bytes_of(kept for kept in cache if isinstance(kept, torch.Tensor))
        for cache in decoder._caches.values()
    ]
    assert len(caches) == 12
    real, found = decoded(codec, 5, SIZE, copies=False), cost.decode(5, tiled=True)
    assert found.activations == pytest.approx(real - (sum(caches) - max(caches)), rel=0.15)
    assert found.activations < 0.7 * real
    # There and back with every push of two latents.
    assert found.moved == 2 * sum(caches) * 3 and cost.decode(5).moved == 0


def test_operations_of_a_long_decode_follow_from_those_of_its_beginning(wan, hunyuan):
    """What is added by the latent is what is counted where all of it runs."""
    for folder in (wan, hunyuan):
        cost = CodecCost(find_architecture(str(folder)), (8, 12), CPU)
        first = cost._pushes(50)
        counted = sum(first)
        longer = counted + 2 * first[-1]
        foretold = cost.decode(longer).operations
        cost._pushes = lambda latents, every=(*first, first[-1], first[-1]): [*every]  # type: ignore
        assert foretold == pytest.approx(cost.decode(longer).operations, rel=0.02)


def test_the_whole_run_holds_what_was_foretold(tiny):
    """Everything on one device: the peak of a video that is really made, frames and all."""
    found = of(tiny, size=(32, 32), seconds=2)
    pipe = FramePackPipeline.from_pretrained(tiny, torch_dtype=torch.float32, device="cpu")
    with Tally([*tensors_in(pipe.transformer), *tensors_in(pipe.bundle.codec)], copies=True) as tally:
        video = pipe("a red ball moves right", image=picture(32, 32), num_frames=found.frames)
    assert len(video.frames) == found.frames
    choice = next(c for c in found.choices if c.policy.name == "full")
    print(f"whole run: {choice.device / tally.peak - 1:+.1%} of a real one")
    assert choice.device == pytest.approx(tally.peak, rel=0.15)


# Policies ------------------------------------------------------------------------------------------------


def test_policies_have_the_names_that_they_are_put_together_from():
    assert find_policy("low") is POLICIES[LOWEST] and POLICIES[LOWEST].storage is None
    for name, policy in POLICIES.items():
        assert name == policy.name and find_policy(name) is policy
        assert policy.tiled == name.endswith("-tiled") and (policy.storage or "") in name
        places = {"models": "model", "layers": "layer", "split": "split"}
        assert policy.placement == places.get(name.split("-")[0], "device")
    assert len({(p.placement, p.storage, p.tiled) for p in POLICIES.values()}) == len(POLICIES)
    with pytest.raises(UnknownNameError, match=r"memory policy 'lo'.*auto, low, full"):
        find_policy("lo")


@pytest.fixture(scope="module")
def large() -> Estimate:
    """Of a published size, on a GPU that is not here."""
    return estimate("wan-1.3b", size=(128, 128), memory=1000, system=1000, flops_per_second=1e14)


def by_name(found: Estimate):
    return {choice.policy.name: choice for choice in found.choices}


def test_each_step_down_takes_less_of_the_device(large):
    found = by_name(large)
    for first, second in (("full", "models"), ("models", "layers"), ("full", "fp8"), ("fp8", "nf4")):
        assert found[first].device > found[second].device, (first, second)
    for name, choice in found.items():
        if not choice.policy.tiled:
            assert found[f"{name}-tiled"].device <= choice.device
    # The transformer and the codec are there while the encoder works: all bytes of three.
    stages = {stage.name: stage for stage in large.stages}
    parts = ("transformer", "decode", "text_encoder")
    assert found["full"].device >= sum(stages[name].weights for name in parts)
    assert found["full"].device - found["models"].device >= stages["decode"].weights
    assert found["models"].system > found["layers"].system > found["full"].system
    assert found["full"].seconds < found["models"].seconds and found["full"].moved == 0


def test_what_fits_comes_first_and_the_fastest_of_it(large):
    assert all(choice.fits and choice.fits_system for choice in large.choices)
    assert [c.seconds for c in large.choices] == sorted(c.seconds for c in large.choices)
    assert large.chosen is not None and large.chosen.policy.name == "full"


@settings(max_examples=20, deadline=None)
@given(st.floats(0.1, 40), st.floats(1, 80))
def test_a_policy_fits_where_its_bytes_are_there(large, memory, system):
    found = replace(
        large,
        choices=tuple(
            replace(c, fits=c.device <= memory * 1e9, fits_system=c.system <= system * 1e9)
            for c in large.choices
        ),
    )
    chosen = found.chosen
    fitting = [c for c in found.choices if c.device <= memory * 1e9 and c.system <= system * 1e9]
    assert (chosen is None) == (not fitting)
    if chosen is not None:
        assert chosen.policy.loss == min(c.policy.loss for c in fitting)
        alike = [c for c in fitting if c.policy.loss == chosen.policy.loss]
        assert chosen.seconds == min(c.seconds for c in alike)


def test_longer_videos_take_longer_and_no_more_memory(tiny):
    short, long = (
        by_name(of(tiny, size=(32, 32), seconds=seconds, device="cuda", memory=1, flops_per_second=1e12))
        for seconds in (60, 600)
    )
    for name, choice in long.items():
        assert choice.device == short[name].device and choice.system == short[name].system
        assert 9 < choice.seconds / short[name].seconds < 11 or name.startswith("layers")


def test_a_section_is_decoded_beside_the_next_one_where_both_fit(tiny):
    def told(memory: float, **options):
        found = of(tiny, size=(32, 32), seconds=8, device="cuda", memory=memory, system=1000, **options)
        return by_name(found), {stage.name: stage for stage in found.stages}

    roomy, stages = told(1000, method="f1")
    both = sum(stages[name].weights + stages[name].activations for name in ("transformer", "decode"))
    assert (roomy["full"].stage, roomy["full"].device) == ("transformer, decode", both)
    # With a byte less they take turns.
    tight = told(both / GB + RESERVE - 1e-9, method="f1")[0]["full"]
    least = both - min(stages[name].activations for name in ("transformer", "decode"))
    assert tight.fits and tight.device == least and tight.stage in ("transformer", "decode")
    assert all(roomy[name].stage != "transformer, decode" for name in ("models", "layers"))
    backwards = told(1000, method="inverted")[0]["full"]
    assert backwards.stage != "transformer, decode", "nothing is certain before the last section"


# The command ---------------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["framepack", "estimate", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "150")
        with pytest.raises(SystemExit) as end:
            main()
        told = capsys.readouterr()
        return int(end.value.code or 0), told.out, told.err

    return call


def test_the_command_prints_stages_policies_and_what_auto_takes(run, wan, tiny):
    code, out, _ = run("--model", wan, "--size", "96x64", "--memory", 1, "--system-memory", 1)
    assert code == 0
    for text in ("tiny wan", "96 x 64", "Stages", "text_encoder", "transformer", "decode tiled"):
        assert text in out, text
    assert all((name in out) != (policy.placement == SPLIT) for name, policy in POLICIES.items())
    assert "fits" in out and "auto takes full" in out and "no times" in out
    code, out, _ = run("--model", tiny, "--memory", 0.5, "--system-memory", 1, "--flops-per-second", 1e12)
    assert code == 0 and "nothing fits" in out and "1e+12 FLOP/s" in out


def test_json_says_the_same(run, tiny):
    code, out, _ = run("--model", tiny, "--seconds", 20, "--memory", 2, "--system-memory", 4, "--json")
    told = json.loads(out)
    found = estimate(str(tiny), seconds=20, memory=2, system=4)
    assert code == 0 and told == json.loads(json.dumps(found.to_json()))
    # A codec of single frames has no tiles.
    assert told["chosen"] == "full"
    alone = {n for n, p in POLICIES.items() if not (p.tiled or p.placement == SPLIT)}
    assert {c["policy"] for c in told["choices"]} == alone
    assert told["choices"][0]["seconds"] is None and told["device"] == "cuda"


def test_bad_input_is_told_in_one_line(run, tiny, wan, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(wan, damaged)
    (damaged / "text_encoder" / "config.json").write_text('{"model_type": "umt5", "d_model": "wide"}')
    for arguments, told in {
        ("--size", "wide"): "size 'wide' is not WIDTHxHEIGHT",
        ("--size", "33x32"): "size 33x32: both must be multiples of 8",
        ("--size", "4000x4000"): "sides must be",
        ("--seconds", "-1"): "-1",
        ("--memory", "0"): "--memory 0 must be a number above 0",
        ("--memory", "nan"): "--memory nan must be a number above 0",
        ("--system-memory", "-2"): "--system-memory -2 must be a number above 0",
        ("--bandwidth", "0"): "--bandwidth 0 must be a number above 0",
        ("--steps", "0"): "--steps 0 must be a number above 0",
        ("--devices", "0"): "--devices 0 must be a number above 0",
        ("--device", "cpu", "--devices", "2"): "2 devices are for GPUs, 'cpu' is one: leave --devices out",
        ("--guidance", "-1"): "--guidance -1 must be 0 or more",
        ("--dtype", "fp8"): "dtype 'fp8': choose one of auto, float32, bfloat16, float16",
        ("--device", "tpu"): "device 'tpu' is not on this machine",
        ("--method", "vanila"): "vanila",
        ("--model", "nothing"): "unknown model 'nothing': choose one of bundled, base",
        ("--model", str(damaged)): "text_encoder",
    }.items():
        words = arguments if "--model" in arguments else ("--model", str(tiny), *arguments)
        code, out, err = run(*words)
        lines = [line for line in err.splitlines() if line.startswith("error")]
        assert code == 2 and not out and len(lines) == 1 and told in lines[0], (arguments, err)


def test_a_gpu_that_is_not_here_needs_its_memory(run, tiny):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    code, _, err = run("--model", tiny, "--device", "cuda")
    assert code == 2 and "give --memory" in err


def test_released_configuration_is_found_in_a_folder_of_it(hunyuan):
    found = of(hunyuan, seconds=1)
    assert not any("published" in line for line in found.assumptions)
    assert framepack_transformer().config.num_layers == 1
    with pytest.raises(InputError, match="inf must be a number"):
        of(hunyuan, memory=float("inf"))


def test_levels_of_a_wider_schedule_are_in_the_weights(tiny):
    plain, wide = (
        next(s for s in of(tiny, size=(32, 32), seconds=1, method=m).stages if s.name == "transformer")
        for m in (None, "td_f1k1h8w8_g3")
    )
    assert wide.weights > plain.weights and Level(1, (1, 8, 8)).frames == 1
