"""What the benchmarks share: how results are shown, and how a run is timed."""
