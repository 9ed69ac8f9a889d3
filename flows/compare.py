"""The flow of a comparison: every method at every noise is a run of its own, and what they found makes one table."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from denoise_core import __version__
from denoise_core.device import Device
from flows import preflight
from flows.choices import MOST_SLOTS, MethodChoice, OnExisting, Scope
from flows.compare_config import CompareConfig
from flows.config import RunConfig
from flows.console import duration
from flows.denoise_directory import only_run, run_into, too_many
from flows.engine import opened
from flows.errors import StartError
from flows.progress import Progress, announce, as_part_of, introduce, slug, told
from flows.protocol import protocol_of
from flows.signals import ending_gently
from tasks import comparison, failures, ledger
from tasks import scan as scanning
from tasks.comparison import Cell
from tasks.comparison_page import PAGE, SHEET, write_summary
from tasks.comparison_summary import noise_name
from tasks.faults import Interrupted, interrupt, sentence
from tasks.fit import LEAST_IMAGES, by_kind
from tasks.outputs import lies_below
from tasks.scan import Scan
from tasks.table import DONE, FAILED, text
from tasks.work import Source


@dataclass(frozen=True)
class Planned:
    """A cell, its run, and how many images are still to do."""

    cell: Cell
    config: RunConfig
    todo: int
    done: int


@dataclass(frozen=True)
class CompareSummary:
    """What became of a comparison; ``--json`` prints it."""

    output: str
    images: int
    cells: int  # methods x noises x seeds
    done: int  # images denoised by this run, over all cells
    already_done: int
    failed: int
    interrupted: bool
    seconds: float
    lines: list[dict[str, Any]]  # the summary: a line for every noise and method
    table: str
    report: str
    failures: list[dict[str, str]]  # the first hundred: an image and why, by however many methods
    different_failures: int


@flow(
    name="compare-cell",
    flow_run_name="{config.title}",
    description="One method at one noise.",
    task_runner=ThreadPoolTaskRunner(max_workers=MOST_SLOTS + 1),  # type: ignore[arg-type]
    persist_result=False,
    validate_parameters=True,
)
def compare_cell(config: RunConfig) -> State[Any]:
    """One method at one noise, as `denoise run` does it, without the page."""
    return run_into(config, page=False)


@flow(
    name="compare",
    flow_run_name="{config.title}",
    description="Compare denoising methods on the same images and noise.",
    persist_result=False,
    validate_parameters=True,
)
def compare(config: CompareConfig) -> State[Any]:
    """Every method of ``config`` at every noise and seed; see :class:`flows.compare_config.CompareConfig`.

    The returned state is *Completed* when every image of every cell is done or explained by a row, *Failed* when a whole
    cell broke or more results failed than ``strict`` or ``max_failed`` let, *Cancelled* when the user stopped it. Its data
    is a :class:`CompareSummary`.

    Raises:
        StartError: the comparison cannot start as configured.
    """
    started = time.perf_counter()
    check(config)
    output = config.output.resolve()
    try:
        with ending_gently():
            found = look(config)
        if not found.todo:
            why = failures.told(failures.by_reason(found.refused))
            raise StartError(f"INPUT: there is no image in {config.input} that can be read{why and f': {why}'}")
        with only_run(output, "cells"), ending_gently():
            with opened(config.cell(config.methods[0], config.noises[0], config.seed)) as engine:
                device = engine.devices(config.device)[0]  # a cluster that cannot do it is said now
            introduce(config, device.name, images=len(found.todo), left=len(found.todo))
            cells = _work_through(plan(config, found))
            return _end(config, found, device, cells, started)
    except Interrupted:
        return Cancelled(message="stopped by the user before anything was done")
    finally:
        interrupt.clear()  # it was this run's; a service runs the next flow in the same process


def check(config: CompareConfig, *, writes: bool = True) -> None:
    """Raise :class:`StartError` with one sentence where the comparison cannot start."""
    for candidate in config.methods:
        cell = config.cell(candidate, config.noises[0], config.seed)
        # Whatever a run into the output itself would need, and for each method what it needs.
        preflight.check(
            cell.model_copy(update={"output": config.output}),
            writes=writes and candidate == config.methods[0],
            method_option="--methods",
            compares=True,
        )
    for name in (comparison.TABLE, PAGE, SHEET, comparison.SUMMARY_CSV, comparison.SUMMARY_MD, comparison.PROTOCOL):
        if (config.output / name).is_dir():
            raise StartError(f"OUTPUT: the folder {config.output / name} is in the way: a file is wanted there")
    cells = config.output / "cells"
    if cells.exists() and not cells.is_dir():
        raise StartError(f"OUTPUT: {cells} is in the way: a folder is wanted there")
    if (config.output / "runs").exists():
        raise StartError(f"OUTPUT: {config.output} is that of a run; give the comparison a folder of its own")
    for path in (
        config.cell(candidate, noise, config.seed).output for noise in config.noises for candidate in config.methods
    ):
        preflight.check_apart(config.input, path)
    for path in (*cells.glob("*"), *cells.glob("*/*")):
        if not lies_below(cells, f"{path.relative_to(cells)}/images"):
            raise StartError(f"OUTPUT: {path} leads elsewhere by a link; remove the link")
    if config.on_existing is OnExisting.ERROR and (config.output / comparison.TABLE).exists():
        raise StartError(f"OUTPUT: {config.output} has an earlier comparison and --on-existing is error")


def look(config: CompareConfig) -> Scan:
    """The images of the input; what each cell has done of them is its own ledger's matter.

    Raises:
        StartError: not one of them has a reference.
    """
    found = scanning.scan(
        config.input.resolve(),
        config.output.resolve(),
        max_pixels=int(config.max_megapixels * 1e6),
        axes=config.axes,
        channels=config.channels.value,
        config_digest="",
        redo=True,
        reference=None if config.reference is None else config.reference.resolve(),
    )
    if config.reference is not None and found.todo and all(source.reference_sha256 is None for source in found.todo):
        raise StartError(f"--reference: no image of {config.input} has a file under its name in {config.reference}")
    return found


def plan(config: CompareConfig, found: Scan) -> list[Planned]:
    """The cells in the order in which they are worked on: every method at one noise, then the next noise, then the next seed."""
    planned = []
    for seed in range(config.seed, config.seed + config.seeds):
        for noise in config.noises:
            for candidate in config.methods:
                shares = shares_a_fit(config.cell(candidate, noise, seed), found)
                run = config.cell(candidate, noise, seed, images=_digest(found) if shares else "")
                folder = config.output.resolve() / run.output.relative_to(config.output)
                cell = Cell(candidate, noise, seed, run.clip_noise, run.crop, folder, run.digest())
                done = 0 if run.on_existing is OnExisting.OVERWRITE else _done(cell, found.todo)
                planned.append(Planned(cell, run, len(found.todo) - done, done))
    return planned


def shares_a_fit(run: RunConfig, found: Scan) -> bool:
    """Whether an image's result depends on which others there are: its cell is then that of these images."""
    if run.resolved_method != MethodChoice.ZS_FIT or run.scope not in (Scope.AUTO, Scope.DIRECTORY):
        return False
    most = max(map(len, by_kind(found.todo).values()), default=0)
    return run.scope is Scope.DIRECTORY or most >= LEAST_IMAGES


