"""The files of results that benchmarks write, and the tables that are generated from them."""

from __future__ import annotations

import datetime
import importlib.util
import json
import math
import shlex
import subprocess
from pathlib import Path

import frame
import pytest
import tables
import torch
from diffusers.utils import logging

from riemannian_diffusion import demo
from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline

RESULTS = sorted(tables.RESULTS.iterdir())
SCRIPT = '''
"""A tiny benchmark."""

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging

import frame


def measure(args):
    yield {"name": "first", "value": 1.5, "flag": True, "none": None}
    yield {"name": "second", "value": float("nan"), "flag": False, "none": None}
    yield {"points": args.points, "random": float(torch.rand(()))}
    if args.points == 13:
        raise KeyboardInterrupt
    yield {"points": 0, "random": float(logging.is_progress_bar_enabled())}


def main(argv=None):
    parser = frame.parser(__doc__, cpu_only=True)
    parser.add_argument("--points", type=int, default=5)
    return frame.run(measure, parser, argv)
'''


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "fake.py"
    path.write_text(SCRIPT)
    spec = importlib.util.spec_from_file_location("fake", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_frame_writes_the_command_and_the_rows(script, tmp_path):
    out = tmp_path / "two words.json"
    rows = script.main(["--points", "7", "--out", str(out)])
    report = json.loads(out.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert tuple(report) == frame.KEYS
    words = ["python", "benchmarks/fake.py", "--points", "7", "--out", str(out)]
    assert shlex.split(report["command"]) == words
    assert torch.__version__.startswith(report["versions"]["torch"])
    assert report["machine"].endswith(f", {torch.get_num_threads()} threads")
    assert datetime.date.fromisoformat(report["date"]) <= datetime.date.today()
    assert report["rows"][0] == {"name": "first", "value": 1.5, "flag": True, "none": None}
    assert report["rows"][1]["value"] is None and math.isnan(rows[1]["value"])
    assert report["rows"][2:] == rows[2:] and rows[2]["points"] == 7
    assert [path.name for path in tmp_path.glob("*.json")] == [out.name]
    assert not list(tmp_path.glob(".*.json"))


def test_frame_prints_each_row_at_once(script, capsys):
    with pytest.raises(KeyboardInterrupt):
        script.main(["--points", "13"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == frame.describe()
    words = [line.split() for line in lines[1:] if line]
    assert words[:2] == [["name", "value", "flag", "none"], ["first", "1.5", "True"]]
    assert words[3] == ["points", "random"] and words[4][0] == "13" and len(words) == 5


def test_frame_keeps_old_results_if_a_benchmark_fails(script, tmp_path):
    out = tmp_path / "out.json"
    out.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        script.main(["--points", "13", "--out", str(out)])
    assert out.read_text() == "old"


def test_seed_fixes_random_numbers_only_inside_the_frame(script):
    torch.manual_seed(5)
    expected = torch.rand(())
    torch.manual_seed(5)
    values = [script.main(["--seed", seed])[2]["random"] for seed in ("0", "0", "1")]
    assert values[0] == values[1] != values[2]
    assert torch.rand(()) == expected


def test_frame_is_quiet_only_while_it_runs(script):
    logging.enable_progress_bar()
    before = logging.get_verbosity()
    assert script.main([])[-1]["random"] == 0.0
    assert logging.is_progress_bar_enabled() and logging.get_verbosity() == before


def test_pipelines_draw_no_progress_bars_in_the_frame(capsys):
    with frame.quiet():
        pipe = GeodesicInterpolationPipeline.from_pretrained(demo.model_path())
        list(pipe.progress_bar(range(3)))
        assert capsys.readouterr().err == ""
    list(pipe.progress_bar(range(3)))
    assert "3/3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--out", "missing/out.json"], ["--out missing/out.json", "does not exist"]),
        (["--device", "cuda"], ["--device"]),
    ],
)
def test_frame_refuses_before_it_measures(script, capsys, options, words):
    with pytest.raises(SystemExit):
        script.main(options)
    printed = capsys.readouterr()
    assert all(word in printed.err for word in words) and "first" not in printed.out


def test_commit_is_marked_when_files_have_changed(tmp_path):
    def git(*words):
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)

    assert frame.commit(tmp_path) is None
    git("init")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "first")
    head = git("rev-parse", "HEAD").stdout.strip()
    (tmp_path / "untracked").write_text("1")
    assert frame.commit(tmp_path) == head
    (tmp_path / "file").write_text("2")
    assert frame.commit(tmp_path) == f"{head}-dirty"


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_results_name_their_origin(path):
    report = json.loads(path.read_text())
    assert set(frame.KEYS) <= set(report) <= {*frame.KEYS, "source"}
    python, script, *_ = shlex.split(report["command"])
    assert python == "python" and (Path(frame.__file__).parents[1] / script).is_file()
    assert len(report["commit"].removesuffix("-dirty")) == 40
    assert path.name.startswith(report["date"])
    assert "source" in report or (report["versions"] and report["machine"])
    assert report["rows"]
    for row in report["rows"]:
        assert all(
            value is None or type(value) in (int, float, str, bool) for value in row.values()
        )


def test_tables_of_the_readme_match_the_results():
    text = tables.README.read_text()
    for _, name, _ in tables.BLOCK.findall(text):
        assert tables.TABLES[name].render() in text, name
    assert tables.rewritten(text) == text
    rest = tables.BLOCK.sub("", text)
    assert not [line for line in rest.splitlines() if line.startswith("|")]


def test_the_table_of_the_front_page_matches_the_results(tmp_path, monkeypatch, capsys):
    text = tables.FRONT.read_text()
    assert tables.FRONT_TABLES["models"].render() in text
    copy = tmp_path / "README.md"
    copy.write_text(text.replace("| Flux.1 dev |", "| Flux.1 |"))
    monkeypatch.setattr(tables, "FRONT", copy)
    assert tables.main(["--check"]) == 1 and str(copy) in capsys.readouterr().out
    with pytest.raises(ValueError, match="models"):
        tables.rewritten("", tables.FRONT_TABLES)


def test_a_changed_cell_is_found_and_repaired(tmp_path, monkeypatch, capsys):
    copy = tmp_path / "README.md"
    text = tables.README.read_text()
    cell = text.split("<!-- table: scenes -->")[1].splitlines()[3].split("|")[2]  # the first error
    assert float(cell) > 0 and f"|{cell}|" in text
    copy.write_text(text.replace(f"|{cell}|", "| 0.12345 |", 1))
    monkeypatch.setattr(tables, "README", copy)
    assert tables.main(["--check"]) == 1 and "0.12345" in copy.read_text()
    assert "python benchmarks/tables.py" in capsys.readouterr().out
    assert tables.main([]) == 0 and copy.read_text() == text
    assert tables.main(["--check"]) == 0


@pytest.mark.parametrize(
    ("line", "column", "message"),
    [
        ({"method": "no such"}, {}, "line"),
        ({"method": "slerp"}, {"pair": "9"}, "line"),
        ({"method": "slerp"}, {}, "9 results"),
    ],
)
def test_a_table_needs_exactly_one_result_for_a_cell(line, column, message):
    lines = [tables.Line(("a",), {"file": "scenes", **line})]
    table = tables.Table(("",), [tables.Column("b", "{jump}", column)], lines)
    with pytest.raises(ValueError, match=message):
        table.render()


def test_a_table_missing_from_the_readme_is_named():
    text = tables.README.read_text().replace("<!-- table: scenes -->", "")
    with pytest.raises(ValueError, match="scenes"):
        tables.rewritten(text)
