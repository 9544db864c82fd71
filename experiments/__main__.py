"""The command line: `python -m experiments list`, `run NAME`, `audit RUN`, `accuracy RUN`, `scorecard`,
`prepare DATA`, `benchmark`."""

import argparse
import contextlib
import logging
import math
import os
import pathlib
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Imports take seconds, before any work has begun: until then, Ctrl-C ends the process without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
try:
    pathlib.Path.home()
except RuntimeError:  # no home directory, as in some containers: matplotlib could not be imported
    _MATPLOTLIB = tempfile.TemporaryDirectory(prefix="matplotlib-")
    os.environ.setdefault("MPLCONFIGDIR", _MATPLOTLIB.name)

import hmt_jax
from experiments import accuracy, audit, benchmark, config, folder, run, scorecard, throughput, tradeoffs
from hmt_jax import data
from hmt_jax.cli import _process

_STOPPING = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
_NUM_IMAGES = 50


def main(arguments: list[str] | None = None) -> int:
    """Runs the command that the arguments name; returns the exit status.

    An error, or a signal that stops the command, is reported in one line. If the error was not expected, the line names
    a file with its traceback.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    _process.escape_unwritable_characters()
    options: argparse.Namespace | None = None
    received: list[int] = []
    try:
        with _recorded_signals(received):
            try:
                options = _parser().parse_args(arguments)
                _process.use_fast_convolutions()
                # TFDS warns through absl if a decoder is not installed or a folder holds no data. Our own messages say
                # more.
                logging.getLogger("absl").setLevel(logging.ERROR)
                options.command(options)
            finally:
                if sys.stdout is not None:
                    sys.stdout.flush()
        return 0
    except BaseException as error:
        if received or isinstance(error, KeyboardInterrupt):  # JAX turns interrupts of callbacks into its own errors
            number = received[0] if received else signal.SIGINT
            status, text = 128 + number, _interrupted(_STOPPING[signal.Signals(number)], options, arguments)
        elif isinstance(error, SystemExit):  # raised by argparse, which has printed its own text
            raise
        elif isinstance(error, BrokenPipeError):  # whoever read the output has closed it, as in `list | head`
            status, text = _process.CLOSED_OUTPUT, ""
        else:
            status, text = _process.failed(error)
        _process.discard_unwritable_output()
        with contextlib.suppress(OSError):
            print(text, end="\n" * bool(text), file=sys.stderr)
        return status


@contextlib.contextmanager
def _recorded_signals(received: list[int]) -> Iterator[None]:
    """Raises KeyboardInterrupt on Ctrl-C and on SIGTERM, and appends the signal's number to a list.

    Signals that the process ignores, as with `nohup` and in the background, stay ignored.
    """

    def stop(number, _):
        received.append(number)
        raise KeyboardInterrupt

    with _process.handled(stop):
        yield


def _interrupted(cause: str, options: argparse.Namespace | None, arguments: list[str]) -> str:
    """The message for a command that was stopped: where its results are, and how to continue."""
    if options is None or options.command is not _run:
        return f"interrupted by {cause}: start again with: {_command(arguments)}"
    path = _folder_of(options)
    if not path.exists():
        before = "before anything was written"
        return f"interrupted by {cause} {before}: start again with: {_command(arguments)}"
    if options.fresh and not run.is_finished(path):  # the results there are already fresh ones
        arguments = [argument for argument in arguments if not argument.startswith("--fr")]
    return f"interrupted by {cause}: the results so far are in {path}; continue with: {_command(arguments)}"


def _command(arguments: list[str]) -> str:
    return shlex.join(["python", "-m", "experiments", *arguments])


def _list(options) -> None:
    width, num_bad = max(map(len, config.names())), 0
    for name in config.names():
        try:
            config.check(name)
            print(f"{name:<{width}}  {config.title(name)}")
        except ValueError as error:
            num_bad += 1
            print(f"{name:<{width}}  error: {error}")
    if num_bad:
        raise ValueError(f"{num_bad} of {len(config.names())} experiments cannot be run: their lines above say why")


def _run(options) -> None:
    hmt_jax.cache_programs(options.cache_dir)
    experiment = config.override(config.load(options.name, quick=options.quick), options.set)
    run.run(
        options.name,
        experiment,
        _folder_of(options),
        claims=config.checks(options.name),
        is_quick=options.quick,
        data_dir=options.data_dir,
        fresh=options.fresh,
    )


def _folder_of(options) -> pathlib.Path:
    """The folder of the results of `run`."""
    return options.folder or pathlib.Path("results") / (options.name + "_quick" * options.quick)


def _scorecard(options) -> None:
    print(scorecard.scorecard(options.folders, options.root))
    print(f"\nas Markdown: {options.root / 'scorecard.md'}")


def _audit(options) -> None:
    num_images = _num_images_of_run(options)
    if options.certify > num_images:
        raise ValueError(
            f"--certify {options.certify} is more than the {num_images} images that are measured: raise --num-images, "
            "or lower --certify"
        )
    hmt_jax.cache_programs(options.cache_dir)
    report = audit.audit(
        options.folder,
        num_images=num_images,
        effort=options.effort,
        num_certified=options.certify,
        data_dir=options.data_dir,
    )
    print(report)


def _accuracy(options) -> None:
    num_images = _num_images_of_run(options)
    hmt_jax.cache_programs(options.cache_dir)
    print(accuracy.accuracy(options.folder, num_images=num_images, data_dir=options.data_dir))


def _num_images_of_run(options) -> int:
    """The number of images of a finished run to measure again; ValueError if more are asked for than the run has."""
    run.check_finished(options.folder)
    num_there = folder.read_config(options.folder).get("num_images", math.inf)
    if options.num_images is None:
        return min(_NUM_IMAGES, num_there)
    if options.num_images > num_there:
        raise ValueError(
            f"--num-images {options.num_images} is more than the {num_there} images of the run in {options.folder}: "
            f"lower it to at most {num_there}"
        )
    return options.num_images


def _prepare(options) -> None:
    print(data.prepare(options.name, options.data_dir))


def _benchmark(options) -> None:
    output = options.output or pathlib.Path("results") / f"{options.mode}.json"
    if options.reference is not None and options.mode != "benchmark":
        raise ValueError(f"--reference compares margins: leave it or --{options.mode} out")
    if options.names and options.mode in {"scaling", "tradeoffs"}:
        raise ValueError(f"--{options.mode} has a workload of its own: leave out {', '.join(options.names)}")
    if options.mode == "scaling":
        benchmark.scaling(output, data_dir=options.data_dir)
    elif options.mode == "tradeoffs":
        tradeoffs.tradeoffs(output, data_dir=options.data_dir)
    elif options.mode == "training":
        throughput.throughput(options.names, output, data_dir=options.data_dir)
    else:
        benchmark.benchmark(options.names, output, data_dir=options.data_dir, reference=options.reference)


def _path(text: str) -> pathlib.Path:
    """A path from the command line, with `~` expanded: shells do not expand it after `=` or in variables."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got an empty text")
    try:
        path = pathlib.Path(text).expanduser()
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{text} begins with an unknown home directory: write the full path") from None
    parts = {"": path} if path.is_absolute() else {"": path, "the working directory ": pathlib.Path.cwd()}
    for what, part in parts.items():
        try:
            str(part).encode()
        except UnicodeEncodeError:  # Orbax and safetensors take names in UTF-8 alone
            raise argparse.ArgumentTypeError(
                f"{what}{str(part)!r} cannot be read in the encoding of file names, {sys.getfilesystemencoding()}: set "
                "PYTHONUTF8=1"
            ) from None
    return path


