"""All measurements that need no files of one's own: `make bench`. Each runs in a process of its own."""

import os
import platform
import subprocess
import sys
from importlib.metadata import version

# names and deberta take many minutes: run them by themselves.
MODULES = ("sources", "cleaning", "normalizing", "packing", "masking", "rows", "models", "saving")


def main() -> None:
    """Run them one after the other, on one thread."""
    print(f"torch {version('torch')}, one thread, {platform.machine()}, no GPU is used")
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")}
    for module in MODULES:
        print(f"\n{module}\n", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{module}"], check=True, env=os.environ | threads)


if __name__ == "__main__":
    main()
