"""The held-out trial of a fine-tuning run: what its model makes of ends it never sees, before and after."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from framepack.data.reader import EncodedClips
from framepack.errors import InputError
from framepack.models.bundle import Bundle
from framepack.planning.method import Method
from framepack.training.continuation import Continuations, ends_of
from framepack.training.finetune_config import FineTuneConfig
from framepack.training.progress import Bars
from framepack.training.report import loss_of, report_of, write_report
from framepack.training.samples import Sampling

METRICS = "metrics.jsonl"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Of one run, in its folder ``out``."""

    config: FineTuneConfig
    out: Path
    continuations: Continuations

    @classmethod
    def of(
        cls,
        config: FineTuneConfig,
        out: Path,
        bundle: Bundle,
        clips: EncodedClips,
        methods: dict[str, Method],
    ) -> Trial | None:
        """None where nothing is held out, or where several processes share the model.

        Raises:
            InputError: a share so small that no clip has a latent held out.
        """
        if not config.held_out or (dist.is_initialized() and dist.get_world_size() > 1):
            return None
        ends = ends_of(clips, config.report.ends)
        if not ends:
            raise InputError(
                f"held_out {config.held_out:g} of at most {clips.longest} latents is none: raise it, or "
                "leave it out"
            )
        sampling = Sampling(
            bundle=bundle,
            clips=clips,
            method=methods.get(bundle.spec.default_method, next(iter(methods.values()))),
            objective=config.objective,
            steps=bundle.spec.steps,
            dtype=getattr(torch, config.dtype),
            centroids=None if bundle.codebook is None else bundle.codebook.centroids.to(clips.device),
        )
        return cls(config=config, out=out, continuations=Continuations(sampling, ends, config.report.seeds))

    def before(self, bars: Bars) -> None:
        """Keep what the model makes as it came; to be called before a state of the run is loaded into it."""
        self.continuations.keep(self.out, bars.task("held-out ends, before"))

    def after(self, bars: Bars) -> None:
        """Write the report on the model as it is now, unless it is there.

        Raises:
            OutputError: it cannot be written.
        """
        config, continuations = self.config, self.continuations
        if report_of(self.out).get("steps") == config.steps:
            return
        made = continuations.make(bars.task("held-out ends, after"))
        before = continuations.keep(self.out, bars.task("held-out ends, before"))
        clips, method = continuations.sampling.clips, continuations.sampling.method
        compared = continuations.compare(before, made, bars.task("held-out ends, compared"))
        said = {
            "steps": config.steps,
            "held_out": config.held_out,
            "method": str(method),
            "seeds": config.report.seeds,
            "loss": loss_of(self.out / METRICS),
            "not_drawn": int((clips.lengths == 0).sum()),
        }
        write_report(compared, self.out, said)