def _digest(found: Scan) -> str:
    """Eight hexadecimal digits of which images there are."""
    told = "".join(f"{source.sha256} {text(source.name)}\n" for source in found.todo)
    return hashlib.sha256(told.encode()).hexdigest()[:8]


def _done(cell: Cell, sources: Sequence[Source]) -> int:
    rows = ledger.latest_rows(cell.output)
    return sum(
        ledger.is_done(
            rows.get(text(source.name)),
            source_sha256=source.sha256,
            reference_sha256=source.reference_sha256,
            config_digest=cell.config_digest,
            output=cell.output,
        )
        for source in sources
    )


def _work_through(cells: list[Planned]) -> list[Planned]:
    """Run the cells that have something to do; those cells again, broken ones with their error."""
    whole = _Whole(cells)
    ended: list[Planned] = []
    for number, planned in enumerate(cells, start=1):
        if interrupt.is_set() or not planned.todo:
            ended.append(planned)
            continue
        cell = planned.cell
        what = f"{cell.candidate} at {noise_name(cell.noise)}"
        announce(f"{number} of {len(cells)}: {what}, seed {cell.seed}: {planned.todo} images")
        error: str | None = None
        with whole.at(planned):
            try:
                state: Any = compare_cell(planned.config, return_state=True)
                outcome: Any = state.result(raise_on_failure=False)
            except Interrupted:
                ended.append(planned)
                continue
        if (isinstance(outcome, BaseException) or state.is_failed()) and not interrupt.is_set():
            error = sentence(outcome) if isinstance(outcome, BaseException) else str(state.message)
            announce(f"{what} broke off: {error}")
        ended.append(replace(planned, cell=replace(cell, error=error)))
    return ended


