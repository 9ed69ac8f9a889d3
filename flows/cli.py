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

from flows.signals import INTERRUPTED, stopping_on
from tasks.process import share_one_arena

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

    from flows.compare import CompareSummary
    from flows.compare_config import CompareConfig
    from flows.config import RunConfig
    from flows.config_files import Config
    from flows.progress import Summary

DONE, SOME_FAILED, NOT_STARTED = 0, 1, 2


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
    share_one_arena()
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
    from flows.compare_config import CompareConfig
    from flows.config import RunConfig

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
    _add_options(run, RunConfig)
    run.set_defaults(command=_run)

    stylize = commands.add_parser(
        "stylize",
        help="paint a directory of images in the manner of another image",
        description="Paint every image of INPUT in the manner of --style (Gatys' neural style transfer) into OUTPUT/images, with "
        "a results table and a report. `denoise run --style` does this, and then adds noise and denoises.",
        epilog="Exit status: 0 all done, 1 some images failed, 2 could not start, 130 interrupted (run again to go on).",
        argument_default=argparse.SUPPRESS,
    )
    _add_options(stylize, RunConfig, only=STYLIZE_OPTIONS)
    stylize.set_defaults(command=_stylize)

    compare = commands.add_parser(
        "compare",
        help="compare methods on the same images and noise, in one table",
        description="Denoise the images of INPUT by every method at every noise, and put what comes of it side by side.",
        epilog="Exit status: 0 all done, 1 some images failed, 2 could not start, 130 interrupted (run again to go on).",
        argument_default=argparse.SUPPRESS,
    )
    _add_options(compare, CompareConfig)
    compare.set_defaults(command=_compare)

    samples = commands.add_parser("samples", help="write real sample images to try things on, no download")
    samples.add_argument("folder", type=Path, metavar="DIR", help="the directory to write them to")
    samples.set_defaults(command=_samples)

    report = commands.add_parser("report", help="render the report again from the table")
    report.add_argument("output", type=Path, metavar="OUTPUT", help="the output of an earlier run or comparison")
    report.set_defaults(command=_report)

    _add_server(commands)
    _add_serve(commands)

    doctor = commands.add_parser("doctor", help="what would be used here, and why: device, precision, slots, server")
    doctor.add_argument("--json", action="store_true", help="print it as JSON")
    doctor.set_defaults(command=_doctor)
    return parser


def _add_server(commands: Any) -> None:
    server = commands.add_parser(
        "server",
        help="a Prefect server set up for this work",
        description="Run a Prefect server until Ctrl-C. Runs of this user on this machine report to it by themselves.",
        epilog="Exit status: 0 ended by Ctrl-C or a termination signal, 2 could not start.",
        argument_default=argparse.SUPPRESS,
    )
    server.add_argument(
        "--folder",
        type=Path,
        metavar="DIR",
        help="where its database, leases and log lie (default ~/.local/state/denoise-flows/server)",
    )
    server.add_argument(
        "--port", type=int, metavar="N", help="the port to listen on; 0: any that is free (default 4200)"
    )
    server.add_argument(
        "--host",
        metavar="NAME",
        help="the name or address to listen on; any but a loopback one needs an auth string (default 127.0.0.1)",
    )
    server.add_argument(
        "--database",
        metavar="URL",
        help="a PostgreSQL database, postgresql+asyncpg://USER:PASSWORD@HOST:PORT/NAME, in place of an SQLite file; given as "
        "PREFECT_SERVER_DATABASE_CONNECTION_URL in the environment, no list of processes shows the password",
    )
    server.add_argument(
        "--auth-file",
        type=Path,
        metavar="FILE",
        help="a file that only its owner can read, with the auth string (user:password) that clients must give; or "
        "PREFECT_SERVER_API_AUTH_STRING in the environment",
    )
    server.set_defaults(command=_server)


def _add_serve(commands: Any) -> None:
    from flows.config import RunConfig

    serve = commands.add_parser(
        "serve",
        help="denoise a directory on a schedule, or whenever new files come",
        description="Run `denoise run` with these options on a schedule, until Ctrl-C. Each run does what is new; one that finds "
        "another at work on OUTPUT is cancelled. Uses the Prefect server that is set or runs here, or starts one.",
        epilog="Exit status: 0 ended by Ctrl-C or a termination signal, 2 could not start, or the deployment was deleted.",
        argument_default=argparse.SUPPRESS,
    )
    serve.add_argument(
        "--cron", metavar="EXPRESSION", help='run at these times, such as "0 2 * * *": every night at two'
    )
    serve.add_argument("--every", metavar="TIME", help="run this often, counted from midnight, such as 30m or 6h")
    serve.add_argument(
        "--watch",
        nargs="?",
        const="30s",
        metavar="TIME",
        help="run when files have come or changed and none changed between two looks, this far apart (default 30s)",
    )
    serve.add_argument(
        "--timezone", metavar="NAME", help="of --cron and --every, as Europe/Berlin (default this machine's)"
    )
    serve.add_argument("--name", metavar="NAME", help="of the deployment (default from INPUT and OUTPUT)")
    _add_options(serve, RunConfig, ways=False)
    serve.set_defaults(command=_serve)


