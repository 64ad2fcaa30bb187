"""What a step costs before it runs: sizes, FLOPs, memory, time, and the cheapest way that fits."""
