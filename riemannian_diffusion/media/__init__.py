"""Images, clips and morphs as files. Files are complete when they appear under their name.

Everything that reads a picture goes through `converted`: files that the command and the page open,
frames of clips, and PIL images that are passed to a pipeline.
"""

from riemannian_diffusion.media.clips import CLIP_SUFFIXES, Clip, is_clip, read_clip
from riemannian_diffusion.media.images import (
    converted,
    images_in,
    left_out,
    open_image,
    shown_size,
    sorted_by_name,
)
from riemannian_diffusion.media.numbers import white_of
from riemannian_diffusion.media.writing import write_frames

__all__ = [
    "CLIP_SUFFIXES",
    "Clip",
    "converted",
    "images_in",
    "is_clip",
    "left_out",
    "open_image",
    "shown_size",
    "read_clip",
    "sorted_by_name",
    "white_of",
    "write_frames",
]
