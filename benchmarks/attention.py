"""Explicit attention against PyTorch's fused kernel, forward and backward, in a block of the bundled model.

    python benchmarks/attention.py

Prints the median time of both and their ratio, on one thread and in bfloat16 as in training.
"""

from __future__ import annotations

import contextlib
import statistics
import time

import torch
from diffusers.models.transformers.transformer_wan import WanTransformerBlock

from framepack.models.attention import ExplicitAttention

BATCH, TOKENS, WORDS, HEADS, HEAD_DIM, REPEATS = 8, 544, 8, 3, 64, 9


def measure(attention) -> float:
    """Median seconds of one forward and backward pass."""
    width = HEADS * HEAD_DIM
    torch.manual_seed(0)
    block = WanTransformerBlock(width, 4 * width, HEADS, "rms_norm_across_heads", True).bfloat16()
    x = torch.randn(BATCH, TOKENS, width, dtype=torch.bfloat16)
    prompt = torch.randn(BATCH, WORDS, width, dtype=torch.bfloat16)
    temb = torch.randn(BATCH, 6, width, dtype=torch.bfloat16)
    rotary = (torch.randn(1, TOKENS, 1, HEAD_DIM), torch.randn(1, TOKENS, 1, HEAD_DIM))
    times = []
    for _ in range(REPEATS + 2):
        begun = time.perf_counter()
        with attention():
            block(x.clone().requires_grad_(), prompt, temb, rotary).sum().backward()
        times.append(time.perf_counter() - begun)
    return statistics.median(times[2:])


def main() -> None:
    torch.set_num_threads(1)
    fused, explicit = measure(contextlib.nullcontext), measure(ExplicitAttention)
    print(f"fused {1e3 * fused:.0f} ms, explicit {1e3 * explicit:.0f} ms, ratio {fused / explicit:.2f}")


if __name__ == "__main__":
    main()
