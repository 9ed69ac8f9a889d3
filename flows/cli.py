"""The command line. Whatever is slow to import waits until a command needs it."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from flows.config import RunConfig
    from flows.progress import Summary

DONE, SOME_FAILED, NOT_STARTED, INTERRUPTED = 0, 1, 2, 130


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence on stderr and exit status 2."""

    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"{self.prog}: {message}\n")
        sys.exit(NOT_STARTED)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status of the contract."""
    from denoise_core.errors import DenoiseError
    from tasks.faults import Interrupted, sentence

    _open_standard_streams()
    try:
        options = vars(_parser().parse_args(arguments))
        command: Callable[[dict[str, Any]], int] = options.pop("command")
        return command(options)
    except DenoiseError as error:
        sys.stderr.write(f"denoise: {error}\n")
        return NOT_STARTED
    except (KeyboardInterrupt, Interrupted):
        sys.stderr.write("denoise: interrupted\n")
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has gone; pointing stdout away keeps Python from complaining about it on the way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as error:
        sys.stderr.write(f"denoise: {sentence(error)}\n")
        return NOT_STARTED


def _open_standard_streams() -> None:
    """A closed standard stream is opened to nowhere: else the next file to be opened would take its place."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # names may hold what the terminal's encoding cannot
            stream.reconfigure(errors="backslashreplace")
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - for the process's life
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123


def _parser() -> argparse.ArgumentParser:
    from denoise_core import __version__

    parser = _Parser(prog="denoise", description="Denoise whole directories of images without clean training data.")
    parser.add_argument("--version", action="version", version=f"denoise-flows {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")

    run = commands.add_parser(
        "run",
        help="denoise a directory of images, or one image",
        description="Denoise every image of INPUT into OUTPUT/images, with a results table and a report.",
        epilog="Exit status: 0 all done, 1 some images failed, 2 could not start, 130 interrupted (run again to go on).",
        argument_default=argparse.SUPPRESS,
    )
    _add_run_options(run)
    run.set_defaults(command=_run)

    samples = commands.add_parser("samples", help="write real sample images to try things on, no download")
    samples.add_argument("folder", type=Path, metavar="DIR", help="the directory to write them to")
    samples.set_defaults(command=_samples)

    report = commands.add_parser("report", help="render report.html again from results.parquet")
    report.add_argument("output", type=Path, metavar="OUTPUT", help="the output of an earlier run")
    report.set_defaults(command=_report)

    doctor = commands.add_parser("doctor", help="what would be used here, and why: device, precision, slots, server")
    doctor.add_argument("--json", action="store_true", help="print it as JSON")
    doctor.set_defaults(command=_doctor)
    return parser


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    """One argument a field of :class:`RunConfig`; only what is given on the command line is set."""
    from flows.config import RunConfig

    for name, field in RunConfig.model_fields.items():
        told = (field.description or "").replace("%", "%%")
        if name in ("input", "output"):
            parser.add_argument(name, nargs="?", metavar=name.upper(), help=told)
            continue
        flag = "--" + name.replace("_", "-")
        if field.annotation is bool:
            parser.add_argument(flag, action="store_true", help=told)
            continue
        default = "" if field.default in (None, "none") else f" (default {field.default})"
        parser.add_argument(flag, metavar=_metavar(name, field), help=f"{told}{default}")
    parser.add_argument("--config", metavar="FILE.toml", help="Read options from a TOML file; the command line wins.")
    parser.add_argument("--dry-run", action="store_true", help="Say what would be done, and write nothing.")
    parser.add_argument("--json", action="store_true", help="Print one summary as JSON on stdout, and no progress.")


def _metavar(name: str, field: FieldInfo) -> str:
    from enum import StrEnum

    kind = field.annotation
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return "|".join(kind)
    return {"noise": "KIND:LEVEL", "device": "auto|cpu|cuda|cuda:N", "reference": "DIR", "model": "PATH"}.get(name, "N")


def _run(options: dict[str, Any]) -> int:
    from flows import preflight
    from flows.config import build, read_toml

    dry, as_json = options.pop("dry_run", False), options.pop("json", False)
    file = options.pop("config", None)
    from_file = read_toml(Path(file)) if file is not None else {}
    config = build(from_file | options)
    preflight.check(config, writes=not dry)
    return _dry_run(config, as_json=as_json) if dry else _denoise(config, as_json=as_json)


