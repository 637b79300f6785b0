"""What all benchmarks share: their options, how rows are printed, and how results are written.

A benchmark is a generator of rows, each a flat dictionary of numbers, texts, truth values and None:

    def measure(args: argparse.Namespace) -> Iterator[dict]:
        yield {"points": 17, "seconds": 0.5}

    def main(argv=None):
        return frame.run(measure, frame.parser(__doc__), argv)

`run` prints every row as soon as it is measured. With `--out FILE.json` it writes all rows at the
end, together with the command, the commit, the versions, the machine and the date. Until then, the
rows so far are in `FILE.json.part`, so a run that is stopped loses none.
"""

from __future__ import annotations

import argparse
import datetime
import inspect
import json
import math
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from riemannian_diffusion.files import write_atomically

T = TypeVar("T")

PACKAGES = ("torch", "diffusers", "transformers")
KEYS = ("command", "commit", "versions", "machine", "date", "rows")
NUMBER_WIDTH, TEXT_WIDTH = 9, 16  # smallest widths of printed columns


def parser(doc: str, *, cpu_only: bool = False) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark.

    Args:
        doc: Docstring of the script.
        cpu_only: Whether the benchmark runs on the CPU alone and refuses other devices.
    """
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    choices = {"choices": ("cpu",)} if cpu_only else {}
    made.add_argument("--device", default="cpu", help="device of torch (default: cpu)", **choices)
    made.add_argument("--seed", type=int, default=0, help="seed of random numbers (default: 0)")
    made.add_argument("--out", type=Path, metavar="FILE.json", help="file for the results")
    return made


def run(
    measure: Callable[[argparse.Namespace], Iterable[dict]],
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None = None,
) -> list[dict]:
    """Run a benchmark: print each row at once, write all rows to `--out`, and return them.

    Args:
        measure: Function from the options to a generator of rows, defined in the script itself.
        parser: The parser that `parser` returned, with the options of the benchmark added.
        argv: Arguments of the command line; None takes those of this process.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    args = parser.parse_args(argv)
    if args.out is not None and not args.out.absolute().parent.is_dir():
        parser.error(f"--out {args.out}: the folder {args.out.parent} does not exist; create it")
    script = Path(inspect.getfile(inspect.unwrap(measure)))
    report = {
        "command": shlex.join(["python", f"benchmarks/{script.name}", *argv]),
        "commit": commit(script.parent),
        "versions": versions(),
        "machine": machine(args.device),
        "date": datetime.date.today().isoformat(),
    }
    print(describe(args.device), flush=True)
    rows: list[dict] = []
    widths: dict[str, int] = {}
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        for row in measure(args):
            if widths.keys() != row.keys():
                widths = column_widths(row)
                print("\n" + "  ".join(_cell(name, row[name], widths, name) for name in row))
            cells = (_cell(name, value, widths, _text(value)) for name, value in row.items())
            print("  ".join(cells), flush=True)
            rows.append(row)
            if args.out is not None:
                _write(part_of(args.out), report | {"rows": rows})
    if args.out is not None:
        _write(args.out, report | {"rows": rows})
        part_of(args.out).unlink(missing_ok=True)
    return rows


def dashed(options: Sequence[str]) -> list[str]:
    """Options of a command that were given without dashes, such as `frames 3`."""
    return [f"--{text}" if text[0].isalpha() else text for text in options]


def part_of(out: Path) -> Path:
    """The file with the rows so far."""
    return out.with_name(f"{out.name}.part")


def _write(file: Path, report: dict) -> None:
    text = as_json(report)
    write_atomically(file, lambda path: path.write_text(text))


def as_json(report: dict) -> str:
    """A report as JSON, with one row on each line. Numbers that are not finite become null."""
    rows = [json.dumps({k: _finite(v) for k, v in row.items()}) for row in report["rows"]]
    head = json.dumps(report | {"rows": []}, indent=1)
    return head.replace('"rows": []', '"rows": [\n  ' + ",\n  ".join(rows) + "\n ]") + "\n"


def kept(file: Path | None, make: Callable[[], T]) -> T:
    """What a function returns, kept as JSON in a file so that it is not made again.

    Args:
        file: The file; None keeps nothing.
        make: Function that returns numbers, texts, lists or dictionaries of them.
    """
    if file is not None and file.exists():
        return json.loads(file.read_text())
    made = make()
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, lambda path: path.write_text(json.dumps(made)))
    return made


def describe(device: str = "cpu") -> str:
    """Date, machine and versions in one line."""
    found = ", ".join(f"{name} {number}" for name, number in versions().items())
    return f"{datetime.date.today().isoformat()} | {machine(device)} | {found}"


def machine(device: str = "cpu") -> str:
    """Name of the processor or the accelerator, and the number of threads on the CPU."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(device)
    elif info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    return f"{name}, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that figures depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def commit(folder: Path) -> str | None:
    """The checked-out commit, with "-dirty" if tracked files differ from it. None outside git."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        found = subprocess.run([*command, "--exclude=*"], capture_output=True, text=True)
    except FileNotFoundError:  # git is not installed
        return None
    return found.stdout.strip() if found.returncode == 0 else None


@contextmanager
def quiet() -> Iterator[None]:
    """Hide progress bars, and all messages of diffusers and transformers except errors."""
    libraries = diffusers_logging, transformers_logging
    before = [(each.get_verbosity(), each.is_progress_bar_enabled()) for each in libraries]
    for each in libraries:
        each.set_verbosity_error()
        each.disable_progress_bar()
    DiffusionPipeline._progress_bar_config = {
        "disable": True
    }  # for pipelines without their own setting
    try:
        yield
    finally:
        del DiffusionPipeline._progress_bar_config
        for each, (verbosity, bars) in zip(libraries, before, strict=True):
            each.set_verbosity(verbosity)
            if bars:
                each.enable_progress_bar()


def column_widths(row: dict) -> dict[str, int]:
    """Width of each printed column. A longer text in a later row shifts only that row."""
    return {
        name: max(
            len(name), len(_text(value)), TEXT_WIDTH if isinstance(value, str) else NUMBER_WIDTH
        )
        for name, value in row.items()
    }


def _cell(name: str, value, widths: dict[str, int], text: str) -> str:
    return text.ljust(widths[name]) if isinstance(value, str) else text.rjust(widths[name])


def _text(value) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _finite(value):
    return None if isinstance(value, float) and not math.isfinite(value) else value
