"""Codes as images: written as PNG or SVG, drawn in a terminal, read back from a photo or a file.

Written by segno with error correction M (15 % of the symbol may be spoilt) or better and the quiet zone of four modules
that ISO/IEC 18004 asks for; read by zxing-cpp, turned by any angle, blurred or scaled as photos are. What is read is
text of whoever made the image: :mod:`services.payee.emv` judges it.
"""

import io
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import segno
import zxingcpp
from PIL import Image, ImageChops, ImageDraw

from consensus.ledger.errors import LocalError

SCALE_PIXELS = 8
"""How many pixels of a PNG a module has a side: a code of 60 modules is 4 cm wide at 300 dpi."""
BORDER_MODULES = 4
TERMINAL_BORDER_MODULES = 2
FILE_BYTES_MAX = 32 * 1024 * 1024
PIXELS_MAX = 50_000_000
"""How many pixels an image may claim to have; nothing is unpacked of one that claims more."""
SVG_MODULES_MAX = 177 + 2 * BORDER_MODULES
_ENLARGED_PIXELS_MAX = 2 * 1024 * 1024
"""Up to which size an image without a code is looked at once more at twice its size."""

_FORMATS = ("PNG", "JPEG")
_QR_CODE = zxingcpp.barcode_formats_from_str("QRCode")
_DARK_ON_LIGHT = "\x1b[38;5;16;48;5;231m"
"""Black on white out of the 216 colours that no terminal's theme changes."""
_PLAIN = "\x1b[0m"
_SVG_DARK = re.compile(r'<path stroke="#000" d="([Mmh0-9. -]{1,200000})"/>')
_SVG_RUN = re.compile(r"([Mm])(-?\d{1,3}) (-?\d{1,3}(?:\.5)?)h(\d{1,3})", re.ASCII)


def image_bytes(payload: str, kind: str) -> bytes:
    """Return a payload's image; ``kind`` is ``png`` or ``svg``.

    Raises:
        LocalError: ``too_large`` for more than a QR code holds.
    """
    made, out = _symbol(payload, "m"), io.BytesIO()
    plain = {"svgclass": None, "lineclass": None} if kind == "svg" else {}
    made.save(out, kind=kind, scale=SCALE_PIXELS, border=BORDER_MODULES, dark="#000", light="#fff", **plain)
    return out.getvalue()


def image_kind(path: Path) -> str:
    """Return which kind of image a file's name asks for.

    Raises:
        LocalError: ``bad_image``.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg"):
        raise LocalError("bad_image", f"{path.name}: codes are written as .png or .svg")
    return kind


@dataclass(frozen=True, slots=True)
class TerminalCode:
    """A code as lines of half blocks: a module is one column wide and half a line high."""

    text: str
    columns: int


def terminal_text(payload: str, *, is_colored: bool) -> TerminalCode:
    """Return a payload as a terminal draws it: with colours black on white, readable on dark and light screens.

    Without colours the screen's own are used, light modules in the colour of letters: right on dark screens, inverted
    on light ones, which most readers take too.

    Raises:
        LocalError: ``too_large``.
    """
    made = _symbol(payload, "l")  # a screen is not spoilt, and has few columns
    rows = [list(row) for row in made.matrix_iter(border=TERMINAL_BORDER_MODULES)]
    columns = len(rows[0])
    rows.append([0] * columns)  # the number of modules is odd
    blocks = " ▄▀█" if is_colored else "█▀▄ "
    lines = []
    for upper, lower in zip(rows[::2], rows[1::2], strict=True):
        line = "".join(blocks[2 * top + bottom] for top, bottom in zip(upper, lower, strict=True))
        lines.append(f"{_DARK_ON_LIGHT}{line}{_PLAIN}" if is_colored else line)
    return TerminalCode("\n".join(lines), columns)


def read_image(path: Path) -> str:
    """Return the text of the one QR code in a PNG or JPEG file, or in an SVG file that was made here.

    The same code several times in one image is one code.

    Raises:
        LocalError: ``bad_image`` (not readable or no image of these kinds), ``image_too_large``, ``no_code``,
            ``several_codes``.
    """
    return read_content(read_file(path), path.name)


def read_file(path: Path) -> bytes:
    """Return what a file holds, at most a byte more than an image may have.

    Raises:
        LocalError: ``bad_image`` where it cannot be read or is none.
    """
    try:
        if not path.is_file():
            raise LocalError("bad_image", f"{path} is no file" if path.exists() else f"there is no file {path}")
        with path.open("rb") as source:
            return source.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise LocalError("bad_image", f"{str(path)[:80]}: {error.strerror}") from None
    except ValueError:
        raise LocalError("bad_image", "a file's name has no byte of zero") from None


def read_content(content: bytes, name: str) -> str:
    """Return the text of the one QR code in an image's bytes; ``name`` is for the errors, those of ``read_image``."""
    if len(content) > FILE_BYTES_MAX:
        raise LocalError("image_too_large", f"{name} has more than {FILE_BYTES_MAX // 1024**2} MiB")
    image = _svg_image(content, name) if _is_svg(content) else _opened(content, name)
    found = sorted(_texts(image))
    if not found:
        raise LocalError("no_code", f"no QR code is found in {name}")
    if len(found) > 1:
        raise LocalError(
            "several_codes", f"{name} holds {len(found)} different QR codes: cut out the one that is meant"
        )
    return found[0]


