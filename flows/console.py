"""What the user of a terminal sees while a run goes on and when it has ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from flows.compare import CompareSummary
    from flows.progress import Progress, Summary

_LINE_SECONDS = 10.0
_FAILURES_SHOWN = 10


def duration(seconds: float) -> str:
    """Seconds as a person says them: 41 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


@contextmanager
def progress_on(stream_is_terminal: bool) -> Iterator[Callable[[Progress], None]]:
    """Show progress on stderr: a bar on a terminal, a plain line now and then elsewhere."""
    if stream_is_terminal:
        with _bar() as show:
            yield show
    else:
        yield _lines()


@contextmanager
def _bar() -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[told]}"))
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        line = bar.add_task("scanning", total=None, told="")

        def show(progress: Progress) -> None:
            bar.update(
                line,
                description="denoising" if progress.waiting is None else "waiting",
                total=progress.total,
                completed=min(progress.done + progress.failed + progress.part, progress.total),
                told=_told(progress),
            )

        yield show


def _lines() -> Callable[[Progress], None]:
    shown = 0.0
    last: tuple[int, int] | None = None

    def show(progress: Progress) -> None:
        nonlocal shown, last
        counts = (progress.done, progress.failed)
        ended = sum(counts) == progress.total
        late = time.monotonic() - shown > _LINE_SECONDS
        if (counts != last and (ended or last is None or late)) or (progress.waiting is not None and late):
            shown, last = time.monotonic(), counts
            print(_told(progress), file=sys.stderr, flush=True)

    return show


def _told(progress: Progress) -> str:
    parts = [f"{progress.done} of {progress.total} done"]
    if progress.failed:
        parts.append(f"{progress.failed} failed")
    if progress.waiting is not None:
        parts.append(f"waiting for {progress.waiting}")
    elif progress.seconds > 0 and progress.done:
        parts.append(f"{60 * progress.done / progress.seconds:.3g} images a minute")
    left = progress.seconds_left
    if left is not None and progress.done + progress.failed < progress.total:
        parts.append(f"{duration(left)} left")
    return ", ".join(parts)


def announce(message: str) -> None:
    """A sentence on what the run decided, on stderr."""
    print(printable(message), file=sys.stderr, flush=True)


def print_summary(summary: Summary | CompareSummary) -> None:
    """The end of a run in a few lines: counts on stdout, failures on stderr."""
    counts = [f"{summary.done} done"]
    if summary.already_done:
        counts.append(f"{summary.already_done} done earlier")
    counts.append(f"{summary.failed} failed")
    skipped = getattr(summary, "skipped", 0)
    if skipped:
        counts.append(f"{skipped} not images")
    print(f"{', '.join(counts)}, in {duration(summary.seconds)}")
    from flows.progress import Summary

    if isinstance(summary, Summary):
        _print_files(summary)
    else:
        _print_lines(summary)
    for failure in summary.failures[:_FAILURES_SHOWN]:
        print(f"failed: {printable(failure['source'])}: {printable(failure['error'])}", file=sys.stderr)
    more = (summary.failed if isinstance(summary, Summary) else summary.different_failures) - _FAILURES_SHOWN
    if more > 0:
        print(f"failed: {more} more, see the report", file=sys.stderr)
    if summary.interrupted:
        print("Interrupted. The same command goes on where this one stopped.", file=sys.stderr)


def _print_files(summary: Summary) -> None:
    if summary.psnr_noisy_db is not None and summary.psnr_denoised_db is not None:
        print(f"Mean PSNR {summary.psnr_noisy_db:.2f} dB noisy, {summary.psnr_denoised_db:.2f} dB denoised")
    print(f"Images:  {summary.output}/images")
    print(f"Table:   {summary.results}")
    print(f"Report:  {summary.report}")


def _print_lines(summary: CompareSummary) -> None:
    """A comparison's summary: methods by noises, PSNR, and seconds an image."""
    from tasks.comparison_summary import noise_name

    noises = list(dict.fromkeys(line["noise"] for line in summary.lines))
    at = {(line["noise"], line["candidate"]): line for line in summary.lines}
    names = list(dict.fromkeys(line["candidate"] for line in summary.lines))
    wide = max(map(len, names), default=0)
    print(f"{'PSNR, dB':{wide}}  " + "  ".join(f"{noise_name(noise):>12}" for noise in noises) + f"  {'s/image':>8}")
    for name in names:
        here = [at[noise, name] for noise in noises]
        cells = "  ".join(f"{_figure(line['psnr_db'], '.2f'):>12}" for line in here)
        seconds = [line["seconds"] for line in here if line["seconds"] is not None]
        mean = sum(seconds) / len(seconds) if seconds else None
        print(f"{name:{wide}}  {cells}  {_figure(mean, '.3g'):>8}")
    print(f"Table:   {summary.table}")
    print(f"Report:  {summary.report}")


def _figure(value: float | None, form: str) -> str:
    return "–" if value is None else f"{value:{form}}"


def printable(text: str) -> str:
    """A name on one line of a terminal: control characters, line breaks among them, are shown as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
