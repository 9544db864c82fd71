"""The command line: `python -m experiments list`, `run NAME`, `audit RUN`, `compare-solvers RUN`, `scorecard`,
`prepare DATA`, `benchmark`."""

import dataclasses
import inspect
import math
import os
import pathlib
import shlex
import signal
import sys
import typing
from typing import Annotated, Any, Literal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Imports take seconds, before any work has begun: until then, Ctrl-C ends the process without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import tyro
from tyro.conf import Positional, arg

import hmt_jax
from experiments import catalogue, registry, run, store, tables
from experiments.analyses import audit, compare_solvers
from experiments.benchmarks import margins, suite, training
from experiments.experiment import Config
from hmt_jax import _checks, _paths
from hmt_jax.cli import _commands, _process
from hmt_jax.cli._commands import CACHE_DIR, DATA_DIR, Command, option

_PROGRAM = "python -m experiments"
_RESULTS = pathlib.Path("results")
_NUM_IMAGES = 50
_BUDGET = 480
_APP = tyro.extras.SubcommandApp()


def _path(texts: list[str]) -> pathlib.Path:
    """The path in an argument, with `~` expanded: shells do not expand it after `=` or in variables."""
    if not texts[0]:
        raise ValueError("expected a path, got an empty text")
    path = pathlib.Path(_paths.expand("the path", texts[0]))
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:  # Orbax and safetensors take names in UTF-8 only
        raise ValueError(f"{str(path.absolute())!r} is not in UTF-8: choose another, or set PYTHONUTF8=1") from None
    return path


def _count(texts: list[str]) -> int:
    if not texts[0].isdecimal():
        raise ValueError(f"expected a whole number, got {texts[0]!r}")
    return int(texts[0])


_PATH, _COUNT = _commands.parsed_by(_path, 1), _commands.parsed_by(_count, 1)


@_APP.command(name="list")
@dataclasses.dataclass(frozen=True, kw_only=True)
class List(Command):
    """List the experiments by data set, and what has been run."""

    results: Annotated[pathlib.Path, _PATH, option("DIR", "Folder of results. (default: results)")] = _RESULTS

    def run(self) -> None:
        width = max(map(len, registry.names()))
        for heading, table in catalogue.TABLES.items():
            print(f"{heading}:")
            for name, experiment in table.items():
                states = (_state(run.folder_of(name, is_quick=quick, root=self.results)) for quick in (False, True))
                state = "; ".join(form + text for form, text in zip(("", "quick form "), states, strict=True) if text)
                print(f"  {name:<{width}}  {experiment.title}{f'  [{state}]' * bool(state)}")


@_APP.command(name="run")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(Command):
    """Run an experiment, or finish one that was stopped. `run NAME --help` shows its settings."""

    name: Annotated[Positional[str], option("NAME", "Name of the experiment. (default: digits)")] = "digits"
    quick: Annotated[bool, option("", "Run its quick form, on little data: seconds to two minutes.")] = False
    folder: Annotated[
        pathlib.Path | None, _PATH, option("DIR", "Folder of the results. (default: results/NAME[_quick])")
    ] = None
    fresh: Annotated[bool, option("", "Start over: remove what the run has written.")] = False
    data_dir: Annotated[str | None, DATA_DIR] = None
    cache_dir: Annotated[str | None, CACHE_DIR] = None
    settings: tyro.conf.Suppress[Any] = None  # the fields of the configuration

    def run(self) -> None:
        hmt_jax.cache_programs(self.cache_dir)
        config = type(registry.get(self.name).config)(**self.settings)
        options: Any = {"is_quick": self.quick, "data_dir": self.data_dir or None, "fresh": self.fresh}
        run.run(self.name, config, self._path, **options)

    @property
    def _path(self) -> pathlib.Path:
        return self.folder or run.folder_of(self.name, is_quick=self.quick, root=_RESULTS)

    def remedy(self, command: str) -> str:
        if not self._path.exists():
            return f"nothing was written; {super().remedy(command)}"
        if not store.is_finished(self._path):  # the results there are already fresh ones
            command = shlex.join(word for word in shlex.split(command) if word != "--fresh")
        return f"the results so far are in {self._path}; go on with: {command}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Again(Command):
    """The options of commands that measure a finished run again."""

    folder: Annotated[Positional[pathlib.Path], _PATH, option("RUN", "Folder of a finished run.")]
    num_images: Annotated[
        int | None,
        _COUNT,
        option("N", f"Measure N test images. (default: {_NUM_IMAGES}, or all of the run if fewer)"),
    ] = None
    data_dir: Annotated[str | None, DATA_DIR] = None
    cache_dir: Annotated[str | None, CACHE_DIR] = None

    def number(self) -> int:
        """The number of images to measure; ValueError if the run has fewer."""
        store.check_finished(self.folder)
        num_there = store.settings(self.folder).get("num_images", math.inf)
        if self.num_images is None:
            return min(_NUM_IMAGES, num_there)
        _checks.integer("--num-images", self.num_images, at_least=1)
        if self.num_images > num_there:
            raise ValueError(
                f"--num-images {self.num_images} is more than the {num_there} images of the run in {self.folder}: "
                f"lower it to at most {num_there}"
            )
        return self.num_images