def _symbol(payload: str, error: str) -> segno.QRCode:
    try:
        return segno.make_qr(payload, error=error, mode="byte", encoding="utf-8")
    except segno.DataOverflowError:
        message = f"a QR code holds no payload of {len(payload.encode())} bytes"
        raise LocalError("too_large", message) from None


# -- reading ---------------------------------------------------------------------------------------------


def _opened(content: bytes, name: str) -> Image.Image:
    """Return a photo or drawing in shades of grey, what is transparent being white."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=_FORMATS)
            if image.width * image.height > PIXELS_MAX:
                raise LocalError("image_too_large", f"{name} has {image.width} × {image.height} pixels")
            if image.mode.startswith("I"):  # 16 bits, of which Pillow would keep the lower 8
                return image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
            if not image.has_transparency_data:
                return image.convert("L")
            colored = image.convert("RGBA")
            grey, alpha = colored.convert("L"), colored.getchannel("A")
            grey.paste(255, (0, 0, *grey.size), ImageChops.invert(alpha))
            return grey
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise LocalError("image_too_large", f"{name} has more than {PIXELS_MAX // 10**6} million pixels") from None
    except (OSError, SyntaxError, ValueError, EOFError):
        # Pillow raises any of these for bytes that are not what they begin like.
        raise LocalError("bad_image", f"{name} is no whole PNG or JPEG image, and no SVG image") from None


def _texts(image: Image.Image) -> set[str]:
    """Return the different texts of all QR codes that are found."""
    found = zxingcpp.read_barcodes(image, formats=_QR_CODE)
    if not found and image.width * image.height <= _ENLARGED_PIXELS_MAX:
        larger = image.resize((2 * image.width, 2 * image.height), Image.Resampling.BICUBIC)
        found = zxingcpp.read_barcodes(larger, formats=_QR_CODE)
    return {_text(item) for item in found}


def _text(found: zxingcpp.Barcode) -> str:
    """Return a code's text: UTF-8 as EMVCo has it, else what the code says that it is, or what it looks like."""
    try:
        return found.bytes.decode("utf-8")
    except UnicodeDecodeError:
        return found.text


# -- SVG as we write it: runs of dark modules as one path of strokes -------------------------------------


def _is_svg(content: bytes) -> bool:
    return content.lstrip()[:5].lower() in (b"<?xml", b"<svg ")


def _svg_image(content: bytes, name: str) -> Image.Image:
    found = _SVG_DARK.search(content.decode("utf-8", "replace"))
    runs = _SVG_RUN.findall(found[1]) if found else []
    if found is None or "".join(f"{move}{x} {y}h{length}" for move, x, y, length in runs) != found[1]:
        raise LocalError("bad_image", f"{name} is an SVG of another maker: give it as PNG or JPEG")
    side = SVG_MODULES_MAX
    image = Image.new("L", (side, side), "white")
    draw = ImageDraw.Draw(image)
    column, row = 0, 0
    for move, x, y, length in runs:
        # A run's first point is absolute, each other one counts from the end of the run before it.
        column = int(x) if move == "M" else column + int(x)
        row = int(float(y)) if move == "M" else row + int(float(y))
        draw.line((column, row, column + int(length) - 1, row), fill="black")
        column += int(length)
    return image.resize((4 * side, 4 * side), Image.Resampling.NEAREST)
