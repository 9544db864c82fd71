"""The command line: `python -m experiments list`, `run NAME`, `audit RUN`, `compare-solvers RUN`, `scorecard`,
`prepare DATA`, `benchmark`."""

import dataclasses
import inspect
import logging
import math
import os
import pathlib
import shlex
import signal
import sys
import tempfile
import typing
from typing import Annotated, Any, Literal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Imports take seconds, before any work has begun: until then, Ctrl-C ends the process without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
try:
    pathlib.Path.home()
except RuntimeError:  # no home directory, as in some containers: matplotlib could not be imported
    _MATPLOTLIB = tempfile.TemporaryDirectory(prefix="matplotlib-")
    os.environ.setdefault("MPLCONFIGDIR", _MATPLOTLIB.name)

import tyro
from tyro.conf import Positional, arg
from tyro.constructors import PrimitiveConstructorSpec

import hmt_jax
from experiments import registry, run, store, tables
from experiments.analyses import audit, compare_solvers
from experiments.benchmarks import margins, tradeoffs, training
from experiments.experiment import Config
from hmt_jax import _checks, _paths, data
from hmt_jax.cli import _main, _process

_RESULTS = pathlib.Path("results")
_NUM_IMAGES = 50


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


def _parsed_by(parse: Any) -> PrimitiveConstructorSpec:
    return PrimitiveConstructorSpec(1, "", parse, lambda _: True, lambda value: [str(value)])


def _option(metavar: str, text: str) -> Any:
    return arg(metavar=metavar, help=text, help_behavior_hint="")


