"""Runs a notebook from top to bottom, as Jupyter does: `python run_notebook.py NOTEBOOK [--short]`.

It needs no Jupyter, and nothing of the tests, for it runs where only the library is installed. With `--short`,
trainings and sets of images are small.
"""

import ast
import io
import json
import pathlib
import re
import shlex
import subprocess
import sys
import warnings


def cells_of(path):
    """The code cells of a notebook."""
    cells = json.loads(pathlib.Path(path).read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def pip(arguments):
    """What `%pip` does."""
    subprocess.run([sys.executable, "-m", "pip", *shlex.split(arguments)], check=True)


def as_python(cell):
    """A cell without what IPython alone understands."""
    cell = re.sub(r"^( *)%pip (.+)$", lambda found: f"{found[1]}_pip({found[2]!r})", cell, flags=re.MULTILINE)
    return re.sub(r"^%matplotlib inline$", "", cell, flags=re.MULTILINE)


def value_of(cell, names):
    """Runs a cell, and returns the value of its last line, if that is an expression."""
    tree = ast.parse(as_python(cell))
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), names)


def shorten():
    """Lets trainings end after 5 epochs, and measures at most 20 images."""
    import hmt_jax
    from hmt_jax import training

    class FewEpochs(training.Recipe):
        def __init__(self, num_epochs, **settings):
            super().__init__(min(num_epochs, 5), **settings)

    measure = hmt_jax.measure_margins
    training.Recipe = FewEpochs
    # More images make more sizes of batches, each compiled for every set of subspaces.
    hmt_jax.measure_margins = lambda classifier, images, *others: measure(classifier, images[:20], *others)


def main(path, *options):
    install, *cells = cells_of(path)
    names = {"_pip": pip}
    value_of(install, names)
    if "--short" in options:
        shorten()
    warnings.simplefilter("error")
    shown = [value_of(cell, names) for cell in cells]

    from matplotlib.figure import Figure

    from hmt_jax.margins import MarginResult

    assert isinstance(shown[-1], Figure) or type(shown[-1]).__name__ == "DataFrame", "ends with no picture and no table"
    for figure in [value for value in shown if isinstance(value, Figure)]:
        figure.savefig(io.BytesIO())
        assert figure.axes[0].has_data()
    for result in [value for value in names.values() if isinstance(value, MarginResult)]:
        assert result.is_converged.all()


if __name__ == "__main__":
    main(*sys.argv[1:])
