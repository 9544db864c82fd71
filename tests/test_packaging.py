"""What the project says of itself to package managers is true."""

import pathlib
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import fresh
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import hmt_jax

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
FOLDERS = ("hmt_jax", "experiments", "tests", "docs", "notebooks", ".github", ".ci")
TEXTS = [
    *(path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*")) if path.suffix != ".json"),
    *ROOT.glob("*.md"),
    ROOT / "pyproject.toml",
]


def requirements(*extras):
    """All requirements of the library with extras, those of extras that they name included."""
    found = [Requirement(text) for text in PROJECT["dependencies"]] if not extras else []
    for extra in extras:
        for each in map(Requirement, EXTRAS[extra]):
            found += requirements(*sorted(each.extras)) if each.name == "hmt-jax" else [each]
    return found


def test_every_extra_that_a_text_names_is_there():
    named = {}
    for path in TEXTS:
        if path.is_file() and path.suffix in (".md", ".py", ".ipynb", ".toml", ".yml", ".yaml", ""):
            for extras in re.findall(r"(?:hmt[-_]jax|['\" ]\.)\[([a-z,]+)\]", path.read_text()):
                named |= dict.fromkeys(extras.split(","), path)
            if path.parts[len(ROOT.parts)] == "hmt_jax" and path.suffix == ".py":
                called = re.findall(r"\brequire\(\s*f?\"[^\"]*\", \"([a-z]+)\"", path.read_text())
                named |= dict.fromkeys(called, path)
    assert {"all", "data", "plots", "report", "torch"} <= set(named)
    assert {extra: path for extra, path in named.items() if extra not in EXTRAS} == {}


def test_locked_versions_are_those_that_the_bounds_allow():
    lines = re.findall(r"^([\w.-]+)==(\S+)(?: ; (.+?))? \\$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    locked = {}
    for name, version, _ in lines:
        locked.setdefault(canonicalize_name(name), []).append(Version(version))
    for each in [*requirements(), *requirements("all", "test")]:
        versions = locked[canonicalize_name(each.name)]
        assert all(each.specifier.contains(version, prereleases=True) for version in versions), (each, versions)


@pytest.mark.slow
def test_packages_hold_the_library_and_no_more(packages):
    (wheel,), (source,) = packages.glob("*.whl"), packages.glob("*.tar.gz")
    assert f"-{hmt_jax.__version__}-" in wheel.name
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", wheel, source], check=True)
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "hmt_jax").rglob("*") if path.is_file()}
    library = {file for file in files if "__pycache__" not in file}
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if ".dist-info/" not in name} == library
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert library < names
    top = {name.partition("/")[0] for name in names}
    assert {"CITATION.cff", "LICENSE", "README.md", "docs", "experiments", "notebooks", "tests"} < top
    assert {name for name in top if name.startswith(".")} <= {".gitignore"}
    assert not top & {"build", "data", "dist", "results"}


@pytest.mark.slow
def test_the_wheel_works_without_the_checkout(packages, tmp_path):
    environment = fresh.Environment(tmp_path, packages)
    (tmp_path / "elsewhere").mkdir()
    environment.run("python", "-m", "pip", "install", "hmt-jax[all]", cwd=tmp_path)
    assert "resnet18" in environment.run("hmt", "models", cwd=tmp_path / "elsewhere")
    program = """
import importlib, pkgutil
import jax, jax.numpy as jnp, numpy as np
import hmt_jax
for module in pkgutil.walk_packages(hmt_jax.__path__, "hmt_jax."):
    if module.name.count(".") == 1 and "._" not in module.name and module.name != "hmt_jax.__main__":
        importlib.import_module(module.name)
for name in hmt_jax.__all__:
    getattr(hmt_jax, name)
classifier = jax.tree_util.Partial(lambda w, images: images.reshape(len(images), -1) @ w, jnp.eye(4, 2))
images = jnp.array([0.9, 0.5, 0.5, 0.5]).reshape(1, 2, 2, 1)
result = hmt_jax.measure_margins(classifier, images, hmt_jax.subspaces.full((2, 2, 1)))
np.testing.assert_allclose(result.margin, 0.4 / 2**0.5, rtol=1e-5)
hmt_jax.report.write("page.html", [hmt_jax.report.Measurement(name="linear", result=result, subspaces=["whole"])])
print(hmt_jax.__file__)
"""
    printed = environment.run("python", "-c", program, cwd=tmp_path / "elsewhere")
    assert str(tmp_path) in printed


def test_the_citation_names_this_version_and_the_paper_of_the_urls():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == hmt_jax.__version__
    assert citation["license"] == PROJECT["license"]
    (author,) = PROJECT["authors"]
    assert citation["authors"] == [author]
    (paper,) = citation["references"]
    assert paper["url"] == PROJECT["urls"]["Paper"]


def test_hooks_before_a_commit_are_commands_of_the_checks():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    checks = (ROOT / ".ci" / "run").read_text()
    for hook in repository["hooks"]:
        assert f".venv/bin/{hook['entry'].removesuffix(' --force-exclude')}" in checks
        assert hook["language"] == "system"


def test_workflows_have_few_rights_and_run_every_version_that_is_declared():
    (path,) = (ROOT / ".github" / "workflows").iterdir()
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    assert "secrets" not in path.read_text()
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"]) for step in steps if "uses" in step)
    matrix = workflow["jobs"]["versions"]["strategy"]["matrix"]["include"]
    classifiers = [text.removeprefix("Programming Language :: Python :: ") for text in PROJECT["classifiers"]]
    assert [each["python"] for each in matrix] == [text for text in classifiers if re.fullmatch(r"3\.\d+", text)]
    assert PROJECT["requires-python"] == f">={matrix[0]['python']}"