class _Whole:
    """How far all cells are together; the time left by what an image of each method took so far."""

    def __init__(self, cells: Sequence[Planned]) -> None:
        self._left = [cell for cell in cells if cell.todo]
        self._total = sum(cell.todo for cell in cells)
        self._done = self._failed = 0
        self._started = time.perf_counter()
        self._seconds: dict[str, list[float]] = {}  # an image, by method, of the cells that have ended
        self._stack = ExitStack()
        self._now: Planned | None = None
        self._cell_started = self._started
        self._last: Progress | None = None

    def at(self, planned: Planned) -> _Whole:
        """The cell that is worked on while inside."""
        self._now, self._last, self._cell_started = planned, None, time.perf_counter()
        return self

    def __enter__(self) -> None:
        self._stack.enter_context(as_part_of(self.progress))

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        assert self._now is not None
        self._left.remove(self._now)
        if self._last is not None:
            self._done, self._failed = self._done + self._last.done, self._failed + self._last.failed
            seconds = (time.perf_counter() - self._cell_started) / self._now.todo
            self._seconds.setdefault(self._now.cell.candidate, []).append(seconds)

    def progress(self, cell: Progress) -> Progress:
        """The progress of a cell as that of the whole."""
        self._last = cell
        seconds = time.perf_counter() - self._started
        done, failed = self._done + cell.done, self._failed + cell.failed
        return Progress(self._total, done, failed, cell.part, seconds, cell.waiting, self._seconds_left(cell))

    def _seconds_left(self, cell: Progress) -> float | None:
        known = {name: sum(values) / len(values) for name, values in self._seconds.items()}
        assert self._now is not None
        here = cell.seconds_left
        if here is not None and cell.seconds > 0:
            known.setdefault(self._now.cell.candidate, (cell.seconds + here) / cell.total)
        if not known:
            return None
        usual = sum(known.values()) / len(known)
        others = [planned for planned in self._left if planned is not self._now]
        rest = sum(planned.todo * known.get(planned.cell.candidate, usual) for planned in others)
        return rest + (here if here is not None else cell.total * known.get(self._now.cell.candidate, usual))


def _end(config: CompareConfig, found: Scan, device: Device, cells: list[Planned], started: float) -> State[Any]:
    """Write what the cells have found, and say how it ended."""
    logger = get_run_logger()
    root = config.output.resolve()
    stopped, asked = interrupt.is_set(), [planned.cell for planned in cells]
    rows = comparison.rows_of(asked, root, found.todo, found.refused)
    missing = comparison.missing_of(asked, rows, found.todo, stopped=stopped)
    protocol = protocol_of(config, found, device, rows) | {"missing_results": missing.results}
    protocol["notes"] = [*filter(None, [missing.sentence]), *protocol["notes"], *_other_cells(root, cells)]
    provenance = {
        "software": f"denoise-flows {__version__}",
        "config": config.model_copy(update={"input": config.input.resolve(), "output": root}).to_toml(),
        "protocol": json.dumps(protocol, ensure_ascii=False),
    }
    comparison.write(root / comparison.TABLE, rows, provenance)
    lines, markdown, remarks = write_summary(root)
    for remark in filter(None, [missing.sentence, *remarks]):
        announce(remark)
    done = sum(row["status"] == DONE for row in rows)
    failed, different = [row for row in rows if row["status"] == FAILED], comparison.failures_of(rows)
    earlier = sum(planned.done for planned in cells)
    summary = CompareSummary(
        output=str(root),
        images=len(found.todo),
        cells=len(cells),
        done=max(0, done - earlier),
        already_done=earlier,
        failed=len(failed),
        interrupted=stopped,
        seconds=round(time.perf_counter() - started, 3),
        lines=[asdict(line) for line in lines],
        table=str(root / comparison.TABLE),
        report=str(root / PAGE),
        different_failures=len(different),
        failures=[
            {"source": f"{failure.source} ({failure.where})", "error": failure.error} for failure in different[:100]
        ],
    )
    told(create_markdown_artifact, markdown=markdown, key=f"comparison-{slug(root.name)}", description=config.title)
    logger.info("%d done, %d failed; %s", summary.done, summary.failed, summary.report)
    if summary.interrupted:
        return Cancelled(message=f"stopped by the user; {summary.done} done, the next run goes on", data=summary)
    if broken := sum(planned.cell.error is not None for planned in cells):
        return Failed(message=f"{broken} of {len(cells)} cells broke off", data=summary)
    why = failures.told(failures.by_reason(failed))
    if rule := too_many(config, summary.failed, len(rows)):
        return Failed(message=f"{summary.failed} of {len(rows)} results failed, {rule}: {why}", data=summary)
    said = f"{summary.done} results of {summary.images} images in {duration(summary.seconds)}"
    return Completed(message=f"{said}; {summary.failed} failed{f': {why}' if why else ''}", data=summary)


def _other_cells(root: Path, cells: Sequence[Planned]) -> list[str]:
    """A sentence about what earlier comparisons into this output have done and this one was not asked for."""
    mine = {planned.cell.output for planned in cells}
    others = [path for path in sorted((root / "cells").glob("*/*")) if path.is_dir() and path not in mine]
    if not others:
        return []
    named = ", ".join(path.relative_to(root / "cells").as_posix() for path in others[:6])
    more = f" and {len(others) - 6} more" if len(others) > 6 else ""
    return [
        f"Not in this table, though an earlier comparison left them in cells/: {named}{more}; name their methods, noises and "
        "seeds again to have them in it."
    ]
