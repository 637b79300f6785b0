"""Messages about what is read, and which number is white in an image of plain numbers."""

from __future__ import annotations

import warnings
from collections.abc import Callable

Tell = Callable[[str], object]

TOLERANCE = 1e-4  # of white: rounding errors of floats beyond the range are clipped
WIDEST = 65535  # the greatest integer that can be white


def warn(text: str) -> None:
    """Tell something as a Python warning."""
    warnings.warn(text, UserWarning, stacklevel=3)


def white_of(
    low: float,
    high: float,
    *,
    num_bits: int | None,
    stated: int | None = None,
    name: str = "the image",
    tell: Tell = warn,
) -> float:
    """The number that stands for white; 0 is black.

    The rule, in this order:

    1. What the file states, such as 12 bits in a TIFF file, decides.
    2. Bytes reach to 255. Floats up to 1 reach to 1.
    3. Floats above 16 reach to the first of 255 and 65535 that holds them.
    4. Integers of 16 and more bits reach to the first of 1, 255, 4095 and 65535 that holds them.

    Numbers that are less than 1e-4 of white beyond the range count as rounding errors. A message
    says what was chosen where a file of the same kind may mean something else.

    Args:
        low: The least number of the image, finite.
        high: The greatest number of the image, finite.
        num_bits: Bits of an integer; None for floats.
        stated: What the file says is white, if it does.
        name: What the messages call the image.
        tell: Receives the message.

    Returns:
        1, 255, 4095, 65535, or what is stated.

    Raises:
        ValueError: If the numbers fit none of these.

    Examples:
        >>> from riemannian_diffusion.media import white_of
        >>> white_of(0, 200, num_bits=8), white_of(0.0, 0.9, num_bits=None)
        (255.0, 1.0)
    """
    slack = 1 + TOLERANCE
    if stated is not None and high <= stated * slack:
        white = float(stated)
    elif num_bits == 8:
        white = 255.0
    elif high <= slack:
        white = 1.0
    else:
        known = (255, WIDEST) if num_bits is None else (255, 4095, WIDEST)
        white = next((float(w) for w in known if high <= w * slack), 0.0)
    if white == 0 or low < -TOLERANCE * white or (num_bits is None and 1 < high / slack <= 16):
        kinds = "in [0, 1] (or up to 255 or 65535)" if num_bits is None else "from 0 to 65535"
        raise ValueError(
            f"{name} must have values {kinds}, but they span [{low:.7g}, {high:.7g}]: scale or "
            "clip them."
        )
    doubtful = {None: (255, WIDEST), 8: (), 16: (1, 255, 4095)}.get(num_bits, (4095,))
    if stated != white and white in doubtful and high > 0:
        tell(
            f"{name} holds numbers up to {high:.7g}: {white:.0f} is read as white. If that is "
            "wrong, scale the numbers to the whole range of 8 or 16 bits."
        )
    return white
