"""Modules that an import loads in a fresh interpreter, and the order of imports."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import riemannian_diffusion

ROOT = Path(riemannian_diffusion.__file__).parent
PACKAGE = ROOT.name

# A module may import from its own layer and from those before it.
LAYERS = (
    *(
        "lazy",
        "runtime",
        "arguments",
        "files",
        "events",
        "batches",
        "score",
        "paths",
        "metrics",
        "ddim",
    ),
    *(
        "tangent",
        "geodesics",
        "geometry",
        "relaxing",
        "roadmaps",
        "baselines",
        "guidance",
        "levels",
    ),
    "measures",
    *("media", "adaptation", "plotting", "pipelines", "evaluation", "demo", "pairs", "app", "cli"),
    "__main__",
)
# Names of the package whose modules import diffusers.
NEED_DIFFUSERS = {
    *("Adaptation", "LoraMix", "ManifoldGuidance", "adapt", "fit_embeddings", "fit_lora"),
    "interpolated_attention",
}


def loaded_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after running code."""
    code += "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules})"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "code",
    [
        f"import {PACKAGE}",
        f"import {PACKAGE}.runtime, {PACKAGE}.pipelines, {PACKAGE}.guidance",
        f"from {PACKAGE}.cli import main",
    ],
)
def test_packages_alone_load_no_library(code):
    assert not loaded_after(code) & {"torch", "diffusers", "transformers", "numpy", "PIL"}


@pytest.mark.parametrize("arguments", [[], ["interpolate"], ["batch"], ["evaluate"], ["app"]])
def test_help_loads_no_library(arguments):
    code = f"""
from {PACKAGE}.cli import main
try:
    main({[*arguments, "--help"]})
except SystemExit as stop:
    assert stop.code == 0
"""
    assert not loaded_after(code) & {"torch", "diffusers", "transformers", "numpy", "PIL"}


MORPH = ["interpolate", "--output"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--version"],
        ["nothing"],
        ["interpolate"],
        ["evaluate", "folder", "--protocol", "none"],
        [*MORPH, "here.txt"],
        [*MORPH, "nowhere/here.gif"],
        [*MORPH, "here.gif", "--strength", "2"],
        [*MORPH, "here.gif", "--steps", "0"],
        [*MORPH, "here.gif", "--max-evals", "0"],
        [*MORPH, "here.gif", "--frames", "1"],
        [*MORPH, "here.gif", "missing.png", "missing.png"],
        [*MORPH, "here.gif", "--prompt", "a", "--prompt", "b", "--prompt", "c"],
    ],
    ids=" ".join,
)
def test_bad_arguments_are_refused_without_pytorch(arguments):
    code = f"""
from {PACKAGE}.cli import main
try:
    status = main({arguments})
except SystemExit as stop:
    status = stop.code
assert status == {0 if arguments == ["--version"] else 2}
"""
    assert not loaded_after(code) & {"torch", "diffusers", "transformers"}


def test_the_first_line_is_printed_before_pytorch_is_loaded(tmp_path):
    """A process whose imports of PyTorch fail has printed what it is about to load."""
    code = f"""
import sys
sys.modules["torch"] = None
from {PACKAGE}.cli import main
main({[*MORPH, str(tmp_path / "here.gif")]})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "loading the shipped model ...\n"
    assert "torch" in done.stderr


def test_pipelines_do_not_load_the_guiders_of_diffusers():
    code = f"from {PACKAGE}.pipelines import *\nfrom {PACKAGE}.guidance import ManifoldGuidedScore"
    code += "\nassert 'diffusers.guiders' not in sys.modules"
    assert "diffusers" in loaded_after("import sys\n" + code)


def test_geometry_does_not_load_diffusers():
    names = sorted(set(riemannian_diffusion.__all__) - NEED_DIFFUSERS)
    code = f"from {PACKAGE} import {', '.join(names)}\nimport {PACKAGE}.baselines"
    loaded = loaded_after(code)
    assert "torch" in loaded and not loaded & {"diffusers", "transformers"}


@pytest.mark.parametrize("package", ["", ".pipelines", ".guidance", ".demo"])
def test_every_lazy_name_resolves(package):
    """The names in `__all__`, in `__dir__` and in the imports for type checkers are the same."""
    module = import_module(f"{PACKAGE}{package}")
    assert all(getattr(module, name) is not None for name in module.__all__)
    assert set(module.__all__) <= set(dir(module))
    tree = ast.parse(Path(module.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.name for node in block.body for alias in node.names}
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert typed == set(module.__all__) - {"__version__", *defined}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = module.nothing


GEODESICS = f"""
import {PACKAGE}, inspect, torch
from {PACKAGE} import EuclideanMetric, geodesics
assert {PACKAGE}.geodesics is geodesics and inspect.ismodule(geodesics)
assert {PACKAGE}.geodesics.PathLBFGS is {PACKAGE}.PathLBFGS
assert "metric" in inspect.signature(geodesics).parameters
x0, x1 = torch.zeros(2, 3), torch.ones(2, 3)
first, second = geodesics(EuclideanMetric(), x0, x1, num_points=5, init="lerp")
assert first.path.shape == second.path.shape == (5, 3)
"""


@pytest.mark.parametrize(
    "before",
    [
        f"from {PACKAGE} import geodesics",
        f"import {PACKAGE}.geodesics",
        f"from {PACKAGE}.geodesics import PathLBFGS, geodesics",
        f"from {PACKAGE} import geodesic, PathLBFGS",
    ],
)
def test_geodesics_is_a_subpackage_and_a_function_in_every_order(before):
    loaded_after(before + GEODESICS)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports_of(path: Path) -> set[str]:
    """Modules of the package that a file imports, also in functions, but not for type checkers."""
    found = set()
    nodes: list[ast.AST] = [ast.parse(path.read_text())]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            nodes += node.orelse
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                if node.module == PACKAGE and name not in MODULES:  # this name is public
                    name = getattr(riemannian_diffusion, alias.name).__module__
                found.add(name if name in MODULES else node.module)
    return found & MODULES.keys()


IMPORTS = {name: imports_of(path) for name, path in MODULES.items()}


def layer(module: str) -> int:
    return LAYERS.index(module.split(".")[1])


def test_imports_follow_the_layers():
    inside = [name for name in MODULES if name != PACKAGE]
    wrong = [
        f"{name} imports {other}"
        for name in inside
        for other in IMPORTS[name] - {PACKAGE}
        if layer(other) > layer(name)
    ]
    assert not wrong
    assert IMPORTS[PACKAGE] <= {f"{PACKAGE}.lazy", f"{PACKAGE}.runtime"}
    assert all(PACKAGE not in IMPORTS[name] for name in inside)


def test_imports_have_no_cycle():
    list(graphlib.TopologicalSorter(IMPORTS).static_order())
