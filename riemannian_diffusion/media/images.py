"""Image files and PIL images as upright sRGB without transparency."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from riemannian_diffusion.media.numbers import Tell, warn, white_of

HEIF_SUFFIXES = (".heic", ".heif", ".hif")
# Pillow knows files of these formats, but not how to read them.
UNREADABLE_FORMATS = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF", "EMF"}
SYSTEM_FILES = {"thumbs.db", "desktop.ini", "__macosx"}
# Formats whose further frames are no pictures for people: gain maps, layers.
PARTS = {"MPO", "PSD"}
PIXEL_SHAPES = ("aspect", "dpi", "resolution", "jfif_density")  # (x, y) in `Image.info`
WHITE_TAGS = (281, 341)  # TIFF: MaxSampleValue, SMaxSampleValue
BITS_TAG, PHOTOMETRIC_TAG, ORIENTATION_TAG = 258, 262, 0x0112


def pillow() -> Any:
    """The module `PIL.Image` with all plugins, and that for HEIF if it is installed."""
    from PIL import Image

    Image.init()
    if "HEIF" not in Image.OPEN:
        try:
            from pillow_heif import register_heif_opener
        except ImportError:
            return Image
        register_heif_opener()
    return Image


def is_image(path: Path) -> bool:
    """Whether a file's name ends as that of an image that Pillow can open."""
    image = pillow()
    kind = image.registered_extensions().get(path.suffix.lower())
    return kind in image.OPEN and kind not in UNREADABLE_FORMATS


def sorted_by_name(folder: Path) -> list[Path]:
    """Files and folders of a folder by name, without hidden ones; `2` comes before `10`.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from riemannian_diffusion.media import sorted_by_name
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ('frame10.png', 'frame2.png', '.hidden'):
        ...         (Path(folder) / name).touch()
        ...     [path.name for path in sorted_by_name(Path(folder))]
        ['frame2.png', 'frame10.png']
    """
    visible = [
        path
        for path in folder.iterdir()
        if not path.name.startswith(".") and path.name.lower() not in SYSTEM_FILES
    ]
    return sorted(visible, key=lambda path: (_natural(path.name), path.name))


def _natural(name: str) -> list[tuple[int, int, str]]:
    pieces = re.split(r"(\d+)", name)  # text and digits alternate
    return [(1, int(p), "") if i % 2 else (0, 0, p) for i, p in enumerate(pieces)]


def images_in(folder: Path) -> tuple[Path, ...]:
    """The image files in a folder, sorted by name.

    Raises:
        ValueError: If two of them have one name and differ in the suffix alone.

    Examples:
        >>> from pathlib import Path
        >>> from riemannian_diffusion import demo
        >>> from riemannian_diffusion.media import images_in
        >>> folder = Path(demo.endpoint_paths()[0]).parent
        >>> [path.name for path in images_in(folder)]
        ['endpoint_0.png', 'endpoint_1.png']
    """
    found = tuple(p for p in sorted_by_name(folder) if is_image(p) and p.is_file())
    stems: dict[str, Path] = {}
    for path in found:
        twin = stems.setdefault(path.stem.casefold(), path)
        if twin is not path:
            raise ValueError(
                f"the folder {folder} holds both {twin.name} and {path.name}, which may be one "
                "picture twice: move one kind away, or name the images one by one."
            )
    return found


def left_out(folder: Path) -> str | None:
    """A sentence about what a folder holds beside the files of `images_in`, or None.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from riemannian_diffusion.media import left_out
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / 'notes.txt').write_text('these are no images')
        ...     left_out(Path(folder))
        'not taken from the folder ..., as no images: notes.txt.'
    """
    taken = {*images_in(folder)}
    rest = [path for path in sorted_by_name(folder) if path not in taken]
    if not rest:
        return None
    return f"not taken from the folder {folder}, as no images: {named(rest)}{_heif_advice(*rest)}."


def named(paths: Sequence[Path]) -> str:
    """The names of files, of which the first eight are listed."""
    names = ", ".join(path.name for path in paths[:8])
    return f"{names} and {len(paths) - 8} more" if len(paths) > 8 else names


