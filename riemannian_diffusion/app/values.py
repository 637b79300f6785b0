"""Values of the page's inputs as requests to its API carry them, checked by kind.

Gradio's own components take any value and fail inside on most that are of another kind.
"""

from __future__ import annotations

import math
import reprlib
from typing import Any

import gradio as gr


class Page(gr.Blocks):
    """A page that says in words which input has a value of the wrong kind."""

    def validate_inputs(self, block_fn: Any, inputs: list[Any]) -> None:
        """Check the number and the kinds of the inputs of a request.

        Raises:
            gradio.Error: Naming the label of the input.
        """
        super().validate_inputs(block_fn, inputs)
        for block, value in zip(block_fn.inputs, inputs, strict=False):
            expected = None if block.stateful else problem(block, value)
            if expected is not None:
                said = f"{block.label} must be {expected}, but got {reprlib.repr(value)}."
                raise gr.Error(said, print_exception=False)


def problem(block: Any, value: Any) -> str | None:
    """What the value of an input must be; None if it is that.

    Args:
        block: A component of gradio.
        value: The value as JSON gives it.
    """
    if isinstance(block, (gr.Number, gr.Slider)):
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or abs(value) > 1e300 or not math.isfinite(value):
            return "a finite number"
        low, high = block.minimum, block.maximum
        if (low is not None and value < low) or (high is not None and value > high):
            return f"at least {low:g}" if high is None else f"from {low:g} to {high:g}"
    elif isinstance(block, gr.Textbox):
        return None if value is None or isinstance(value, str) else "a text"
    elif isinstance(block, gr.Checkbox):
        return None if isinstance(value, bool) else "true or false"
    elif isinstance(block, (gr.Dropdown, gr.Radio, gr.CheckboxGroup)):
        known, several = [one for _, one in block.choices], isinstance(block, gr.CheckboxGroup)
        given = value if several else [value]
        if not isinstance(given, list) or any(one not in known for one in given):
            return f"{'a list of some' if several else 'one'} of {', '.join(map(str, known))}"
    elif isinstance(block, gr.Gallery) and value is not None:
        try:
            block.data_model.model_validate(value, context={"validate_meta": True})
        except ValueError:
            return "a list of images"
    return None
