"""Public names have examples in their docstrings, and the examples run."""

from __future__ import annotations

import doctest
import inspect
import pkgutil
from importlib import import_module
from pathlib import Path

import pytest

ROOT = import_module("riemannian_diffusion")
MODULES = [
    module.name
    for module in pkgutil.walk_packages(ROOT.__path__, "riemannian_diffusion.")
    if not module.name.endswith("__main__")
]
# Names whose examples are in the guide or a notebook, which other tests run, or whose objects the
# pipelines make.
ELSEWHERE = {
    *("tangent_basis", "tangent_spectrum", "split_tangent", "normal_curvature"),
    *("second_fundamental_form", "read_schedule"),
}
MADE = {"Levels", "Schedule", "Departure", "PathEnergy", "Problem", "solving"}
SERVED = {"Limits", "Models", "Offer", "build", "serve", "main"}  # the page and the command
EXAMPLES = Path(__file__).parents[1] / "examples"


def public() -> dict[str, object]:
    """The public classes and functions, each once, by the name of its module and its own."""
    found = {}
    for module in map(import_module, [ROOT.__name__, *MODULES]):
        names = getattr(module, "__all__", ())
        for name in vars(module) if module.__name__.endswith(".plotting") else names:
            value = getattr(module, name)
            value = getattr(value, name, value) if inspect.ismodule(value) else value
            here = str(getattr(value, "__module__", "")).startswith("riemannian_diffusion")
            if (
                here
                and not name.startswith("_")
                and name not in ELSEWHERE | MADE | SERVED
                and (inspect.isclass(value) or inspect.isroutine(value))
            ):
                found[f"{value.__module__}.{name}"] = value
    return found


PUBLIC = public()


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_the_example_runs(name):
    """Each example stands alone: it runs with nothing else imported."""
    value = PUBLIC[name]
    text = inspect.getdoc(value) or ""
    assert ">>>" in text, "the docstring has no example"
    test = doctest.DocTestParser().get_doctest(text, {}, name, name, 0)
    found = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test)
    assert test.examples and not found.failed
    runs = [one for one in test.examples if not one.options.get(doctest.SKIP)]
    assert runs or ".families." in name, "no line of the example runs"  # families need downloads


@pytest.mark.parametrize("name", sorted(ELSEWHERE))
def test_the_guide_or_a_notebook_has_an_example(name):
    texts = [EXAMPLES / "README.md", *(EXAMPLES / "notebooks").glob("*.ipynb")]
    assert any(f"{name}(" in path.read_text() for path in texts)
