"""The paper's seven metrics as their authors publish them: their code, their weights, or nothing.

Each runs the published package; what is here hands frames over and takes scores per frame or window back.
None of them was tried with its authors' weights, for want of those. MUSIQ, the LAION head, AMT, RAFT and
ViCLIP were run through their packages (pyiqa 0.1.16, vbench 0.1.5) with random weights, and their scores are
those of VBench's own functions; of RAFT that is a verdict only, which was 0 throughout. Anatomy and identity
run on CUDA alone, from a checkout of VBench-2.0, and were tried against stand-ins only.

Legend: N frames, H W pixels, K windows.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from framepack.metrics.metric import Metric, Per, Scorer, Subject, windows
from framepack.metrics.people import ANATOMY, IDENTITY, anatomy, identity
from framepack.metrics.weights import Needs, Weights, folder_of

BATCH = 16
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
LONGEST = 512
"""Side in pixels to which VBench shrinks larger frames for MUSIQ."""

MUSIQ = Needs(
    modules=("pyiqa", "torchvision"),
    install="pip install pyiqa",
    weights=(
        Weights(
            path="pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",
            origin="github.com/chaofengc/IQA-PyTorch, release v0.1-weights",
            hub="chaofengc/IQA-PyTorch-Weights",
        ),
    ),
)
CLIP = "openai/clip-vit-large-patch14"
LAION = Needs(
    modules=("transformers",),
    install="pip install transformers",
    weights=(
        Weights(
            path="aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth",
            origin="github.com/LAION-AI/aesthetic-predictor",
        ),
        *(
            Weights(path=f"clip_model/{CLIP.split('/')[1]}/{file}", origin=f"huggingface.co/{CLIP}", hub=CLIP)
            for file in ("config.json", "model.safetensors")
        ),
    ),
)
_VBENCH = "pip install --no-deps vbench decord easydict ftfy imageio omegaconf antlr4-python3-runtime==4.9.3"
AMT = Needs(
    modules=("vbench", "torchvision", "cv2", "decord", "imageio", "omegaconf"),
    install=f"{_VBENCH}, and torchvision",
    weights=(
        Weights(path="amt_model/amt-s.pth", origin="huggingface.co/lalala125/AMT", hub="lalala125/AMT"),
    ),
)
RAFT = Needs(
    modules=("vbench", "torchvision", "cv2", "decord", "easydict"),
    install=f"{_VBENCH}, and torchvision",
    weights=(
        Weights(
            path="raft_model/models/raft-things.pth", origin="models.zip of github.com/princeton-vl/RAFT"
        ),
    ),
)
VICLIP = Needs(
    modules=("vbench", "torchvision", "decord", "einops", "ftfy", "timm"),
    install=f"{_VBENCH} timm einops, and torchvision",
    weights=(
        Weights(
            path="ViCLIP/ViClip-InternVid-10M-FLT.pth",
            origin="huggingface.co/OpenGVLab/VBench_Used_Models",
            hub="OpenGVLab/VBench_Used_Models",
        ),
        Weights(
            path="ViCLIP/bpe_simple_vocab_16e6.txt.gz",
            origin="github.com/openai/CLIP, or the package openai-clip",
        ),
    ),
)


def clarity(device: str) -> Scorer:
    """MUSIQ trained on SPAQ, each frame as VBench's imaging quality has it: (N,) of 0 to 100."""
    import torch
    import torch.nn.functional as F
    from pyiqa.archs.musiq_arch import MUSIQ as Network

    network = Network(pretrained=False)
    network.load_state_dict(_state(MUSIQ.file(MUSIQ.weights[0].path)))
    network.to(device).eval()

    @torch.inference_mode()
    def score(subject: Subject) -> NDArray[np.float64]:
        height, width = subject.frames.shape[1:3]
        scale = min(1.0, LONGEST / max(height, width))
        found = []
        for frame in subject.frames:
            pixels = _pixels(frame[None], device)
            if scale < 1:
                pixels = F.interpolate(pixels, (int(scale * height), int(scale * width)), mode="bilinear")
            found.append(float(network(pixels / 255)))
        return np.array(found)

    return score


