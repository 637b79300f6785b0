"""Print the lowest versions that pyproject.toml allows, one requirement a line, for pip."""

import re
from pathlib import Path

import tomllib

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
# The extra "test" also names tools; the tests of the core need these alone.
wanted = [
    *project["dependencies"],
    *extras["adapt"],
    *extras["eval"],
    *extras["plot"],
    *extras["test"],
]
names = (
    "ruff",
    "mypy",
    "playwright",
    "scikit-image",
    "riemannian-diffusion",
    "lpips",
    "torchmetrics",
)
for line in wanted:
    name = re.match(r"[\w.-]+", line)[0]
    if name not in names:
        print(line.replace(">=", "=="))