def _denoise(config: RunConfig, *, as_json: bool) -> int:
    from denoise_core.errors import DenoiseError
    from flows import console
    from flows.server import connected
    from tasks.faults import interrupt, sentence

    if config.device.startswith("cuda"):
        from denoise_core.device import choose

        choose(config.device)  # a device that is not there is said before a server is started
    with _stopping_on_signals(interrupt.set), connected() as server:
        from prefect import tags

        from flows.denoise_directory import denoise_directory
        from flows.progress import hearing, listening

        if not as_json:
            print(f"Prefect server: {server}", file=sys.stderr, flush=True)
        terminal = sys.stderr.isatty() and not as_json
        with (
            console.progress_on(terminal) as show,
            listening((lambda _: None) if as_json else show),
            hearing((lambda _: None) if as_json else console.announce),
            tags(config.resolved_method, "denoise-flows"),
        ):
            state: Any = denoise_directory(config, return_state=True)
    outcome: Any = state.result(raise_on_failure=False)
    if isinstance(outcome, DenoiseError):
        raise outcome
    if state.is_cancelled() and (outcome is None or isinstance(outcome, BaseException)):
        sys.stderr.write("denoise: interrupted\n")
        return INTERRUPTED
    if isinstance(outcome, BaseException):
        sys.stderr.write(f"denoise: the run broke off ({type(outcome).__name__}): {sentence(outcome)}\n")
        return SOME_FAILED
    summary: Summary = outcome
    if as_json:
        print(json.dumps(asdict(summary)))
    else:
        console.print_summary(summary)
    if summary.interrupted:
        return INTERRUPTED
    return SOME_FAILED if summary.failed or state.is_failed() else DONE


class _stopping_on_signals:  # noqa: N801 - used as a statement
    """The first Ctrl-C or termination signal asks the run to stop, a second one ends the process on the spot."""

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._before: dict[int, Any] = {}
        self._asked = False

    def __enter__(self) -> _stopping_on_signals:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._before[number] = signal.signal(number, self.ask)
        return self

    def ask(self, _number: int, _frame: object) -> None:
        """The handler of the signals."""
        if self._asked:
            os._exit(INTERRUPTED)
        self._asked = True
        self._stop()
        with contextlib.suppress(OSError):
            os.write(2, b"denoise: stopping; once more to end at once\n")

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _dry_run(config: RunConfig, *, as_json: bool) -> int:
    from denoise_core.device import choose
    from flows import console
    from flows.config import OnExisting
    from flows.scopes import resolve
    from tasks.scan import scan
    from tasks.table import FAILED, SKIPPED, text

    device = choose(config.device)
    found = scan(
        config.input.resolve(),
        config.output.resolve(),
        max_pixels=int(config.max_megapixels * 1e6),
        config_digest=config.digest(),
        redo=config.on_existing is OnExisting.OVERWRITE,
        reference=None if config.reference is None else config.reference.resolve(),
    )
    scope = resolve(config, found) if config.resolved_method == "zs-fit" else None
    failed = [row for row in found.refused if row["status"] == FAILED]
    skipped = [row for row in found.refused if row["status"] == SKIPPED]
    if as_json:
        plan = {
            "to_do": [text(source.name) for source in found.todo],
            "already_done": [row["source"] for row in found.done],
            "cannot_be_done": [{"source": row["source"], "error": row["error"]} for row in failed],
            "not_images": [row["source"] for row in skipped],
            "method": config.resolved_method,
            "scope": scope and scope[0],
            "device": device.name,
        }
        print(json.dumps(plan))
        return DONE
    for source in found.todo:
        shape = " × ".join(map(str, source.header.shape))
        print(
            f"to do    {console.printable(text(source.name))}  ({source.header.container}, {shape}, {source.header.dtype})"
        )
    for row in found.done:
        print(f"done     {console.printable(row['source'])}")
    for row in failed:
        print(f"cannot   {console.printable(row['source'])}: {console.printable(row['error'])}")
    for row in skipped:
        print(f"skip     {console.printable(row['source'])}: {console.printable(row['error'])}")
    if scope is not None and found.todo:
        print(f"scope {scope[0]}: {scope[1]}")
    print(
        f"{len(found.todo)} to do, {len(found.done)} done already, {len(failed)} cannot be done, {len(skipped)} not images; "
        f"{config.resolved_method} on {device.name} ({device.reason}). Nothing was written."
    )
    return DONE


def _samples(options: dict[str, Any]) -> int:
    from data.samples import write_samples

    written = write_samples(options["folder"])
    print(f"{len(written)} images in {options['folder']}")
    return DONE


def _report(options: dict[str, Any]) -> int:
    from flows.errors import StartError
    from flows.server import prepare_environment

    prepare_environment()
    from tasks.report import RESULTS, write_page

    if not (options["output"] / RESULTS).is_file():
        raise StartError(f"OUTPUT: there is no {RESULTS} in {options['output']}")
    print(write_page(options["output"].resolve()))
    return DONE


def _doctor(options: dict[str, Any]) -> int:
    from flows.doctor import examine

    facts = examine()
    if options["json"]:
        print(json.dumps(facts, indent=2))
    else:
        width = max(map(len, facts))
        for name, value in facts.items():
            print(f"{name:{width}}  {value}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
