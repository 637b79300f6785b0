"""The notebooks run from top to bottom with the shipped model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples" / "notebooks").glob("*.ipynb"))
FEW = {
    "invert": {"num_inference_steps": 5},
    "solve": {"num_frames": 5, "max_evals": 2},
}


def with_few(method, options):
    """The method with fewer steps or frames than it is asked for."""
    return lambda self, *args, **given: method(self, *args, **given | options)


def cells(path: Path) -> list[str]:
    """The code of a notebook, cell by cell."""
    found = json.loads(path.read_text())["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == "code"]


def test_there_are_three():
    assert [path.stem for path in NOTEBOOKS] == ["evaluation", "first_morph", "geometry"]


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem != "first_morph"))
        for path in NOTEBOOKS
    ],
)
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for name, options in FEW.items():
        method = with_few(getattr(GeodesicInterpolationPipeline, name), options)
        monkeypatch.setattr(GeodesicInterpolationPipeline, name, method)
    namespace: dict = {}
    for number, code in enumerate(cells(path)):
        exec(compile(code, f"{path.name}, cell {number}", "exec"), namespace)
    printed = capsys.readouterr().out
    if path.stem == "first_morph":
        assert len(namespace["out"].frames) == 5 and (tmp_path / "morph.gif").stat().st_size > 0
        assert "stays on the data:" in printed
    elif path.stem == "geometry":
        assert int(namespace["found_dimension"].dimension) == 2
        off = (namespace["found"].path.norm(dim=1) - 1).abs().max()
        assert off < 0.03 < 0.3 < (namespace["straight"].norm(dim=1) - 1).abs().max()
        assert (namespace["arrived"] - namespace["x1"]).norm() < 0.05
    else:
        assert namespace["results"].sequences == ("pair_0", "pair_1", "pair_2")
        assert "largest step" in printed


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_has_no_outputs(path):
    notebook = json.loads(path.read_text())
    assert notebook["nbformat"] == 4 and path.stat().st_size < 20e3
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
