"""The papers' experiments: settings of the recipes, rows, and runs that are killed."""

from __future__ import annotations

import json

import pytest
import reproduce
import scenes
import torch
from models import to_pil
from torch.testing import assert_close

from riemannian_diffusion import ScoreJacobianMetric, SteinScoreMetric
from riemannian_diffusion.evaluation import PROTOCOLS, evaluator
from riemannian_diffusion.events import run as run_events
from riemannian_diffusion.geodesics import checkpoints

CURVES = ["paper", "default", "slerp"]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No weights are on disk, and none can be downloaded."""

    def refuse(network="inception", **options):
        raise OSError(f"{network} needs a file that could not be loaded.")

    monkeypatch.setattr(evaluator, "lpips_distance", refuse)
    monkeypatch.setattr(evaluator, "inception_features", refuse)


@pytest.fixture
def run(tmp_path, tiny_pipe, keyframes):
    """Run an experiment on two pairs with the tiny model, with 2 steps of Adam."""
    tiny_pipe.save_pretrained(tmp_path / "model")
    (tmp_path / "pairs").mkdir()
    for name, ends in (("cat", (0, 1)), ("dog", (1, 2))):
        for end, image in enumerate(ends):
            to_pil(keyframes)[image].save(tmp_path / "pairs" / f"{name}_{end}.png")

    def run(paper, *more):
        arguments = [paper, "--data", str(tmp_path / "pairs"), "--work", str(tmp_path / "work")]
        arguments += ["--model", str(tmp_path / "model"), "--max-evals", "2"]
        return reproduce.main([*arguments, "--methods", *CURVES, *more])

    return run


def test_recipes_have_the_papers_settings():
    for recipe in reproduce.RECIPES.values():
        assert (recipe.solver.lr, recipe.solver.final_lr, recipe.max_evals) == (1e-3, 1e-4, 500)
        assert recipe.num_quadrature == 1 and recipe.unknown
        assert {protocol.num_frames for protocol in recipe.protocols} == {recipe.num_frames}
    stein, jacobian = reproduce.RECIPES["stein"], reproduce.RECIPES["score_jacobian"]
    assert stein.metric.func is SteinScoreMetric and stein.metric.keywords == {"lam": 1000.0}
    assert stein.published == {} and stein.baselines == ("lerp", "slerp", "noise_diffusion")
    assert jacobian.metric is ScoreJacobianMetric and jacobian.num_frames == 11
    assert jacobian.ends["strength"] == 0.6 and jacobian.ends["num_inference_steps"] == 50
    assert jacobian.protocols[0] is PROTOCOLS["saito11"] and jacobian.compared == (900, 200)
    figures = {"animation": 0.38, "metamorphosis": 0.974, "celeba_hq": 0.632, "afhq": 0.761}
    assert jacobian.published == figures


@pytest.mark.parametrize(
    ("paper", "timestep", "frames"), [("stein", 401, 10), ("score_jacobian", 581, 11)]
)
def test_an_experiment(run, tmp_path, capsys, paper, timestep, frames):
    rows = run(paper, "--out", str(tmp_path / "out.json"))
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["rows"] == rows and report["command"].startswith("python benchmarks/reproduce.py")
    names = {protocol.name for protocol in reproduce.RECIPES[paper].protocols}
    assert {row["protocol"] for row in rows} == {f"{name}, 16 px" for name in names}
    assert [row["method"] for row in rows if row["measure"] == "re"] == CURVES
    assert {row["measure"] for row in rows} == {"re", "largest_step"}
    assert all(row["pairs"] == 2 and row["published"] is None for row in rows)
    assert "Not measured: fid, kid. inception needs a file that could not be loaded.\n" in printed
    assert "alex needs a file that could not be loaded.\n" in printed
    for sentence in reproduce.RECIPES[paper].unknown:
        assert f"- {sentence}\n" in printed
    assert "The images have 16 x 16 pixels" in printed

    for method in CURVES:
        folder = tmp_path / "work" / paper / method / "cat"
        found = json.loads((folder / "pair.json").read_text())
        assert len(list(folder.glob("*.png"))) == frames
        assert found["timestep"] == (581 if method == "default" else timestep)
    assert not any((tmp_path / "work" / paper / "solves").rglob("*.safetensors"))


def test_the_papers_frames_are_the_nodes(tiny_pipe, keyframes):
    recipe = reproduce.RECIPES["score_jacobian"]
    keys = tiny_pipe.invert(list(keyframes[:2]), **recipe.ends)
    options = {"num_frames": 4, "max_evals": 2}
    path = reproduce.solve_as_published(tiny_pipe, keys, recipe, options)
    (found,) = path.geodesics
    assert torch.equal(path.points, found.nodes) and found.num_evals == 2
    assert not torch.equal(path.points, found.path)


def test_both_ends_receive_the_same_noise(tiny_pipe, keyframes):
    keys = tiny_pipe.invert(list(keyframes[:2]), **reproduce.RECIPES["stein"].ends)
    moved, level = reproduce.noised(keys), keys.levels(401)
    assert_close(moved.points[1] - moved.points[0], level.alpha * (keys.clean[1] - keys.clean[0]))
    assert moved.space == "noise"
    assert_close(level.alpha**2, 0.4245, atol=2e-3, rtol=0)


def test_published_figures_stand_next_to_ours(run, monkeypatch):
    """A root mean square difference takes the place of LPIPS."""

    def measured(*args, **options):
        def distance(x, y):
            return (x - y).square().flatten(1).mean(1).sqrt()

        return evaluate(*args, distance=distance, **options)

    evaluate = reproduce.evaluate
    monkeypatch.setattr(reproduce, "evaluate", measured)
    rows = run("score_jacobian", "--data-set", "animation", "--limit", "1")
    sums = [row for row in rows if row["measure"] == "ppl"]
    assert all(row["pairs"] == 1 and row["ours"] > 0 for row in sums)
    for row in sums:
        if row["method"] == "paper":
            assert row["published"] == 0.38 and row["difference"] == row["ours"] - 0.38
        else:
            assert row["published"] is None and row["difference"] is None


def test_a_killed_run_continues(run, monkeypatch):
    """It continues inside the solve that was killed, and a third run does no work."""

    class Killed(BaseException):
        pass

    save, saved = checkpoints.save, []

    def kill(*args):
        save(*args)
        saved.append(args)
        raise Killed

    only = ["--methods", "paper", "--limit", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save", kill)
        with pytest.raises(Killed):
            run("stein", *only)
    assert len(saved) == 1

    events = []
    pipeline = reproduce.GeodesicInterpolationPipeline
    monkeypatch.setattr(
        pipeline, "_run", lambda self, stage, listener: run_events(stage, events.append)
    )
    run("stein", *only)
    assert {event.stage for event in events} == {"solve", "sample", "decode"}  # nothing is inverted
    assert max(event.done for event in events if event.stage == "solve") == 2
    seen = len(events)
    monkeypatch.setattr(pipeline, "from_pretrained", None)
    run("stein", *only)
    assert len(events) == seen


@pytest.mark.slow
@pytest.mark.parametrize("paper", reproduce.RECIPES)
def test_the_shipped_model_on_new_scenes(tmp_path, paper):
    manifest = scenes.write_pairs(tmp_path / "pairs", 2)
    arguments = [paper, "--data", str(manifest), "--work", str(tmp_path / "work")]
    arguments += ["--max-evals", "2"]
    rows = reproduce.main([*arguments, "--methods", "paper", "default", "noise_diffusion"])
    errors = {row["method"]: row["ours"] for row in rows if row["measure"] == "re"}
    assert set(errors) == {"paper", "default", "noise_diffusion"}
    assert errors["default"] < 0.01 and all(row["pairs"] == 2 for row in rows)