STYLIZE_OPTIONS = (
    *("input", "output", "style", "style_preset", "style_layers", "content_layers", "style_weight", "content_weight"),
    *("style_steps", "style_optimiser", "style_scale", "style_max_side", "keep_colours"),
    *("vgg_weights", "vgg_sha256", "device", "slots", "engine", "worker_wait", "chunk", "max_megapixels"),
    *("strict", "max_failed", "on_existing"),
)


def _add_options(
    parser: argparse.ArgumentParser, config: type[BaseModel], only: tuple[str, ...] = (), *, ways: bool = True
) -> None:
    """One argument a field of the configuration, or of those of `only`; only what is given on the command line is set.

    ``ways``: also how a run is shown, and whether it is made.
    """
    for name, field in config.model_fields.items():
        if only and name not in only:
            continue
        told = (field.description or "").replace("%", "%%")
        if name in ("input", "output"):
            parser.add_argument(name, nargs="?", metavar=name.upper(), help=told)
            continue
        flag = "--" + name.replace("_", "-")
        if field.annotation is bool:
            parser.add_argument(flag, action="store_true", help=told)
            continue
        if name == "style":
            parser.add_argument(flag, action="append", metavar="IMAGE", help=told)
            continue
        default = "" if field.default in (None, "none", ()) else f" (default {_as_written(field.default)})"
        parser.add_argument(flag, metavar=_metavar(name, field), help=f"{told}{default}")
    parser.add_argument("--config", metavar="FILE.toml", help="Read options from a TOML file; the command line wins.")
    if not ways:
        return
    parser.add_argument("--dry-run", action="store_true", help="Say what would be done, and write nothing.")
    parser.add_argument("--json", action="store_true", help="Print one summary as JSON on stdout, and no progress.")


def _as_written(default: object) -> str:
    return ",".join(default) if isinstance(default, tuple) else str(default)


def _metavar(name: str, field: FieldInfo) -> str:
    from enum import StrEnum

    kind = field.annotation
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return "|".join(kind)
    named = {
        "device": "auto|all|cpu|cuda|cuda:N,…",
        "engine": "local|processes|dask|dask:ADDRESS",
        "worker_wait": "SECONDS",
        "reference": "DIR",
        "model": "PATH",
        "axes": "AXES",
        "methods": "A,B",
        "against": "A",
        "max_failed": "SHARE",
        "vgg_weights": "FILE|download",
        "style_layers": "A,B",
        "content_layers": "A,B",
        "style_optimiser": "lbfgs|adam",
        "vgg_sha256": "HEX",
    }
    many = isinstance(field.default, tuple)
    return {**named, "noise": "KIND:LEVEL,…" if many else "KIND:LEVEL"}.get(name, "N")


def _run(options: dict[str, Any]) -> int:
    from flows import preflight
    from flows.config import RunConfig

    config, dry, as_json = _configured(options, RunConfig)
    preflight.check(config, writes=not dry)
    return _dry_run(config, as_json=as_json) if dry else _start(config, as_json=as_json)


def _compare(options: dict[str, Any]) -> int:
    from flows.compare_config import CompareConfig
    from flows.server import prepare_environment

    config, dry, as_json = _configured(options, CompareConfig)
    prepare_environment()
    from flows.compare import check

    check(config, writes=not dry)
    return _dry_run(config, as_json=as_json) if dry else _start(config, as_json=as_json)


def _configured(options: dict[str, Any], model: type[Config]) -> tuple[Config, bool, bool]:
    """The configuration from the command line over a file; whether nothing is to be written; whether JSON is wanted."""
    from flows.config_files import build, read_toml

    dry, as_json = options.pop("dry_run", False), options.pop("json", False)
    file = options.pop("config", None)
    from_file = read_toml(Path(file)) if file is not None else {}
    return build(from_file | options, model), dry, as_json


def _stylize(options: dict[str, Any]) -> int:
    from flows.errors import StartError

    if not options.get("style") and "config" not in options:
        raise StartError("--style is missing: denoise stylize INPUT OUTPUT --style IMAGE")
    return _run({**options, "method": "none"})


