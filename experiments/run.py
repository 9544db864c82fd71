"""A run of any experiment, into a folder of its own."""

import dataclasses
import pathlib

from experiments import page, registry, store, tables
from experiments.experiment import Config, Run


def run(
    name: str,
    config: Config,
    path: pathlib.Path,
    *,
    is_quick: bool = False,
    data_dir: str | None = None,
    fresh: bool = False,
) -> None:
    """Runs an experiment into a folder, or what is left of it to do, and tests its claims.

    Args:
      name: name of the experiment.
      config: its configuration, or one that differs in some fields.
      path: the folder; made if it is not there.
      is_quick: whether this is its quick form, whose claims prove nothing.
      data_dir: folder of prepared data sets; TFDS's own if not given.
      fresh: whether to remove first what an earlier run has written into the folder.

    Raises:
      ValueError: if the folder belongs to another configuration, another run is at work in it, its files have changed
        since the run wrote them, the data set is not prepared, or a setting does not fit the data.
      FloatingPointError: if training diverges.
      OSError: if the folder can't be written.
    """
    experiment = registry.get(name)
    with store.held(path):
        described = store.to_json(name, config)
        if not fresh:
            store.verify(path)
        store.check(path, described)
        if store.is_finished(path) and not fresh:
            print(f"{name} is finished already; --fresh starts over")
            if not all((path / file).exists() for file in store.PAGE):
                page.write(path, config, store.verdicts(path))
        else:
            config.check(data_dir)
            beside = None
            if config.baseline != "none":
                beside = _run_baseline(name, config, path, is_quick=is_quick, data_dir=data_dir)
            store.start(path, described, fresh=fresh)
            if beside is not None:
                store.refer(path, beside)
            with store.timed(path):
                config.run(Run(name, path, data_dir, beside))
            verdicts = {"is_quick": is_quick, "claims": [claim.test(path) for claim in experiment.claims]}
            page.write(path, config, verdicts)
            store.finish(path, verdicts)
    print(config.report(path))
    finished = store.verdicts(path)
    if finished["claims"]:
        print("\n" + tables.aligned(tables.verdicts(finished["claims"])))
    for verdict in finished["claims"]:
        if "undecided" in verdict:
            print(f"not decided, {verdict['claim']}: {verdict['undecided']}")
    if finished["is_quick"]:
        print("a quick run: its claims prove nothing")
    print(f"\nresults: {path}")


def folder_of(name: str, *, is_quick: bool = False, root: pathlib.Path = pathlib.Path("results")) -> pathlib.Path:
    """The folder of the results of an experiment, if no other is named."""
    return root / (name + "_quick" * is_quick)


def _run_baseline(name, config, path, *, is_quick, data_dir) -> pathlib.Path:
    """The folder of the run that a configuration is compared with, after that run has finished.

    It has the settings of its own experiment, but for those that the user has changed here.
    """
    changes = registry.changes(name, dataclasses.asdict(config), is_quick=is_quick)
    other = config.baseline_config(registry.form(config.baseline, is_quick=is_quick), changes)
    if other == dataclasses.replace(config, **{"baseline": other.baseline}):
        raise ValueError(f"baseline={name} would compare the run with itself: name another experiment, or none")
    folder = folder_of(config.baseline, is_quick=is_quick, root=path.resolve().parent)
    if folder == path.resolve():
        raise ValueError(f"{path} is the place of {config.baseline}, which this run is compared with: choose another")
    store.check(folder, store.to_json(config.baseline, other))
    if store.is_finished(folder):
        store.verify(folder)
        print(f"{name} is compared with {config.baseline} in {folder}")
    else:
        print(f"{name} is compared with {config.baseline}, which runs first:")
        run(config.baseline, other, folder, is_quick=is_quick, data_dir=data_dir)
        print(f"\n{name}:")
    return folder