def _number_from(least: int) -> Callable[[str], int]:
    def number(text):
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {text}")
        return int(text)

    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments", description="Experiments on margins.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    lister = commands.add_parser("list", help="the experiments there are")
    lister.set_defaults(command=_list)

    runner = commands.add_parser("run", help="run an experiment, or what is left of it to do")
    runner.add_argument("name", metavar="NAME", nargs="?", default="digits", help="of the experiment (default: digits)")
    runner.add_argument(
        "--set",
        metavar="FIELD=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help="change fields of its configuration",
    )
    runner.add_argument("--quick", action="store_true", help="its quick form, on little data: seconds to two minutes")
    runner.add_argument("--folder", type=_path, help="where results go (default: results/NAME[_quick])")
    runner.add_argument("--fresh", action="store_true", help="start over, though results are there")
    runner.set_defaults(command=_run)

    scorer = commands.add_parser("scorecard", help="all finished runs in one table, with the claims that hold")
    scorer.add_argument("folders", metavar="FOLDER", nargs="*", type=_path, help="default: all under the root")
    scorer.add_argument(
        "--root",
        type=_path,
        default="results",
        help="where scorecard.md is written (default: results)",
    )
    scorer.set_defaults(command=_scorecard)

    auditor = commands.add_parser("audit", help="measure some pairs of a run again, by the solver `tight`")
    auditor.add_argument(
        "--effort",
        default="thorough",
        choices=("fast", "normal", "thorough"),
        help="of that solver (default: thorough)",
    )
    auditor.add_argument("--certify", type=_number_from(0), default=0, help="of how many images to prove lower bounds")
    auditor.set_defaults(command=_audit)

    comparer = commands.add_parser("accuracy", help="compare all solvers on the network of a run")
    comparer.set_defaults(command=_accuracy)

    for subparser in (auditor, comparer):
        subparser.add_argument("folder", metavar="RUN", type=_path, help="the folder of a finished run")
        subparser.add_argument(
            "--num-images", type=_number_from(1), help=f"its first images (default: {_NUM_IMAGES}, or all if fewer)"
        )

    preparer = commands.add_parser("prepare", help="download and prepare a data set")
    preparer.add_argument("name", metavar="DATA", help=f"one of {', '.join(data.names())}")
    preparer.set_defaults(command=_prepare)

    timer = commands.add_parser("benchmark", help="how fast margins are measured here")
    timer.add_argument("names", metavar="WORKLOAD", nargs="*", help="default: all that this device is made for")
    timer.add_argument(
        "--reference", type=_path, metavar="PATH", help="checkout of the authors' code, without ResNet-50"
    )
    modes = timer.add_mutually_exclusive_group()
    for mode, text in (
        ("scaling", "time and memory over numbers of pairs and devices"),
        ("tradeoffs", "margins of fewer candidates, and of less precision"),
        ("training", "images a second in training, and from a folder"),
    ):
        modes.add_argument(f"--{mode}", dest="mode", action="store_const", const=mode, default="benchmark", help=text)
    timer.add_argument("--output", type=_path, help="of JSON (default: results/benchmark.json, scaling.json, ...)")
    timer.set_defaults(command=_benchmark)

    for subparser in (runner, auditor, comparer):
        subparser.add_argument("--cache-dir", type=_path, help="of compiled code (default: the user's cache folder)")
    for subparser in (runner, auditor, comparer, preparer, timer):
        subparser.add_argument(
            "--data-dir",
            type=lambda text: text and str(_path(text)),  # an empty one counts as not given
            help="folder of prepared data sets (default: TFDS_DATA_DIR, or TFDS's own)",
        )
    return parser


if __name__ == "__main__":
    exit_status = main()
    if exit_status > 128:  # stopped: threads that still write, such as Orbax's, would print errors as Python exits
        os._exit(exit_status)
    sys.exit(exit_status)
