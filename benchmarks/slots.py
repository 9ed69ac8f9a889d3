"""Slots on a real server: two runs side by side, and the seconds until the slot of a killed run was back.

    python -m benchmarks.slots

Each run has lock files of its own where two are compared, so that the server's limit alone is between them. The timeline is
that of the tables: when each fit began, holding its slot, and when it gave it back.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from benchmarks.common import parser, write
from flows.server import prepare_environment

prepare_environment()  # before anything imports Prefect

from skimage import data  # noqa: E402

from tests.flows.services import server  # noqa: E402
from tests.flows.slot_runs import Span, killed_while_holding, overlapping, side_by_side  # noqa: E402

WIDE = 60


def timeline(spans: list[Span]) -> list[dict[str, object]]:
    """The fits by their seconds since the first began, printed with a bar each."""
    first, last = spans[0].started, max(span.finished for span in spans)
    scale = WIDE / (last - first).total_seconds()
    rows: list[dict[str, object]] = []
    for span in spans:
        begun, ended = ((moment - first).total_seconds() for moment in span[:2])
        bar = " " * round(begun * scale) + "█" * max(1, round((ended - begun) * scale))
        print(f"    run {span.run}  {begun:6.2f} – {ended:6.2f} s  {bar}")
        rows.append({"run": span.run, "begun": round(begun, 3), "ended": round(ended, 3)})
    return rows


def main() -> int:
    parser(__doc__).parse_args()
    photo = data.astronaut()
    found: dict[str, object] = {}
    wrong = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with server(folder / "server", DENOISE_STATE_DIR=str(folder / "state")) as (url, _):
            for slots in (1, 2):
                spans = side_by_side(folder / f"slots-{slots}", url, photo, slots, meet=slots == 2)
                pairs = overlapping(spans)
                print(f"two runs with --slots {slots}: {pairs} pairs of their {len(spans)} fits at the same time")
                found[f"slots_{slots}"] = {"overlapping": pairs, "fits": timeline(spans)}
                if (pairs > 0) != (slots == 2):
                    wrong.append(f"--slots {slots}: {pairs} pairs at the same time")
        for restart in (False, True):
            back = killed_while_holding(folder / f"killed-{restart}", photo, restart=restart)
            what = "the server killed and started again too" if restart else "the server going on"
            print(f"SIGKILL in a fit, {what}: the slot was back after {back.seconds:.0f} s; the waiting run said:")
            for line in [line for line in back.said.splitlines() if "waiting for" in line][-2:]:
                print(f"    {line}")
            found[f"killed_{'restarted' if restart else 'running'}_seconds"] = round(back.seconds, 1)
            if back.seconds > 90:
                wrong.append(f"{what}: {back.seconds:.0f} s")
    write("slots", found)
    for problem in wrong:
        print(f"WRONG: {problem}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
