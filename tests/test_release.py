"""What is published beside the code agrees with it: versions, licences, addresses, recipes."""

import re
from pathlib import Path

import pytest
import yaml

from lightly_collapse import __version__

ROOT = Path(__file__).parents[1]
tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")
if not (ROOT / "pyproject.toml").is_file():
    pytest.skip("not run from a checkout", allow_module_level=True)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
_CONDA = {
    "pytorch": "torch",
    "matplotlib-base": "matplotlib",
    "typing_extensions": "typing-extensions",
}


def lowest(requirements):
    """The lowest version of each requirement, by its name on PyPI."""
    found = {}
    for requirement in requirements:
        name, version = re.fullmatch(r"([\w-]+)(?:\[.*\])? ?>=([\d.]+)", requirement).groups()
        found[_CONDA.get(name, name)] = version
    return found


def test_version_is_that_of_changelog_and_citation():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## ([\d.]+)", text, re.MULTILINE)[1] == __version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__


def test_conda_recipe_has_the_versions_of_the_package():
    text = (ROOT / ".ci" / "conda" / "meta.yaml").read_text(encoding="utf-8")
    assert f'version = "{__version__}"' in text
    plain = re.sub(r"\{%.*%\}", "", re.sub(r"\{\{.*?\}\}", "x", text))
    recipe = yaml.safe_load(plain)
    run = lowest(r for r in recipe["requirements"]["run"])
    run.pop("python")
    for name in ("docstring_parser", "typeshed-client"):  # of jsonargparse[signatures]
        run.pop(name)
    assert run == lowest(PROJECT["dependencies"])
    assert recipe["about"]["license"] == PROJECT["license"]


def test_every_dependency_is_explained():
    text = (ROOT / "docs" / "guide" / "install.md").read_text(encoding="utf-8")
    table = text[text.index("| package | for |") :].partition("\n## ")[0]
    names = {n.strip() for row in re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE)
             for n in row.split(",")}  # fmt: skip
    assert names - {"package", "---"} == {*lowest(PROJECT["dependencies"])}
    extras = set(
        re.findall(r"`([\w-]+)`", text[text.index("| extra |") : text.index("| package |")])
    )
    assert set(PROJECT["optional-dependencies"]) <= extras


@pytest.mark.parametrize("name", ["tests", "docs"])
def test_workflows_are_yaml_with_jobs(name):
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text())
    for job in workflow["jobs"].values():
        assert job["steps"][0]["uses"].startswith("actions/checkout")


def test_workflow_runs_every_python_that_the_package_declares():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
    declared = {c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)}
    assert set(workflow["jobs"]["tests"]["strategy"]["matrix"]["python"]) == declared