@_APP.command(name="audit")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Audit(Again):
    """Measure the first images of a run again with the solver `tight`, and compare."""

    effort: Annotated[Literal["fast", "normal", "thorough"], arg(help="Effort of that solver.")] = "normal"
    certify: Annotated[int, _COUNT, arg(metavar="N", help="Prove lower bounds for the first N images.")] = 0

    def run(self) -> None:
        if self.certify > (number := self.number()):
            raise ValueError(
                f"--certify {self.certify} is more than the {number} images that are measured: raise --num-images, or "
                "lower --certify"
            )
        hmt_jax.cache_programs(self.cache_dir)
        options: Any = {"effort": self.effort, "num_certified": self.certify, "data_dir": self.data_dir or None}
        print(audit.audit(self.folder, num_images=number, **options))


@_APP.command(name="compare-solvers")
@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareSolvers(Again):
    """Compare all solvers on the network of a run, on the last images for testing."""

    variants: Annotated[bool, option("", "Compare variants of the walks, in place of all solvers.")] = False

    def run(self) -> None:
        number = self.number()
        hmt_jax.cache_programs(self.cache_dir)
        compare = compare_solvers.compare_variants if self.variants else compare_solvers.compare_solvers
        print(compare(self.folder, num_images=number, data_dir=self.data_dir or None))


@_APP.command(name="scorecard")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Scorecard(Command):
    """Add finished runs to the stored results, and update the tables of experiments/README.md."""

    folders: Annotated[Positional[tuple[str, ...]], option("RUN", "Folders of finished runs. (default: none)")] = ()
    hardware: Annotated[str | None, option("TEXT", 'Hardware of these runs, such as "2 CPU cores".')] = None

    def run(self) -> None:
        print(tables.scorecard([_path([text]) for text in self.folders], hardware=self.hardware))


_APP.command(name="prepare")(_commands.Prepare)