def aesthetic(device: str) -> Scorer:
    """LAION's linear predictor on CLIP ViT-L/14, as in VBench's aesthetic quality: (N,) of 0 to 10.

    CLIP is transformers' own, from the hub's weights of the same network.
    """
    import torch
    import torch.nn.functional as F

    config = LAION.file(LAION.weights[1].path)
    from transformers import CLIPVisionModelWithProjection

    clip = CLIPVisionModelWithProjection.from_pretrained(config.parent, local_files_only=True)
    clip.to(device).eval()
    head = _state(LAION.file(LAION.weights[0].path))
    weight, bias = (head[name].to(device) for name in ("weight", "bias"))
    side = clip.config.image_size

    @torch.inference_mode()
    def score(subject: Subject) -> NDArray[np.float64]:
        found = []
        for start in range(0, len(subject.frames), BATCH):
            pixels = _clip_pixels(subject.frames[start : start + BATCH], side, device)
            features = F.normalize(clip(pixels).image_embeds, dim=-1)
            found.append(F.linear(features, weight, bias)[:, 0].cpu().numpy())
        return np.concatenate(found).astype(np.float64)

    return score


def motion_smoothness(device: str) -> Scorer:
    """VBench's motion smoothness, for each frame that AMT-S interpolates: every second one, of 0 to 1.

    1 - mean absolute difference / 255 to the frame made from its neighbours; their mean is VBench's score.
    """
    module = _vbench("motion_smoothness")
    config = folder_of("vbench") / "third_party/amt/cfgs/AMT-S.yaml"
    motion = module.MotionSmoothness(str(config), str(AMT.file(AMT.weights[0].path)), _kind(device))
    differ = motion.get_diff

    def score(subject: Subject) -> NDArray[np.float64]:
        differences: list[float] = []

        def get_diff(one: Any, other: Any) -> float:
            differences.append(float(differ(one, other)))
            return differences[-1]

        motion.get_diff = get_diff
        motion.fp.get_frames = lambda path: list(subject.frames)
        motion.motion_score(".mp4")
        return (255 - np.array(differences)) / 255

    return score


def dynamic_degree(device: str) -> Scorer:
    """VBench's dynamic degree: whether RAFT sees enough motion, 0 or 1, in each window of the video (K,)."""
    import torch
    from easydict import EasyDict

    module = _vbench("dynamic_degree")
    model = str(RAFT.file(RAFT.weights[0].path))
    options = EasyDict(model=model, small=False, mixed_precision=False, alternate_corr=False)
    dynamic = module.DynamicDegree(options, _kind(device))

    @torch.inference_mode()
    def score(subject: Subject) -> NDArray[np.float64]:
        found = []
        for window in windows(len(subject.frames)):
            frames = subject.frames[window][:: _raft_step(subject)]
            dynamic.get_frames = lambda path, frames=frames: [_pixels(f[None], device) for f in frames]
            found.append(float(dynamic.infer(".mp4")))
        return np.array(found)

    return score


def semantic(device: str) -> Scorer:
    """VBench's overall consistency: cosine of ViCLIP's features of 8 frames and prompt, by window (K,)."""
    import torch

    _vbench("utils")
    # Its text encoder imports what newer setuptools no longer have.
    if "pkg_resources" not in sys.modules:
        import packaging.version

        stand_in = ModuleType("pkg_resources")
        stand_in.packaging = packaging  # type: ignore[attr-defined]
        sys.modules["pkg_resources"] = stand_in
    from vbench.third_party.ViCLIP.simple_tokenizer import SimpleTokenizer
    from vbench.third_party.ViCLIP.viclip import ViCLIP
    from vbench.utils import get_frame_indices

    tokenizer = SimpleTokenizer(str(VICLIP.file(VICLIP.weights[1].path)))
    network = ViCLIP(tokenizer=tokenizer, pretrain=str(VICLIP.file(VICLIP.weights[0].path)))
    network.to(device).eval()

    @torch.inference_mode()
    def score(subject: Subject) -> NDArray[np.float64]:
        text = network.get_text_features(subject.prompt, tokenizer, {})
        found = []
        for window in windows(len(subject.frames)):
            frames = subject.frames[window]
            chosen = get_frame_indices(8, len(frames), sample="middle")
            pixels = _clip_pixels(frames[chosen], 224, device)
            found.append(float((network.get_vid_features(pixels[None]) @ text.T)[0, 0]))
        return np.array(found)

    return score


