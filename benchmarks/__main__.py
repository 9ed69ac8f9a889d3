"""All benchmarks that take minutes, one after another: `make bench`. The long ones are named at the end."""

from __future__ import annotations

import subprocess
import sys

COMMANDS = (
    ["benchmarks.speed"],
    ["benchmarks.run_on", "confocal_pairs"],
    ["benchmarks.run_on", "kodak24", "--crop", "256", "--", "--noise", "gauss:25"],
)
LONG = "python -m benchmarks.run_on kodak24 --crop 256 -- --noise gauss:25 --preset paper --slots 2"


def main() -> int:
    failed = 0
    for command in COMMANDS:
        print(f"\n$ python -m {' '.join(command)}", flush=True)
        failed += subprocess.run([sys.executable, "-m", *command], check=False).returncode != 0
    print(f"\nAbout half an hour on two cores: {LONG}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