def _heif_advice(*paths: Path) -> str:
    needed = any(p.suffix.lower() in HEIF_SUFFIXES for p in paths) and "HEIF" not in pillow().OPEN
    return " (for HEIC: pip install 'riemannian-diffusion[heif]')" if needed else ""


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open an image file inside the context.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If the file cannot be read as an image. Pillow raises errors of many classes, and
            not all of them name the file, so they are replaced by this one.
    """
    try:
        with warnings.catch_warnings():
            # large images are no attack here; Pillow still refuses those of twice this size
            warnings.simplefilter("ignore", pillow().DecompressionBombWarning)
            image = pillow().open(path)
        with image:
            yield image
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} does not exist.") from error
    except Exception as error:
        said = getattr(error, "strerror", None) or error  # without the number of the error
        why = f"{said}{_heif_advice(path)}".removeprefix(f"{path} ")
        if path.is_file() and path.stat().st_size == 0:
            why = "it is empty"
        if path.is_dir():
            why = "it is a folder"
        raise OSError(f"{path} cannot be read as an image: {why}") from error


def open_image(
    path: Path,
    size: tuple[int, int] | None = None,
    *,
    background: str = "white",
    tell: Tell = warn,
):
    """Read an image file in sRGB, upright, without transparency.

    Args:
        path: The file.
        size: Width and height to which the image is cropped and scaled; None keeps its size.
        background: The colour behind transparent parts, as Pillow writes colours.
        tell: Receives sentences about what may be read differently from what is meant.

    Raises:
        OSError: If the file cannot be read as an image.

    Examples:
        >>> from riemannian_diffusion import demo
        >>> from pathlib import Path
        >>> from riemannian_diffusion.media import open_image
        >>> open_image(Path(demo.endpoint_paths()[0])).size
        (64, 64)
    """
    with opened(path) as image:
        image = converted(image, "RGB", name=str(path), background=background, tell=tell)
    return fitted(image, size)


def shown_size(path: Path) -> tuple[int, int]:
    """Width and height of an image file as `open_image` returns it, without reading its pixels.

    Raises:
        OSError: If the file cannot be read as an image.
        ValueError: If it has several frames.

    Examples:
        >>> from pathlib import Path
        >>> from riemannian_diffusion import demo
        >>> from riemannian_diffusion.media import shown_size
        >>> shown_size(Path(demo.endpoint_paths()[0]))
        (64, 64)
    """
    with opened(path) as image:
        size, num = image.size, num_frames(image)
        turned = image.getexif().get(ORIENTATION_TAG) in (5, 6, 7, 8)  # width and height swapped
    if num > 1:
        raise ValueError(f"{path} has {num} frames: it is no single image. Move it elsewhere.")
    return size[::-1] if turned else size


def num_frames(image) -> int:
    """How many pictures a PIL image has; only the first of those that are its parts counts."""
    return 1 if getattr(image, "format", None) in PARTS else getattr(image, "n_frames", 1)


def fitted(image, size: tuple[int, int] | None):
    """A PIL image, cropped around its centre and scaled to (width, height)."""
    from PIL import Image, ImageOps

    return image if size is None else ImageOps.fit(image, size, Image.Resampling.LANCZOS)


def converted(
    image, mode: str, *, name: str = "the image", background: str = "white", tell: Tell = warn
):
    """A PIL image as it is meant to be seen, with 8 bits for each channel.

    It is turned upright as EXIF says. Numbers are scaled by the rule of `white_of`. A colour
    profile is applied, so that the result is sRGB. Transparent parts show the background. Pixels
    are taken for square.

    Args:
        image: The image, in any of Pillow's modes.
        mode: "RGB", or "L" for greys.
        name: What the messages call the image.
        background: The colour behind transparent parts, as Pillow writes colours.
        tell: Receives sentences about what may be read differently from what is meant.

    Raises:
        OSError: If the file is cut short.
        ValueError: If the numbers fit no known range.

    Examples:
        >>> from PIL import Image
        >>> from riemannian_diffusion.media import converted
        >>> clear = Image.new('RGBA', (8, 8), (255, 0, 0, 0))
        >>> converted(clear, 'RGB', background='blue').getpixel((0, 0))
        (0, 0, 255)
    """
    from PIL import Image

    _tell_of_frames(image, name, tell)
    _tell_of_shape(image, name, tell)
    profile, tags = image.info.get("icc_profile"), getattr(image, "tag_v2", {})
    stated, inverted = _stated_white(image, tags), tags.get(PHOTOMETRIC_TAG) == 0
    is_deep = ";16" in str(getattr(image, "tile", ""))  # Pillow reads 8 bits of 16-bit colours
    image = _upright(image, name, tell)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _in_bytes(image, stated, inverted, name, tell)
        is_deep = False
    colours, alpha = _split(image)
    if is_deep and 0 < np.max(colours.getextrema()) < 16:
        tell(
            f"{name} holds 16-bit colours below 4096 of 65535: scale them first if it is too dark."
        )
    colours = _as_srgb(colours, profile, name, tell).convert("RGB")
    if alpha is not None:
        sheet = Image.new("RGB", image.size, background)
        sheet.paste(colours, mask=alpha)
        colours = sheet
    colours = colours.convert(mode)
    colours.info = {}  # lest a profile or an orientation is applied twice
    return colours


def _tell_of_frames(image, name: str, tell: Tell) -> None:
    num = num_frames(image)
    if num > 1 and image.tell() == 0:
        tell(f"{name} has {num} frames, of which the first alone is read.")


def _tell_of_shape(image, name: str, tell: Tell) -> None:
    for key in PIXEL_SHAPES:
        try:
            x, y = (float(value) for value in image.info[key])
            stretched = x > 0 and y > 0 and not 0.95 < y / x < 1.05
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            continue
        if stretched:
            tell(
                f"{name} says that its pixels are {y / x:.3g} times as wide as high. They are "
                "read as squares: scale the image first if it looks stretched."
            )
            return


def _upright(image, name: str, tell: Tell):
    from PIL import ImageOps

    image.load()  # an error of the pixels is none of the orientation
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged tags fail in as many ways as there are
        tell(f"{name} has damaged EXIF tags: they are ignored, so it may lie on its side.")
        return image.copy()


def _split(image) -> tuple[Any, Any]:
    """Colours, and opacity or None."""
    key = image.info.get("transparency")
    if not image.has_transparency_data:
        return image, None
    if isinstance(key, tuple) and max(key) > 255:  # of 16 bits, where Pillow reads 8
        image.info["transparency"] = tuple(value >> 8 for value in key)
    whole = image if image.mode != "La" else image.convert("LA")
    whole = whole.convert("RGBA")
    is_grey = image.mode in ("1", "L", "LA", "La")
    return whole.convert("L" if is_grey else "RGB"), whole.getchannel("A")


def _in_bytes(image, stated: int | None, inverted: bool, name: str, tell: Tell):
    """Integers or floats as "L" or "LA", in the range that the file states or `white_of` finds."""
    from PIL import Image

    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"{name} has NaN or infinite values.")
    white = white_of(
        *(float(values.min()), float(values.max())),
        num_bits={"F": None, "I": 32}.get(image.mode, 16),
        stated=stated,
        name=name,
        tell=tell,
    )
    scaled = (values / white).clip(0, 1)
    grey = Image.fromarray(np.round((1 - scaled if inverted else scaled) * 255).astype(np.uint8))
    key = image.info.get("transparency")
    if key is not None:
        grey.putalpha(Image.fromarray(values != key).convert("L"))
    return grey


def _stated_white(image, tags) -> int | None:
    """What a file says is white, in its format or in TIFF tags."""
    if image.format in ("PPM", "JPEG2000") and image.mode != "F":
        return 65535  # Pillow scales them
    limits = [2**bits - 1 for bits in range(8, 17)]  # other numbers are of the brightest pixel
    for tag in WHITE_TAGS:
        value = tags.get(tag)
        value = value[0] if isinstance(value, tuple) and value else value
        if value in limits:
            return int(value)
    bits = tags.get(BITS_TAG, (16,))[0]
    return 2**bits - 1 if 8 < bits < 16 else None


def _as_srgb(image, profile: bytes | None, name: str, tell: Tell):
    """Colours of a profile, or of the Lab space, as sRGB."""
    from PIL import ImageCms

    if not profile and image.mode != "LAB":
        return image
    try:
        lab = ImageCms.createProfile("LAB") if not profile else None
        source = ImageCms.ImageCmsProfile(lab or io.BytesIO(profile or b""))
        space = source.profile.xcolor_space.strip().upper()
        mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "LAB": "LAB"}[space]
        greys = image.mode in ("1", "L", "I", "F")
        if image.mode != mode:
            if (
                "CMYK" in (image.mode, mode)
                or "LAB" in (image.mode, mode)
                or (mode == "L" and not greys)
            ):
                raise ValueError(f"it is for {space}")
            image = image.convert(mode)
        flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
        if mode == "L":  # LittleCMS's tables for greys are too coarse in dark tones
            flags |= ImageCms.Flags.NOOPTIMIZE
        return ImageCms.profileToProfile(
            image,
            source,
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=flags,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, KeyError, ImportError):
        tell(f"{name} has a colour profile that cannot be used: its colours are read as sRGB.")
        return _as_srgb(image, None, name, tell) if profile and image.mode == "LAB" else image
