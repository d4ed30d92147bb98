"""VBench-2.0's two metrics of people: their anatomy, and whether a face stays the same person's.

Its package on PyPI lacks the code of both, so they need a checkout of its repository on the path; and that
code runs on CUDA alone. Frames without people have no score.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from framepack.metrics.metric import Scorer, Subject
from framepack.metrics.weights import Needs, Weights, folder_of
from framepack.video.io import write_video

CHECKOUT = "the folder VBench-2.0 of github.com/Vchitect/VBench on PYTHONPATH"
DRIVE = "the links in VBench-2.0/pretrained"
FACES = 20
"""Frames with a face, after the first, without which VBench-2.0 tells nothing."""


def _weights(path: str, origin: str = DRIVE) -> Weights:
    return Weights(path=path, origin=origin, variable="VBENCH2_CACHE_DIR")


ANATOMY = Needs(
    modules=("vbench2/third_party/ViTDetector/detect.py", "mmdet", "mmyolo", "torchvision", "timm"),
    install=f"{CHECKOUT}, and what its readme installs for human anatomy",
    weights=(
        _weights("YOLO-World/yolo_world_v2_xl_obj365v1_goldg_cc3mlite_pretrain-5daf1395.pth"),
        *(_weights(f"anomaly_detector/{part}.pth") for part in ("human", "face", "hand")),
    ),
    cuda=True,
)
RETINA = "retinaface_resnet50_2020-07-20-f168fae3c.zip"
IDENTITY = Needs(
    modules=("vbench2/third_party/arcface/models/resnet.py", "retinaface", "torchvision", "decord"),
    install=f"{CHECKOUT}, and what its readme installs for human identity (retinaface-pytorch among it)",
    weights=(
        _weights("arcface/resnet18_110.pth"),
        _weights(RETINA, "github.com/ternaus/retinaface, release 0.01"),
    ),
    cuda=True,
)


def anatomy(device: str) -> Scorer:
    """VBench-2.0's human anatomy: the share of a frame's people that its detectors find nothing wrong with.

    (N,) of 0 to 1. VBench-2.0 counts people over a whole video; the mean over frames is the same where every
    frame shows as many.
    """
    from vbench2.third_party.ViTDetector.detect import Analyzer, Detector
    from vbench2.utils import init_submodules

    told = init_submodules(["Human_Anatomy"])["Human_Anatomy"]
    around = folder_of("vbench2").parent  # where its configurations are relative to
    configs = {
        part: each | {"cfg_path": str(around / each["cfg_path"])}
        for part, each in told["analyzer_configs"].items()
    }
    detector = Detector(
        config_file=str(around / told["detector_config"]), weight_file=told["detector_weights"], device=device
    )
    analyzer = Analyzer(
        model_configs=configs,
        device=device,
        batch_size=told["batch_size"],
        class_thresholds={part: each["threshold"] for part, each in configs.items()},
    )

    def score(subject: Subject) -> NDArray[np.float64]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "subject.mp4"
            write_video(path, iter(subject.frames), subject.fps)
            found = analyzer.analyze(str(path), detector.detect_video(str(path)))
        return np.array([_healthy(frame) for frame in found["frame_results"]])

    return score


def _healthy(frame: dict[str, Any]) -> float:
    people = frame["person_count"]
    return 1 - frame["abnormal_count"] / people if people else np.nan


def identity(device: str) -> Scorer:
    """VBench-2.0's human identity: whether a frame's face is the first's, by ArcFace on RetinaFace's box.

    (N,) of 0 or 1; frames without exactly one face have no score, and no frame has where the first shows none
    or fewer than `FACES` others do.
    """
    import torch
    from retinaface.predict_single import Model
    from vbench2.human_identity import IDTracker
    from vbench2.third_party.arcface.models import resnet_face18

    retina = IDENTITY.file(RETINA)
    faces = Model(max_size=2048, device=device)
    # Reads the archive that lies there; the address is only its name.
    faces.load_state_dict(
        torch.hub.load_state_dict_from_url(
            f"https://{retina.name}", model_dir=str(retina.parent), map_location="cpu", weights_only=True
        )
    )
    network = resnet_face18(use_se=False)
    state = torch.load(IDENTITY.file("arcface/resnet18_110.pth"), map_location="cpu", weights_only=True)
    network.load_state_dict({name.replace("module.", ""): value for name, value in state.items()})
    network.to(device).eval()

    def score(subject: Subject) -> NDArray[np.float64]:
        tracker, scores = IDTracker(), np.full(len(subject.frames), np.nan)
        for n, frame in enumerate(subject.frames):
            same, valid = tracker.update(frame.copy(), n, faces, network)
            if valid:
                scores[n] = float(same)
            elif n == 0:
                return scores
        scores[0] = np.nan  # it is what the others are compared with
        if np.isfinite(scores).sum() < FACES:
            scores[:] = np.nan
        return scores

    return score
