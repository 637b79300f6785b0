"""Options that have no effect together with others are named, in the words of each interface."""

from __future__ import annotations

import inspect
import warnings
from types import SimpleNamespace

import pytest

from riemannian_diffusion.cli import main
from riemannian_diffusion.geodesics import NUM_QUADRATURE, PathLBFGS
from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline
from riemannian_diffusion.pipelines.curves import CURVES, MODEL_CURVES
from riemannian_diffusion.pipelines.unused import (
    CURVE_NAMES,
    OF_CURVES,
    OF_SOLVES,
    UnusedWarning,
    unused_by_curves,
)

FEW = ["--steps", "4", "--frames", "3", "--max-evals", "1", "--device", "cpu"]


def test_names_and_defaults_are_those_of_the_library():
    options = inspect.signature(GeodesicInterpolationPipeline.solve).parameters
    assert tuple(CURVES) == CURVE_NAMES
    assert {name: options[name].default for name in OF_SOLVES} == OF_SOLVES
    assert OF_SOLVES["num_quadrature"] == NUM_QUADRATURE
    others = {"self", "keys", "metric", "num_frames", "generator", "on_event"}  # curves take these
    assert {*options} == {*OF_SOLVES, *others}
    for name, curves in OF_CURVES.items():
        assert name in OF_SOLVES and {*curves} <= {*CURVES}
    assert {*OF_CURVES["score_mode"]} == {*MODEL_CURVES}


@pytest.mark.parametrize(
    ("metrics", "options", "unused"),
    [
        (["slerp"], {"init": "lerp"}, "`init` has no effect on metric='slerp'"),
        (["nao"], {"max_evals": 5, "rtol": 0.1}, "`max_evals` and `rtol` have no effect on metric"),
        (["slerp", "lerp"], {"init": ["lerp"]}, "metric='slerp' and metric='lerp'"),
        (["slerp", "stein"], {"init": "lerp"}, None),  # stein reads it
        (["slerp"], {"init": None, "max_evals": 200, "rtol": 1e-3}, None),
        ([lambda score: None], {"init": "lerp"}, None),
        (["slerp"], {"checkpoint": "file"}, "`checkpoint` has no effect on metric='slerp'"),
        (["nao"], {"score_mode": "guided"}, "`score_mode` has no effect on metric='nao'"),
        (["split"], {"score_mode": "guided"}, None),  # split reads it
        (["slerp", "density"], {"score_mode": "guided"}, None),
    ],
)
def test_options_of_solves_are_unused_by_curves(metrics, options, unused):
    found = unused_by_curves(metrics, **options)
    assert found is None if unused is None else unused in found


def test_python_warns(pipe_and_keys):
    pipe, keys = pipe_and_keys
    with pytest.warns(UnusedWarning, match="`init` has no effect on metric='lerp'"):
        pipe.solve(keys, "lerp", num_frames=3, init="slerp")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnusedWarning)
        pipe.solve(keys, "lerp", num_frames=3)
        pipe.solve(keys, "tangent_normal", num_frames=3, init="slerp", max_evals=1)


@pytest.mark.parametrize("name", OF_SOLVES)
def test_python_warns_of_every_option_of_a_solve(pipe_and_keys, tmp_path, name):
    given = {
        "init": "slerp",
        "solver": PathLBFGS(),
        "max_evals": 5,
        "rtol": 0.1,
        "num_quadrature": 3,
        "score_mode": "guided",
        "checkpoint": tmp_path / "solve",
    }
    pipe, keys = pipe_and_keys
    with pytest.warns(UnusedWarning, match=f"`{name}` has no effect on metric='lerp'"):
        pipe.solve(keys, "lerp", num_frames=3, **{name: given[name]})


def test_the_command_warns_before_the_work(tmp_path, capsys):
    output = ["-o", str(tmp_path / "m.png"), *FEW]
    options = ["--metric", "slerp", "--init", "roadmap", "--fps", "9", "--adapt-cache", "x"]
    assert main(["interpolate", *output, *options]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "no effect" in line]
    starts = [line.removeprefix("riemannian-diffusion: warning: ")[:42] for line in lines]
    assert starts == [
        "--init and --max-evals have no effect on -",
        "--adapt-cache has no effect without --adap",
        "--fps has no effect on a grid or a folder ",
    ]
    assert "--metric slerp" in lines[0]


def test_the_page_warns_in_its_labels(monkeypatch):
    pytest.importorskip("gradio")
    from riemannian_diffusion.app import page

    told = []
    monkeypatch.setattr(page.gr, "Warning", told.append)
    monkeypatch.setattr(page, "fit_images", lambda *_: [])
    settings = SimpleNamespace(
        **{"width": 64, "height": 64, "images": [], "analogy": None, "morph": dict, "seed": 0},
        **{"metrics": ["slerp"], "space": "noise", "starts": ["lerp"], "max_evals": 200},
        inversion=dict,
    )
    asked = SimpleNamespace(
        native_size=lambda: 64,
        check=lambda *_: None,
        invert=lambda *_, **__: None,
        morphs=lambda *_, **__: [],
    )
    assert not list(page._morphs(asked, settings, None))
    assert told and told[0].startswith("“Start from” has no effect on “Metric” slerp")


@pytest.fixture
def pipe_and_keys(tiny_pipe, keyframes):
    return tiny_pipe, tiny_pipe.invert(keyframes, num_inference_steps=4)
