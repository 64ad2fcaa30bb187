"""All measurements that need no files of one's own: `make bench`."""

import platform

import torch
from rich.console import Console

from benchmarks import data_pipes, models


def main() -> None:
    """Run them one after the other."""
    console = Console(highlight=False)
    threads = torch.get_num_threads()
    console.print(f"torch {torch.__version__}, {threads} threads, {platform.machine()}, no GPU is used\n")
    data_pipes.main()
    console.print()
    models.main()


if __name__ == "__main__":
    main()
