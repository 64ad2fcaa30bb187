"""Parts of every benchmark: turns taken by two sides, rates as printed, and made-up text and names."""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

NUM_TURNS = 5


def write_text(path: Path) -> Path:
    """Documents of made-up words with the frequencies of a natural text (Zipf), 2 million characters."""
    generator = np.random.default_rng(0)
    words = np.array(make_names(generator, 20_000))
    chances = 1 / np.arange(10, 20_010)
    with path.open("w") as file:
        for _ in range(300):
            drawn = words[generator.choice(len(words), 1000, p=chances / chances.sum())]
            drawn[::12] = np.char.add(drawn[::12], ",")
            file.write(json.dumps({"text": " ".join(drawn) + "."}) + "\n")
    return path


def write_names(path: Path) -> Path:
    """200,000 made-up domain names."""
    generator = np.random.default_rng(1)
    path.write_text(
        "\n".join(f"{name}.{number % 97}.com" for number, name in enumerate(make_names(generator, 200_000)))
    )
    return path


def make_names(generator: np.random.Generator, number: int) -> list[str]:
    """Pronounceable strings of 2 to 6 syllables."""
    syllables = np.array([a + b for a in "bcdfglmnprst" for b in "aeiou"])
    drawn = syllables[generator.integers(0, len(syllables), (number, 6))]
    lengths = generator.integers(2, 7, number)
    return ["".join(row[:length]) for row, length in zip(drawn, lengths, strict=True)]


def take_turns(*works: Callable[[], Any]) -> list[float]:
    """Median seconds of each work, all done in turn, once before the clock starts."""
    seconds: list[list[float]] = [[] for _ in works]
    for turn in range(NUM_TURNS + 1):
        for place, work in enumerate(works):
            start = time.perf_counter()
            work()
            if turn:
                seconds[place].append(time.perf_counter() - start)
    return [statistics.median(times) for times in seconds]


def rate(ours: float, peer: float) -> tuple[str, str, str]:
    """Both rates and their ratio as printed."""
    return f"{ours:,.0f}/s", f"{peer:,.0f}/s", f"{ours / peer:.2f}"