@_APP.command(name="benchmark")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark(Command):
    """Measure how fast this device computes margins."""

    names: Annotated[
        Positional[tuple[str, ...]],
        option("WORKLOAD", "Workloads to time, or suite for all that counts. (default: all that suit this device)"),
    ] = ()
    budget: Annotated[int | None, _COUNT, option("SECONDS", f"Time for the suite. (default: {_BUDGET})")] = None
    scaling: Annotated[bool, option("", "Measure time and memory for several numbers of pairs and devices.")] = False
    tradeoffs: Annotated[bool, option("", "Measure margins with fewer candidates, and with less precision.")] = False
    training: Annotated[bool, option("", "Measure images a second in training and in reading a folder.")] = False
    reference: Annotated[
        pathlib.Path | None, _PATH, option("DIR", "Checkout of the authors' code, to time as well (not ResNet-50).")
    ] = None
    output: Annotated[
        pathlib.Path | None, _PATH, option("FILE", "JSON file. (default: results/benchmark.json, scaling.json, ...)")
    ] = None
    data_dir: Annotated[str | None, DATA_DIR] = None

    def run(self) -> None:
        modes = [mode for mode in ("scaling", "tradeoffs", "training") if getattr(self, mode)]
        mode = "suite" if "suite" in self.names else modes[0] if modes else "benchmark"
        others = [*(name for name in self.names if name != "suite"), *(f"--{each}" for each in modes)]
        if mode == "suite" and others:
            raise ValueError(f"the suite has measurements of its own: leave out {', '.join(others)}")
        if mode != "suite" and self.budget is not None:
            raise ValueError("--budget is for the suite: leave it out, or run `benchmark suite --budget SECONDS`")
        if len(modes) > 1:
            raise ValueError(f"--{modes[0]} and --{modes[1]} are two benchmarks: run one after the other")
        if self.reference is not None and modes:
            raise ValueError(f"--reference compares margins: leave it or --{mode} out")
        if self.names and mode in {"scaling", "tradeoffs"}:
            raise ValueError(f"--{mode} has a workload of its own: leave out {', '.join(self.names)}")
        output, data_dir = self.output or _RESULTS / f"{mode}.json", self.data_dir or None
        if mode == "suite":
            budget = _checks.integer("--budget", _BUDGET if self.budget is None else self.budget, at_least=1)
            if not suite.suite(output, budget, data_dir=data_dir, reference=self.reference):
                sys.stdout.flush()
                os._exit(0)  # a row is still at work, and Python would wait for it
        elif mode == "scaling":
            margins.scaling(output, data_dir=data_dir)
        elif mode == "tradeoffs":
            margins.tradeoffs(output, data_dir=data_dir)
        elif mode == "training":
            training.throughput(self.names, output, data_dir=data_dir)
        else:
            margins.benchmark(self.names, output, data_dir=data_dir, reference=self.reference)


def main(arguments: list[str] | None = None) -> int:
    """The exit code of the command that the arguments name, after it has run: that of `hmt`."""
    return _process.main(
        _parsed,
        sys.argv[1:] if arguments is None else arguments,
        program=_PROGRAM,
        reworded=lambda text: text.replace("start over in an empty folder", "start over with --fresh"),
    )


def _parsed(arguments: list[str]) -> Command:
    """The command with its arguments. The settings of `run` are those of the experiment that is named."""
    if arguments[:1] != ["run"]:
        options: Any = {"prog": _PROGRAM, "description": "Run experiments on margins, and check their claims."}
        return _APP.cli(args=arguments, config=(tyro.conf.FlagCreatePairsOff,), **options)
    is_named = len(arguments) > 1 and not arguments[1].startswith("-")
    name, rest = (arguments[1], arguments[2:]) if is_named else ("digits", arguments[1:])
    config = registry.form(name, is_quick="--quick" in rest)
    # A dict, because tyro would show what a configuration itself raises in a box, broken into lines.
    settings: Any = typing.TypedDict("Settings", typing.get_type_hints(type(config)))  # type: ignore[misc]
    # tyro does not see base classes here: their sentences on fields, which end a docstring, follow those of the kind.
    own, *inherited = (inspect.getdoc(each) or "" for each in type(config).__mro__ if issubclass(each, Config))
    settings.__doc__ = "\n".join([own, *(text.partition("Attributes:\n")[2] for text in inherited)])
    field: Any = ("settings", settings, dataclasses.field(default_factory=lambda: vars(config)))
    return tyro.cli(
        dataclasses.make_dataclass("Run", [field], bases=(Run,), frozen=True, kw_only=True),
        prog=f"{_PROGRAM} run {name}",
        description=inspect.cleandoc(registry.get(name).note),
        args=[name, *rest],
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
    )


def _state(path: pathlib.Path) -> str:
    """The state of the run in a folder, in a few words; an empty text if there is none."""
    try:
        if not (path / "config.json").exists():
            return ""
        store.read_config(path)
        if not store.is_finished(path):
            return "unfinished"
        verdicts = store.verdicts(path)["claims"]
        return f"{sum(verdict['holds'] for verdict in verdicts)} of {len(verdicts)} claims hold"
    except ValueError:
        return "not readable"


if __name__ == "__main__":
    sys.exit(main())
