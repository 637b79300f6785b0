"""The sdist and the wheel, the project's address, and the files of `.github`."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from riemannian_diffusion import __version__

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest itself needs tomli
    import tomli as tomllib
ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REPOSITORY = PROJECT["urls"]["Repository"]
GITHUB = ROOT / ".github"
IGNORED = {".git", "__pycache__", ".venv", "build", "dist", "pages"}


def texts() -> list[Path]:
    """Every text file of the project that may name its address."""
    suffixes = {".md", ".py", ".toml", ".yml", ".ipynb"}
    found = (path for path in ROOT.rglob("*") if path.suffix in suffixes)
    return [path for path in found if not IGNORED & set(path.relative_to(ROOT).parts)]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """The folder of an unpacked sdist."""
    folder = tmp_path_factory.mktemp("sdist")
    build = "import sys, hatchling.build as b; print(b.build_sdist(sys.argv[1]))"
    command = [sys.executable, "-c", build, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    with tarfile.open(folder / done.stdout.split()[-1]) as archive:
        archive.extractall(folder)
    return folder / f"riemannian_diffusion-{__version__}"


def test_the_sdist_holds_what_git_tracks(unpacked):
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("this is no clone")
    names = {name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()}
    missing = {name for name in names if not (unpacked / name).is_file()}
    assert len(names) > 300 and not missing


@pytest.mark.slow
def test_tests_run_in_the_sdist(unpacked):
    """These tests read other tests, examples, results of benchmarks and the shipped files."""
    files = (
        "test_benchmark_tables.py",
        "test_examples.py::test_globe",
        "test_readme.py::test_named_tests_exist",
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += [f"tests/{name}" for name in files]
    done = subprocess.run(
        command,
        cwd=unpacked,
        env=os.environ | {"PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]


def test_the_wheel_holds_the_package_and_its_data(tmp_path):
    build = "import sys, hatchling.build as b; print(b.build_wheel(sys.argv[1]))"
    command = [sys.executable, "-c", build, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    with zipfile.ZipFile(tmp_path / done.stdout.split()[-1]) as archive:
        names = set(archive.namelist())
    files = (path for path in (ROOT / "riemannian_diffusion").rglob("*") if path.is_file())
    relative = {p.relative_to(ROOT).as_posix() for p in files if "__pycache__" not in p.parts}
    assert relative == {name for name in names if ".dist-info/" not in name}


def test_one_address():
    """Every document names the repository and the pages that `pyproject.toml` names."""
    owner, name = REPOSITORY.split("/")[-2:]
    wrong = []
    for path in texts():
        found = re.findall(rf"github\.com/([\w-]+)/{name}\b", path.read_text(encoding="utf-8"))
        pages = re.findall(rf"([\w-]+)\.github\.io/{name}\b", path.read_text(encoding="utf-8"))
        wrong += [(str(path), one) for one in (*found, *pages) if one != owner]
    assert not wrong
    assert all(url.startswith("https://") and name in url for url in PROJECT["urls"].values())


def test_links_of_the_documents_lead_to_files():
    missing = []
    for path in (path for path in texts() if path.suffix == ".md"):
        text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if target.startswith(("http", "mailto:")):
                continue
            name, _, anchor = target.partition("#")
            file = path.parent / name if name else path
            if not file.exists():
                missing.append((str(path.relative_to(ROOT)), target))
            elif anchor and anchor not in anchors(file):
                missing.append((str(path.relative_to(ROOT)), target))
    assert not missing


def anchors(file: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in headings}


def test_workflows_test_the_versions_that_the_package_names():
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    workflow = yaml.safe_load((GITHUB / "workflows" / "tests.yml").read_text())
    assert workflow["jobs"]["tests"]["strategy"]["matrix"]["python"] == named
    assert PROJECT["requires-python"] == f">={named[0]}"
    for path in GITHUB.glob("workflows/*.yml"):
        for name in re.findall(r"\.ci/\w+(?:\.py)?", path.read_text()):
            assert (ROOT / name).is_file(), name


def test_issue_forms_are_such():
    for path in GITHUB.glob("ISSUE_TEMPLATE/[!c]*.yml"):
        form = yaml.safe_load(path.read_text())
        assert form["name"] and form["description"]
        ids = [part["id"] for part in form["body"]]
        assert len(set(ids)) == len(ids)
        assert {part["type"] for part in form["body"]} <= {"input", "textarea", "checkboxes"}
        assert all(part["attributes"]["label"] for part in form["body"])


def test_the_changelog_begins_with_this_version():
    headings = re.findall(r"^## (\S+)", (GITHUB / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == __version__


@pytest.mark.slow
def test_api_pages_show_every_public_name(tmp_path):
    command = [sys.executable, str(ROOT / ".ci" / "api_pages.py"), "--output", str(tmp_path)]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    for name in ("", ".pipelines", ".evaluation"):
        module = importlib.import_module(f"riemannian_diffusion{name}")
        page = tmp_path / f"{module.__name__.replace('.', '/')}.html"
        shown = set(re.findall(r'section id="([^"]*)"', page.read_text()))
        assert set(module.__all__) - {"__version__"} <= shown | {"geodesics"}
    assert 'id="geodesics"' in (tmp_path / "riemannian_diffusion" / "geodesics.html").read_text()