_PATH, _COUNT = _parsed_by(_path), _parsed_by(_count)
_Finished = Annotated[Positional[pathlib.Path], _PATH, _option("RUN", "Folder of a finished run.")]
_DataDir = Annotated[
    str | None, _option("DIR", "Folder of prepared data sets. (default: TFDS_DATA_DIR, or TFDS's own)")
]
_CacheDir = Annotated[str | None, _option("DIR", "Folder of compiled programs. (default: in the user's cache)")]
_NumImages = Annotated[
    int | None, _COUNT, _option("N", f"Measure the first N images. (default: {_NUM_IMAGES}, or all if fewer)")
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """The options of all commands."""

    debug: Annotated[bool, _option("", "Show the traceback of an error.")] = False

    def run(self) -> None:
        """Runs the command."""
        raise NotImplementedError

    def remedy(self, arguments: list[str]) -> str:
        """The text that says how to go on after the command was stopped."""
        return f"start again with: {_typed(arguments)}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class List(Command):
    """List the experiments by data set, and what has been run."""

    results: Annotated[pathlib.Path, _PATH, _option("DIR", "Folder of results. (default: results)")] = _RESULTS

    def run(self) -> None:
        width = max(map(len, registry.names()))
        for heading, table in registry.tables().items():
            print(f"{heading}:")
            for name, experiment in table.items():
                states = (_state(run.folder_of(name, is_quick=quick, root=self.results)) for quick in (False, True))
                state = "; ".join(form + text for form, text in zip(("", "quick form "), states, strict=True) if text)
                print(f"  {name:<{width}}  {experiment.title}{f'  [{state}]' * bool(state)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(Command):
    """Run an experiment, or what is left of it to do. `run NAME --help` shows its settings."""

    name: Annotated[Positional[str], _option("NAME", "Name of the experiment. (default: digits)")] = "digits"
    quick: Annotated[bool, _option("", "Run its quick form, on little data: seconds to two minutes.")] = False
    folder: Annotated[
        pathlib.Path | None, _PATH, _option("DIR", "Folder of the results. (default: results/NAME[_quick])")
    ] = None
    fresh: Annotated[bool, _option("", "Start over: remove what the run has written.")] = False
    data_dir: _DataDir = None
    cache_dir: _CacheDir = None
    settings: tyro.conf.Suppress[Any] = None  # the fields of the configuration

    def run(self) -> None:
        hmt_jax.cache_programs(self.cache_dir)
        kind = type(registry.form(self.name, is_quick=self.quick))
        config = kind(**vars(self.settings))
        options: Any = {"is_quick": self.quick, "data_dir": self.data_dir or None, "fresh": self.fresh}
        run.run(self.name, config, self._path, **options)

    @property
    def _path(self) -> pathlib.Path:
        return self.folder or run.folder_of(self.name, is_quick=self.quick, root=_RESULTS)

    def remedy(self, arguments: list[str]) -> str:
        if not self._path.exists():
            return f"nothing was written; {super().remedy(arguments)}"
        if not store.is_finished(self._path):  # the results there are already fresh ones
            arguments = [argument for argument in arguments if argument != "--fresh"]
        return f"the results so far are in {self._path}; go on with: {_typed(arguments)}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audit(Command):
    """Measure some pairs of a run again with the solver `tight`, and compare."""

    folder: _Finished
    num_images: _NumImages = None
    effort: Annotated[Literal["fast", "normal", "thorough"], arg(help="Effort of that solver.")] = "thorough"
    certify: Annotated[int, _COUNT, arg(metavar="N", help="Prove lower bounds for the first N images.")] = 0
    data_dir: _DataDir = None
    cache_dir: _CacheDir = None

    def run(self) -> None:
        num_images = _num_images_of(self.folder, self.num_images)
        if self.certify > num_images:
            raise ValueError(
                f"--certify {self.certify} is more than the {num_images} images that are measured: raise --num-images, "
                "or lower --certify"
            )
        hmt_jax.cache_programs(self.cache_dir)
        options: Any = {"effort": self.effort, "num_certified": self.certify, "data_dir": self.data_dir or None}
        print(audit.audit(self.folder, num_images=num_images, **options))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareSolvers(Command):
    """Compare all solvers on the network of a run."""

    folder: _Finished
    num_images: _NumImages = None
    data_dir: _DataDir = None
    cache_dir: _CacheDir = None

    def run(self) -> None:
        num_images = _num_images_of(self.folder, self.num_images)
        hmt_jax.cache_programs(self.cache_dir)
        print(compare_solvers.compare_solvers(self.folder, num_images=num_images, data_dir=self.data_dir or None))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scorecard(Command):
    """Add finished runs to the stored results, and make the tables of experiments/README.md anew."""

    folders: Annotated[Positional[tuple[str, ...]], _option("RUN", "Folders of finished runs. (default: none)")] = ()
    hardware: Annotated[str | None, _option("TEXT", 'Hardware of these runs, such as "2 CPU cores".')] = None

    def run(self) -> None:
        print(tables.scorecard([_path([text]) for text in self.folders], hardware=self.hardware))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepare(Command):
    """Download a data set, and prepare it for reading."""

    name: Annotated[Positional[str], _option("DATA", f"One of {', '.join(data.names())}.")]
    data_dir: _DataDir = None

    def run(self) -> None:
        print(data.prepare(self.name, self.data_dir or None))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark(Command):
    """Measure how fast margins are measured here."""

    names: Annotated[
        Positional[tuple[str, ...]], _option("WORKLOAD", "Workloads. (default: all that this device is made for)")
    ] = ()
    scaling: Annotated[bool, _option("", "Measure time and memory over numbers of pairs and devices.")] = False
    tradeoffs: Annotated[bool, _option("", "Measure margins of fewer candidates, and of less precision.")] = False
    training: Annotated[bool, _option("", "Measure images a second in training, and from a folder.")] = False
    reference: Annotated[
        pathlib.Path | None, _PATH, _option("DIR", "Checkout of the authors' code, to time beside (not ResNet-50).")
    ] = None
    output: Annotated[
        pathlib.Path | None, _PATH, _option("FILE", "JSON file. (default: results/benchmark.json, scaling.json, ...)")
    ] = None
    data_dir: _DataDir = None

    def run(self) -> None:
        modes = [mode for mode in ("scaling", "tradeoffs", "training") if getattr(self, mode)]
        mode = modes[0] if modes else "benchmark"
        if len(modes) > 1:
            raise ValueError(f"--{modes[0]} and --{modes[1]} are two benchmarks: run one after the other")
        if self.reference is not None and modes:
            raise ValueError(f"--reference compares margins: leave it or --{mode} out")
        if self.names and mode in {"scaling", "tradeoffs"}:
            raise ValueError(f"--{mode} has a workload of its own: leave out {', '.join(self.names)}")
        output, data_dir = self.output or _RESULTS / f"{mode}.json", self.data_dir or None
        if mode == "scaling":
            margins.scaling(output, data_dir=data_dir)
        elif mode == "tradeoffs":
            tradeoffs.tradeoffs(output, data_dir=data_dir)
        elif mode == "training":
            training.throughput(self.names, output, data_dir=data_dir)
        else:
            margins.benchmark(self.names, output, data_dir=data_dir, reference=self.reference)


_COMMANDS = {
    "list": List,
    "run": Run,
    "audit": Audit,
    "compare-solvers": CompareSolvers,
    "scorecard": Scorecard,
    "prepare": Prepare,
    "benchmark": Benchmark,
}


def main(arguments: list[str] | None = None) -> int:
    """Runs the command that the arguments name, and returns the exit code.

    It is 0, 2 for an error of the user's, 1 for an unexpected one, 130 after Ctrl-C, and 75 after SIGTERM: the same
    command then goes on.
    """
    given = sys.argv[1:] if arguments is None else arguments
    chosen: list[Command] = []

    def command() -> int:
        _main._check_once(given)
        try:
            chosen.append(_parsed(given))
        except SystemExit as error:  # tyro has printed the help or what is wrong
            return int(error.code or 0)
        _process.use_fast_convolutions()
        # TFDS warns through absl if a decoder is not installed or a folder holds no data. Our own messages say more.
        logging.getLogger("absl").setLevel(logging.ERROR)
        chosen[0].run()
        return 0

    def remedy() -> str:
        return chosen[0].remedy(given) if chosen else f"start again with: {_typed(given)}"

    return _process.run(command, remedy, reworded=lambda text: text, is_debugged="--debug" in given)


def _parsed(arguments: list[str]) -> Command:
    """The command with its arguments. The settings of `run` are those of the experiment that is named."""
    if (getattr(sys.stdout, "encoding", None) or "ascii").lower().replace("-", "") != "utf8":
        os.environ.setdefault("PYTHON_TYRO_UTF8_BOXES", "False")
    if arguments[:1] == ["run"]:
        is_named = len(arguments) > 1 and not arguments[1].startswith("-")
        name, rest = (arguments[1], arguments[2:]) if is_named else ("digits", arguments[1:])
        settings = _settings(registry.form(name, is_quick="--quick" in rest))
        field = ("settings", settings, dataclasses.field(default_factory=settings))
        return tyro.cli(
            dataclasses.make_dataclass("Run", [field], bases=(Run,), frozen=True, kw_only=True),
            prog=f"python -m experiments run {name}",
            description=inspect.cleandoc(registry.get(name).note),
            args=[name, *rest],
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
        )
    app = tyro.extras.SubcommandApp()
    for name, command in _COMMANDS.items():
        app.command(name=name)(command)
    return app.cli(
        prog="python -m experiments",
        description="Experiments on margins.",
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def _settings(config: Config) -> type:
    """A dataclass with the fields of a configuration as defaults, which checks nothing.

    tyro would show what a configuration itself raises in a box, broken into lines.
    """
    hints = typing.get_type_hints(type(config))
    fields = [
        (field.name, hints[field.name], dataclasses.field(default=getattr(config, field.name)))
        for field in dataclasses.fields(config)
    ]
    return dataclasses.make_dataclass(
        "Settings", fields, frozen=True, kw_only=True, namespace={"__doc__": type(config).__doc__}
    )


def _typed(arguments: list[str]) -> str:
    return shlex.join(["python", "-m", "experiments", *arguments])


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


def _num_images_of(path: pathlib.Path, asked: int | None) -> int:
    """The number of images of a finished run to measure again; ValueError if more are asked for than the run has."""
    store.check_finished(path)
    num_there = store.settings(path).get("num_images", math.inf)
    if asked is None:
        return min(_NUM_IMAGES, num_there)
    _checks.integer("--num-images", asked, at_least=1)
    if asked > num_there:
        raise ValueError(
            f"--num-images {asked} is more than the {num_there} images of the run in {path}: lower it to at most "
            f"{num_there}"
        )
    return asked


if __name__ == "__main__":
    sys.exit(main())
