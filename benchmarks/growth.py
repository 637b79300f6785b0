"""Evaluations and memory of a solve by the number of points and the number of pairs.

    python benchmarks/growth.py [--points 9 17 65 129 257 513] [--pairs 1 16 64 256]

The score is the exact one of a circle (400 points in R^8), and all options are the defaults. No
number depends on chance or on the machine's speed. There are two kinds of rows:

    points      evaluations of energy and gradient until the solve converges, with and without the
                preconditioner and coarse curves; without them, a solve ends after --max-evals
    pairs       fewest and most evaluations of the pairs in one call of `geodesics`; the ends of
                each pair are at another angle

"MiB" is the largest memory of all tensors that are alive at one time during the solve. "KiB each"
is the same per point, or per pair. It stays constant if memory is linear.
"""

from __future__ import annotations

import argparse
import weakref
from collections.abc import Iterator

import frame
import torch
from problems import circle
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from riemannian_diffusion import PathLBFGS, TangentNormalMetric, geodesic, geodesics


class Memory(TorchDispatchMode):
    """Counts the bytes of tensors that operations make inside this context.

    Attributes:
        peak: Largest number of bytes that were alive at one time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak, self._now = 0, 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run an operation, and count the memory of new tensors."""
        out = func(*args, **(kwargs or {}))
        for one in tree_leaves(out):
            if isinstance(one, Tensor):
                self._count(one.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._alive:
            self._alive.add(key)
            self._now += size
            self.peak = max(self.peak, self._now)
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self._now -= size


def of_points(nums: list[int], max_evals: int) -> Iterator[dict]:
    """Evaluations and memory for each number of points."""
    problem = circle(8)
    metric = TangentNormalMetric(problem.score)
    for num in nums:
        with Memory() as memory:
            found = geodesic(metric, problem.x0, problem.x1, num_points=num)
        plain = geodesic(
            *(metric, problem.x0, problem.x1),
            num_points=num,
            solver=PathLBFGS(precondition=False, coarse_first=False),
            max_evals=max_evals,
        )
        yield {
            "points": num,
            "evals": found.num_evals,
            "status": found.status,
            "length": found.length / problem.length,
            "plain evals": plain.num_evals,
            "plain status": plain.status,
            "MiB": memory.peak / 2**20,
            "KiB each": memory.peak / 2**10 / num,
        }


def of_pairs(nums: list[int]) -> Iterator[dict]:
    """Evaluations and memory for each number of pairs."""
    problem = circle(8)
    metric = TangentNormalMetric(problem.score)
    far = problem.geodesic(torch.linspace(0.5, 1, max(nums), dtype=torch.float64))
    for num in nums:
        x1 = far[:: max(nums) // num][:num]
        with Memory() as memory:
            found = geodesics(metric, problem.x0.expand(num, -1), x1)
        evals = [one.num_evals for one in found]
        yield {
            "pairs": num,
            "fewest evals": min(evals),
            "most evals": max(evals),
            "converged": sum(one.status == "converged" for one in found),
            "MiB": memory.peak / 2**20,
            "KiB each": memory.peak / 2**10 / num,
        }


def main(argv: list[str] | None = None) -> list[dict]:
    """Count evaluations and memory; return the rows."""
    parser = frame.parser(__doc__, cpu_only=True)
    parser.add_argument("--points", type=int, nargs="+", default=[9, 17, 65, 129, 257, 513])
    parser.add_argument("--pairs", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--max-evals", type=int, default=1000)
    return frame.run(measure, parser, argv)


def measure(args: argparse.Namespace) -> Iterator[dict]:
    """Rows of both kinds."""
    yield from of_points(args.points, args.max_evals)
    yield from of_pairs(args.pairs)


if __name__ == "__main__":
    main()
