"""Processes that share a batch: claims, and processes that are killed at random moments."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from batch_stub import METHODS, results

from riemannian_diffusion.pairs.claims import Process

STUB = Path(__file__).with_name("batch_stub.py")
NAMES = [f"pair{i:02d}" for i in range(20)] + ["bad", "with.2", "a name"]


@pytest.fixture
def manifest(tmp_path):
    (tmp_path / "image.png").write_bytes(b"the stub reads no image")
    path = tmp_path / "pairs.csv"
    rows = [f"{name},image.png,image.png" for name in NAMES]
    path.write_text("\n".join(["name,image_0,image_1", *rows]) + "\n")
    return path


def start(manifest, output, log, rank=0, num=1):
    command = [sys.executable, str(STUB), *map(str, (manifest, output, log, rank, num))]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def check_log(log: Path, killed: set[int]) -> None:
    """No pair was begun while the process that had begun it before was alive and not done."""
    owner: dict[str, int] = {}
    made: list[tuple[str, str]] = []
    by_death = {}
    for line in log.read_text().splitlines():
        process, event, rest = line.split(" ", 2)
        if event == "begin":
            last = owner.get(rest)
            assert last is None or last in killed, f"{rest} was begun twice"
            owner[rest] = int(process)
        else:
            name, method = rest.rsplit(" ", 1)
            assert owner[name] == int(process)
            made.append((name, method))
            by_death.setdefault((name, method), []).append(int(process))
    for processes in by_death.values():  # made again only if it died before it had written it
        assert all(process in killed for process in processes[:-1])
    good = {(name, method) for name in NAMES if name != "bad" for method in METHODS}
    assert set(made) == good


@pytest.mark.parametrize(("num", "seed"), [(2, 0), (2, 1), (4, 2), (4, 3)])
def test_killed_processes_lose_and_repeat_nothing(manifest, tmp_path, num, seed):
    """Processes are killed at random moments and started again, until all are through."""
    whole, log = tmp_path / "whole", tmp_path / "log"
    start(manifest, whole, tmp_path / "other_log").wait(60)
    expected = results(whole)
    assert (
        len(expected) == 3 + 2 * (len(NAMES) - 1) * 6 + 2
    )  # settings, summaries; morphs; failures

    output, random_number = tmp_path / "out", random.Random(seed)
    running = [start(manifest, output, log, rank, num) for rank in range(num)]
    killed: set[int] = set()
    num_lines = 1  # of the log, after which the next process is killed
    deadline = time.monotonic() + 120
    while alive := [i for i in range(num) if running[i].poll() is None]:
        assert time.monotonic() < deadline
        time.sleep(random_number.uniform(0, 0.03))
        written = len(log.read_text().splitlines()) if log.exists() else 0
        if len(killed) < 3 * num and written >= num_lines:
            rank = random_number.choice(alive)
            os.kill(running[rank].pid, signal.SIGKILL)
            killed.add(running[rank].pid)
            if random_number.random() < 0.5:
                running[rank].wait()  # otherwise a dead process stays in the list of processes
            running[rank] = start(manifest, output, log, rank, num)
            num_lines = written + random_number.randint(1, 2)
    assert all(process.returncode == 0 for process in running)
    assert len(killed) > num
    assert results(output) == expected
    assert not list(output.glob(".*"))
    check_log(log, killed)


def test_a_claim_belongs_to_one_process_until_it_ends(tmp_path):
    with Process(tmp_path) as first, Process(tmp_path) as second:
        claim, other = first.take("a.1"), second.take("a")
        assert claim is not None and other is not None and first.holds(claim)
        assert second.take("a.1") is None and first.take("a") is None
        first.finish_dead(lambda name: True)  # these claims are alive
        assert second.holds(other)
        first.finish(claim)
        assert not first.holds(claim)
        again = second.take("a.1")
        assert again is not None and again.generation == 0
        second.finish(again)
    with Process(tmp_path) as third:  # the claim on "a" ended with its process
        taken = third.take("a")
        assert taken is not None and taken.generation == 1
        third.finish(taken)
    assert not list(tmp_path.iterdir())


def test_a_silent_process_of_another_machine_is_taken_for_dead(tmp_path, monkeypatch):
    """Its folder has the id of another machine, so only its touches tell whether it lives."""
    other = Process(tmp_path, beat=0.05)
    other.id = f"elsewhere-{other.id.split('-', 1)[1]}"
    other.scratch = tmp_path / ".processes" / other.id
    with Process(tmp_path, patience=0.5) as mine:
        with other:
            claim = other.take("cat")
            for _ in range(5):
                time.sleep(0.2)
                assert mine.take("cat") is None  # it is touched again and again
            other._stop.set()  # from here on it is silent
            time.sleep(0.1)
            assert mine.take("cat") is None
            time.sleep(0.6)
            taken = mine.take("cat")
            assert taken is not None and taken.generation == 1
            assert mine.holds(taken) and not other.holds(claim)
            mine.sweep()
            assert not other.scratch.exists()
