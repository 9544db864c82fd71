"""The command line: `python -m experiments list`, `run NAME`, `audit RUN`, `accuracy RUN`, `scorecard`,
`prepare DATA`, `benchmark`."""

import argparse
import logging
import os
import pathlib
import sys
import warnings
from collections.abc import Callable

import jax
import jaxlib

from experiments import accuracy, audit, benchmark, config, run, scorecard, throughput, tradeoffs
from hmt_jax import _devices, data

_ONEDNN_FLAGS = (
    "--xla_cpu_experimental_onednn_custom_call=true --xla_cpu_experimental_ynn_fusion_type=-individual_convolution"
)


def main(arguments: list[str] | None = None) -> int:
    """Does what the arguments say; returns the exit status."""
    options = _parser().parse_args(arguments)
    _use_fast_convolutions()
    # TFDS warns, by absl, of a decoder that is not installed, and of a folder without data, of which we say more.
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        options.command(options)
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not _devices.is_out_of_memory(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        print(
            f"error: the device is out of memory ({reason}): end what else uses it and go on with "
            "the same command, or start over with a lower batch_size",
            file=sys.stderr,
        )
        return 2
    return 0


def _list(options) -> None:
    width = max(map(len, config.names()))
    for name in config.names():
        print(f"{name:<{width}}  {config.title(name)}")


def _run(options) -> None:
    _cache_compilations(options.cache_dir)
    experiment = config.override(config.load(options.name, quick=options.quick), options.set)
    run.run(
        options.name,
        experiment,
        options.folder or pathlib.Path("results") / (options.name + "_quick" * options.quick),
        claims=config.checks(options.name),
        is_quick=options.quick,
        data_dir=options.data_dir,
        fresh=options.fresh,
    )


def _scorecard(options) -> None:
    print(scorecard.scorecard(options.folders, options.root))
    print(f"\nas Markdown: {options.root / 'scorecard.md'}")


def _audit(options) -> None:
    _cache_compilations(options.cache_dir)
    report = audit.audit(
        options.folder,
        num_images=options.num_images,
        effort=options.effort,
        num_certified=options.certify,
        data_dir=options.data_dir,
    )
    print(report)


def _accuracy(options) -> None:
    _cache_compilations(options.cache_dir)
    print(accuracy.accuracy(options.folder, num_images=options.num_images, data_dir=options.data_dir))


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


def _use_fast_convolutions() -> None:
    """Lets XLA on CPU convolve by oneDNN: margins of a ResNet come 1.4 times faster, and are the same to rounding.

    Read when JAX first looks for devices. An unknown flag would end the process, and other releases do not know these.
    XLA cannot write programs with such convolutions into the compilation cache, so that every run compiles them anew.
    """
    if jaxlib.__version__.startswith("0.12.") and "XLA_FLAGS" not in os.environ:
        os.environ["XLA_FLAGS"] = _ONEDNN_FLAGS
        cannot_write = r"Error writing persistent compilation cache entry .*std::bad_alloc"
        warnings.filterwarnings("ignore", cannot_write, UserWarning)


def _cache_compilations(path: pathlib.Path | None) -> None:
    """Keeps what XLA compiles, for later runs: in the given folder, the one JAX is set to, or the user's cache."""
    if path is None and jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    home = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(path or home / "hmt_jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


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
    runner.add_argument("--folder", type=pathlib.Path, help="where results go (default: results/NAME[_quick])")
    runner.add_argument("--fresh", action="store_true", help="start over, though results are there")
    runner.set_defaults(command=_run)

    scorer = commands.add_parser("scorecard", help="all finished runs in one table, with the claims that hold")
    scorer.add_argument("folders", metavar="FOLDER", nargs="*", type=pathlib.Path, help="default: all under the root")
    scorer.add_argument(
        "--root",
        type=pathlib.Path,
        default=pathlib.Path("results"),
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
        subparser.add_argument("folder", metavar="RUN", type=pathlib.Path, help="the folder of a finished run")
        subparser.add_argument("--num-images", type=_number_from(1), default=50, help="its first images (default: 50)")

    preparer = commands.add_parser("prepare", help="download and prepare a data set")
    preparer.add_argument("name", metavar="DATA", help=f"one of {', '.join(data.names())}")
    preparer.set_defaults(command=_prepare)

    timer = commands.add_parser("benchmark", help="how fast margins are measured here")
    timer.add_argument("names", metavar="WORKLOAD", nargs="*", help="default: all that this device is made for")
    timer.add_argument(
        "--reference", type=pathlib.Path, metavar="PATH", help="checkout of the authors' code, without ResNet-50"
    )
    modes = timer.add_mutually_exclusive_group()
    for mode, text in (
        ("scaling", "time and memory over numbers of pairs and devices"),
        ("tradeoffs", "margins of fewer candidates, and of less precision"),
        ("training", "images a second in training, and from a folder"),
    ):
        modes.add_argument(f"--{mode}", dest="mode", action="store_const", const=mode, default="benchmark", help=text)
    timer.add_argument(
        "--output", type=pathlib.Path, help="of JSON (default: results/benchmark.json, scaling.json, ...)"
    )
    timer.set_defaults(command=_benchmark)

    for subparser in (runner, auditor, comparer):
        subparser.add_argument(
            "--cache-dir", type=pathlib.Path, help="of compiled code (default: the user's cache folder)"
        )
    for subparser in (runner, auditor, comparer, preparer, timer):
        subparser.add_argument(
            "--data-dir", help="folder of prepared data sets (default: TFDS_DATA_DIR, or TFDS's own)"
        )
    return parser


if __name__ == "__main__":
    sys.exit(main())