def _flow_of(config: RunConfig | CompareConfig) -> Any:
    from flows.config import RunConfig

    if isinstance(config, RunConfig):
        from flows.denoise_directory import denoise_directory

        return denoise_directory
    from flows.compare import compare

    return compare


def _start(config: RunConfig | CompareConfig, *, as_json: bool) -> int:
    """Run the flow of the configuration, under a server, and tell how far it is and how it ended."""
    from denoise_core.errors import DenoiseError
    from flows import console
    from flows.server import connected
    from tasks.faults import sentence

    if not config.engine.startswith("dask:") and (config.device == "all" or config.device.startswith("cuda")):
        from denoise_core.device import choose_all

        choose_all(config.device)  # a device that is not there is said before a server is started
    with _stopping(), connected() as server:
        from prefect import tags
        from prefect.exceptions import ObjectNotFound

        from flows.progress import hearing, listening

        if not as_json:
            print(f"Prefect server: {server}", file=sys.stderr, flush=True)
        terminal = sys.stderr.isatty() and not as_json
        with (
            console.progress_on(terminal) as show,
            listening((lambda _: None) if as_json else show),
            hearing((lambda _: None) if as_json else console.announce),
            tags(*config.tags, "denoise-flows"),
        ):
            try:
                state: Any = _flow_of(config)(config, return_state=True)
            except ObjectNotFound:
                sys.stderr.write(
                    "denoise: the Prefect server no longer knows the run (it was deleted there); what it has done is in "
                    f"{config.output}\n"
                )
                return SOME_FAILED
    outcome: Any = state.result(raise_on_failure=False)
    if isinstance(outcome, DenoiseError):
        raise outcome
    if state.is_cancelled() and (outcome is None or isinstance(outcome, BaseException)):
        sys.stderr.write("denoise: interrupted\n")
        return INTERRUPTED
    if isinstance(outcome, BaseException):
        sys.stderr.write(f"denoise: the run broke off ({type(outcome).__name__}): {sentence(outcome)}\n")
        return SOME_FAILED
    summary: Summary | CompareSummary = outcome
    if as_json:
        print(json.dumps(asdict(summary)))
    else:
        console.print_summary(summary)
    if summary.interrupted:
        return INTERRUPTED
    return SOME_FAILED if summary.failed or state.is_failed() else DONE


def _dry_run(config: RunConfig | CompareConfig, *, as_json: bool) -> int:
    from flows.server import prepare_environment

    prepare_environment()
    from flows import dry_run

    for line in dry_run.told(config, as_json=as_json):
        print(line)
    return DONE


def _stopping() -> contextlib.AbstractContextManager[None]:
    return stopping_on(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _samples(options: dict[str, Any]) -> int:
    from data.samples import write_samples

    written = write_samples(options["folder"])
    print(f"{len(written)} images in {options['folder']}")
    return DONE


def _report(options: dict[str, Any]) -> int:
    from denoise_core.errors import DenoiseError
    from flows.errors import StartError
    from flows.server import prepare_environment

    prepare_environment()
    from tasks.comparison import TABLE
    from tasks.comparison_page import PAGE, write_summary
    from tasks.report import RESULTS, remake_results, write_page

    output = options["output"].resolve()
    if (output / TABLE).is_file():
        write_summary(output)
        print(output / PAGE)
        if not (output / RESULTS).is_file():
            return DONE
    try:
        if not (output / RESULTS).is_file():
            raise StartError(f"OUTPUT: there is no {RESULTS} and no {TABLE} in {options['output']}")
        page = write_page(output)
    except DenoiseError as error:
        if not remake_results(output):
            raise
        print(
            f"{error}; the table was made again from the ledger, and the next run adds the files that cannot be read",
            file=sys.stderr,
        )
        page = write_page(output)
    print(page)
    return DONE


def _server(options: dict[str, Any]) -> int:
    from flows import service
    from tasks.faults import Interrupted, interrupt

    asked = service.options(**options)
    try:
        with _stopping(), service.serving(asked) as process:
            print(service.told(process, asked), flush=True)
            while not interrupt.wait(0.5):
                if process.gave_up.is_set():
                    raise service.given_up(asked)
    except Interrupted:
        pass  # while it was starting
    finally:
        interrupt.clear()
    return DONE


def _serve(options: dict[str, Any]) -> int:
    from flows import schedule
    from flows.config import RunConfig

    times = {name: options.pop(name, None) for name in ("cron", "every", "watch", "timezone")}
    name = options.pop("name", None)
    config, _, _ = _configured(options, RunConfig)
    schedule.serve(config, schedule.when(**times), name=name, tell=lambda line: print(line, flush=True))
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
