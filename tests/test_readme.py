"""The README's tables name tests that are there."""

import importlib
import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()


@pytest.mark.parametrize("named", sorted(set(re.findall(r"`(test_\w+\.py::test_\w+)`", README))))
def test_named_tests_exist(named):
    module, _, function = named.partition(".py::")
    assert callable(getattr(importlib.import_module(module), function))


def test_every_row_of_models_and_features_names_one():
    section = README.split("## Models and features")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    rows = [row for row in rows if not row.startswith(("|---", "| model |", "| feature |"))]
    assert len(rows) > 15 and all(re.search(r"`test_\w+\.py::test_\w+` \|$", row) for row in rows)
