"""All benchmarks that take minutes, one after another, then the table of marks: `make bench`. The long ones are named last."""

from __future__ import annotations

import subprocess
import sys

import torch

from benchmarks.marks import commands

OVERVIEW = (
    "benchmarks.speed",
    "benchmarks.corruptions",
    "benchmarks.methods --crop 256 --seeds 1 --only zs-n2n-fast,nl-bayes,zs-fit-fast",
)


def main() -> int:
    failed = 0
    short = [one.text for one in commands() if not one.long and (not one.gpu or torch.cuda.is_available())]
    for command in (*OVERVIEW, *short, "benchmarks.marks"):
        print(f"\n$ python -m {command}", flush=True)
        failed += subprocess.run([sys.executable, "-m", *command.split()], check=False).returncode != 0
    print("\nFrom half an hour to many hours each on two cores:")
    for one in commands():
        if one.long:
            print(f"python -m {one.text}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