# What they share --------------------------------------------------------------------------------------


def _state(path: Any) -> dict[str, Any]:
    """A file of weights, tensors only."""
    import torch

    state = torch.load(path, map_location="cpu", weights_only=True)
    return {name.removeprefix("module."): value for name, value in state.items()}


def _pixels(frames: NDArray[np.uint8], device: str) -> Any:
    """float (N, 3, H, W) in 0..255."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(frames)).to(device).permute(0, 3, 1, 2).float()


def _clip_pixels(frames: NDArray[np.uint8], side: int, device: str) -> Any:
    """(N, 3, side, side) as VBench prepares frames for CLIP: bicubic without antialiasing, the middle."""
    import torch
    import torch.nn.functional as F

    height, width = frames.shape[1:3]
    short = min(height, width)
    size = (side * height // short, side * width // short)
    # Resized tensors of bytes are rounded.
    pixels = F.interpolate(_pixels(frames, device), size, mode="bicubic").clamp(0, 255).round()
    top, left = (round((length - side) / 2) for length in size)
    pixels = pixels[..., top : top + side, left : left + side] / 255
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    return (pixels - mean) / std


def _vbench(module: str) -> Any:
    """A module of VBench, whose files of weights are where it looks for them itself."""
    import importlib

    os.environ.setdefault("VBENCH_CACHE_DIR", str(VICLIP.weights[0].place.parent.parent))
    return importlib.import_module(f"vbench.{module}")


def _kind(device: str) -> str:
    """VBench compares with "cuda" to learn how much memory there is."""
    return "cuda" if device == "cuda:0" else device


def _raft_step(subject: Subject) -> int:
    """VBench looks at 8 frames a second."""
    return max(1, round(subject.fps / 8))


def _too_short_for_raft(subject: Subject) -> str | None:
    window = windows(len(subject.frames))[0]
    looked_at = len(range(*window.indices(len(subject.frames)))[:: _raft_step(subject)])
    if looked_at >= 4:
        return None
    return (
        f"a seventh of {len(subject.frames)} frames is too short to tell motion: 4 at 8 a second are needed"
    )


def _no_prompt(subject: Subject) -> str | None:
    return None if subject.prompt else "its prompt is not known"


def _published(
    name: str,
    title: str,
    unit: str,
    source: str,
    needs: Needs,
    load: Callable[[str], Scorer],
    per: Per = "frame",
    **more: Any,
) -> Metric:
    return Metric(
        name=name,
        title=title,
        unit=unit,
        better="higher",
        source=source,
        per=per,
        needs=str(needs),
        stands_for=name,
        missing=needs.missing,
        get=needs.get,
        load=load,
        **more,
    )


PUBLISHED: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        _published("clarity", "Clarity", "", "MUSIQ on SPAQ; Ke and others 2021", MUSIQ, clarity),
        _published(
            "aesthetic", "Aesthetic", "", "LAION aesthetic predictor on CLIP ViT-L/14, 2022", LAION, aesthetic
        ),
        _published(
            "motion-smoothness",
            "Motion smoothness",
            "",
            "VBench (Huang and others 2024) with AMT-S (Li and others 2023)",
            AMT,
            motion_smoothness,
        ),
        _published(
            "dynamic-degree",
            "Dynamic degree",
            "share of windows",
            "VBench (Huang and others 2024) with RAFT (Teed and Deng 2020)",
            RAFT,
            dynamic_degree,
            "window",
            lacks=_too_short_for_raft,
        ),
        _published(
            "semantic",
            "Semantic consistency with the prompt",
            "cosine",
            "VBench (Huang and others 2024) with ViCLIP (Wang and others 2024)",
            VICLIP,
            semantic,
            "window",
            lacks=_no_prompt,
        ),
        _published(
            "anatomy", "Human anatomy", "share", "VBench-2.0 (Zheng and others 2025)", ANATOMY, anatomy
        ),
        _published(
            "identity",
            "Human identity",
            "share",
            "VBench-2.0 (Zheng and others 2025): ArcFace (Deng and others 2019) on faces of RetinaFace",
            IDENTITY,
            identity,
        ),
    )
}
