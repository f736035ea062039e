"""Codes as images: what was made is read back, also as photos show it, and nothing else is."""

import io
import random
import re
import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import segno
import zxingcpp
from PIL import Image, ImageDraw, ImageFilter

from consensus.ledger.errors import LocalError
from consensus.ledger.ids import ChainId
from consensus.ledger.keys import PrivateKey
from services.payee import images
from services.payee.codes import CodeTerms, make_code
from services.payee.images import image_bytes, image_kind, read_content, read_image, terminal_text
from tests.conftest import data_folder

IDENTITY = bytes(range(16))
CHAIN_ID = ChainId(bytes(32))
KEY = PrivateKey.from_secret(7)
STATIC = make_code(IDENTITY, CodeTerms(name="Tea House", city="Shanghai"), chain_id=CHAIN_ID).text
DYNAMIC = make_code(
    IDENTITY, CodeTerms(amount=1_250, order="A-1", expires_ms=2 * 10**12), chain_id=CHAIN_ID, key=KEY
).text
BLANK = 190
"""The shade of grey of paper around a code."""


@cache
def photo(payload: str = DYNAMIC) -> Image.Image:
    """Return a code on paper, 8 pixels a module, before anything is done to it."""
    code = Image.open(io.BytesIO(image_bytes(payload, "png"))).convert("L")
    paper = Image.new("L", (code.width * 8 // 5, code.width * 8 // 5), BLANK)
    paper.paste(code, (code.width * 3 // 10, code.width * 3 // 10))
    return paper


def file_of(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)  # type: ignore[arg-type]
    return out.getvalue()


def turned(degrees: float, payload: str = DYNAMIC) -> Image.Image:
    return photo(payload).rotate(degrees, Image.Resampling.BICUBIC, fillcolor=BLANK)


def scaled(image: Image.Image, pixels: float) -> Image.Image:
    """Return a photo with so many pixels a module."""
    size = round(image.width * pixels / images.SCALE_PIXELS)
    return image.resize((size, size), Image.Resampling.LANCZOS)


def noisy(image: Image.Image, seed: int) -> Image.Image:
    noise = Image.frombytes("L", image.size, random.Random(seed).randbytes(image.width * image.height))
    return Image.blend(image, noise, 0.35)


def tilted(image: Image.Image, share: float) -> Image.Image:
    """Return a photo taken from below: the upper edge is shorter by ``share`` on either side."""
    width, height = image.size
    corners = (-share * width, 0, 0, height, width, height, (1 + share) * width, 0)
    return image.transform(image.size, Image.Transform.QUAD, corners, Image.Resampling.BICUBIC, fillcolor=BLANK)


def refusal(content: bytes) -> str:
    with pytest.raises(LocalError) as error:
        read_content(content, "code.png")
    return error.value.code


# -- made and read back ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["png", "svg"])
@pytest.mark.parametrize("payload", [STATIC, DYNAMIC], ids=["static", "dynamic"])
def test_what_is_made_is_read_back(kind: str, payload: str, tmp_path: Path) -> None:
    path = tmp_path / f"code.{kind}"
    path.write_bytes(image_bytes(payload, kind))
    assert read_image(path) == payload


def test_all_payloads_of_other_makers_survive_an_image() -> None:
    for line in (data_folder("qr") / "emv_payloads.tsv").read_text("utf-8").splitlines():
        payload = line.partition("\t")[2]
        assert read_content(image_bytes(payload, "png"), line[:20]) == payload


@pytest.mark.parametrize("name", ["茶馆", "Café Zürich", "чай", "お茶", "é"])
def test_names_in_any_script_are_read_as_they_were_written(name: str) -> None:
    payload = STATIC + name  # as an image knows it: any text
    assert read_content(image_bytes(payload, "png"), "code.png") == payload


def test_what_is_no_utf8_is_read_as_the_code_says() -> None:
    for text, encoding, is_named in (("お茶", "shift-jis", True), ("Ã", "latin-1", False)):
        out = io.BytesIO()
        segno.make_qr(text, encoding=encoding, eci=is_named, mode="byte").save(out, kind="png", scale=8)
        assert read_content(out.getvalue(), "code.png") == text


def test_a_symbol_corrects_errors_and_has_its_quiet_zone() -> None:
    code = Image.open(io.BytesIO(image_bytes(DYNAMIC, "png"))).convert("L")
    border = 4 * images.SCALE_PIXELS  # ISO/IEC 18004 asks for four modules
    frame = code.copy()
    frame.paste(255, (border, border, code.width - border, code.height - border))
    assert frame.getextrema() == (255, 255)
    assert code.getpixel((border, border)) == 0
    hole = code.width // 6
    code.paste(255, (code.width // 2 - hole // 2, code.width // 2 - hole // 2, *[code.width // 2 + hole // 2] * 2))
    assert read_content(file_of(code), "code.png") == DYNAMIC


def test_every_image_bears_at_least_15_percent_of_damage() -> None:
    for length in range(10, 400, 13):
        made = Image.open(io.BytesIO(image_bytes("x" * length, "png"))).convert("L")
        found = zxingcpp.read_barcode(made)
        assert found is not None
        assert found.ec_level in ("M", "Q", "H")


def test_what_no_code_can_hold_is_said() -> None:
    for make in (lambda: image_bytes("x" * 2_332, "png"), lambda: terminal_text("x" * 2_954, is_colored=True)):
        with pytest.raises(LocalError) as error:
            make()
        assert error.value.code == "too_large"


def test_an_images_kind_is_its_files_ending() -> None:
    assert (image_kind(Path("a.PNG")), image_kind(Path("a.svg"))) == ("png", "svg")
    for name in ("a.jpg", "a", "png", "a.svg.gz"):
        with pytest.raises(LocalError, match="written as"):
            image_kind(Path(name))


@pytest.mark.parametrize("is_dark_screen", [True, False])
@pytest.mark.parametrize("is_colored", [True, False])
def test_what_a_terminal_shows_is_a_code(is_colored: bool, is_dark_screen: bool) -> None:
    drawn = terminal_text(DYNAMIC, is_colored=is_colored)
    shown = screen(drawn.text, is_dark_screen)
    assert drawn.columns <= 80
    assert read_content(file_of(shown), "screen") == DYNAMIC
    if is_colored or is_dark_screen:
        assert shown.getpixel((24, 24)) in (255, 230), "the quiet zone is light"


def screen(text: str, is_dark: bool) -> Image.Image:
    """Draw lines as a terminal does: half blocks in the colour of letters, or in those that a line begins with."""
    ink, paper = (230, 20) if is_dark else (20, 230)
    lines = text.splitlines()
    columns = len(re.sub("\x1b[^m]*m", "", lines[0]))
    image = Image.new("L", (4 * columns + 40, 8 * len(lines) + 40), paper)
    draw = ImageDraw.Draw(image)
    for row, line in enumerate(lines):
        colors = re.match("\x1b\\[38;5;16;48;5;231m(.*)\x1b\\[0m$", line)
        shown, light, dark = (colors[1], 255, 0) if colors else (line, paper, ink)
        assert len(shown) == columns
        for column, block in enumerate(shown):
            upper, lower = block in "▀█", block in "▄█"
            left, top = 20 + 4 * column, 20 + 8 * row
            draw.rectangle((left, top, left + 3, top + 3), fill=dark if upper else light)
            draw.rectangle((left, top + 4, left + 3, top + 7), fill=dark if lower else light)
    return image


# -- photos ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [*range(0, 360, 30), 1, 44, 46, 89, 137, 233])
def test_turned_by_any_angle_it_is_read(degrees: int) -> None:
    assert read_content(file_of(turned(degrees)), "photo.png") == DYNAMIC


PHOTOS: dict[str, Callable[[], bytes]] = {
    "blurred by a third of a module": lambda: file_of(photo().filter(ImageFilter.GaussianBlur(2.7))),
    "blurred and turned": lambda: file_of(turned(23).filter(ImageFilter.GaussianBlur(2))),
    "a pixel a module": lambda: file_of(scaled(photo(), 1)),
    "a pixel and a half, turned": lambda: file_of(scaled(turned(17), 1.5)),
    "a pixel and a quarter, turned": lambda: file_of(scaled(turned(17), 1.25)),
    "two and a half pixels": lambda: file_of(scaled(photo(), 2.5)),
    "twenty pixels a module": lambda: file_of(scaled(photo(), 20)),
    "noisy": lambda: file_of(noisy(photo(), 1)),
    "noisy, turned and blurred": lambda: file_of(noisy(turned(200).filter(ImageFilter.GaussianBlur(1)), 2)),
    "a twelfth of the contrast": lambda: file_of(photo().point(lambda value: 120 + value // 12)),
    "from below": lambda: file_of(tilted(photo(), 0.15)),
    "from below and turned": lambda: file_of(tilted(turned(30), 0.1)),
    "light on dark": lambda: file_of(photo().point(lambda value: 255 - value)),
    "in a mirror": lambda: file_of(photo().transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    "in colours": lambda: file_of(Image.merge("RGB", (photo().point(lambda v: v // 3 + 40), photo(), photo()))),
    "few colours": lambda: file_of(photo().convert("P")),
    "sixteen bits": lambda: file_of(photo().convert("I").point(lambda v: v * 150 + 9_000).convert("I;16")),
    "poor JPEG, turned": lambda: file_of(turned(33), "JPEG", quality=10),
    "small in a large picture": lambda: file_of(in_a_corner(), "JPEG"),
}


def in_a_corner() -> Image.Image:
    picture = Image.new("L", (4_000, 3_000), 120)
    picture.paste(scaled(turned(8), 3), (3_300, 2_400))
    return picture


@pytest.mark.parametrize("name", PHOTOS)
def test_photos_of_it_are_read(name: str) -> None:
    assert read_content(PHOTOS[name](), "photo") == DYNAMIC


def test_what_is_transparent_is_white() -> None:
    code = Image.open(io.BytesIO(image_bytes(STATIC, "png"))).convert("L")
    ink = Image.new("RGBA", code.size, (0, 0, 0, 0))
    ink.putalpha(code.point(lambda value: 255 - value))  # black letters on nothing
    assert read_content(file_of(ink), "ink.png") == STATIC


# -- nothing, too much, and what is no image -------------------------------------------------------------


def test_an_image_without_a_code_says_so() -> None:
    assert refusal(file_of(Image.new("L", (300, 200), BLANK))) == "no_code"
    assert refusal(file_of(Image.new("L", (1, 1)))) == "no_code"
    half = photo().crop((0, 0, photo().width // 2, photo().height))
    assert refusal(file_of(half)) == "no_code"


def test_several_codes_are_counted_and_the_same_one_twice_is_one() -> None:
    def side_by_side(*payloads: str) -> bytes:
        shown = [photo(payload) for payload in payloads]
        wall = Image.new("L", (sum(item.width for item in shown), max(item.height for item in shown)), BLANK)
        left = 0
        for item in shown:
            wall.paste(item, (left, 0))
            left += item.width
        return file_of(wall)

    assert read_content(side_by_side(DYNAMIC, DYNAMIC), "wall.png") == DYNAMIC
    assert refusal(side_by_side(DYNAMIC, STATIC)) == "several_codes"
    with pytest.raises(LocalError, match="3 different"):
        read_content(side_by_side(DYNAMIC, STATIC, "https://example.org"), "wall.png")


def png_header(width: int, height: int) -> bytes:
    """Return the beginning of a PNG that claims a size and holds nothing."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = b"IDAT" + zlib.compress(b"")
    parts = [b"IHDR" + head, body, b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts
    )


@pytest.mark.parametrize("size", [(8_000, 8_000), (10_000, 10_000), (100_000, 100_000), (2**31 - 1, 1)])
def test_an_image_that_claims_too_many_pixels_is_never_unpacked(size: tuple[int, int]) -> None:
    assert refusal(png_header(*size)) == "image_too_large"


def test_a_file_that_is_too_large_is_refused_before_it_is_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(images.FILE_BYTES_MAX + 1)
    with pytest.raises(LocalError) as error:
        read_image(path)
    assert error.value.code == "image_too_large"


NO_IMAGES = {
    "empty": b"",
    "text": b"no image",
    "payload": STATIC.encode(),
    "PDF": b"%PDF-1.7",
    "signature": b"\x89PNG\r\n\x1a\n",
    "cut": image_bytes(STATIC, "png")[:200],
    "GIF": file_of(photo(), "GIF"),
    "BMP": file_of(photo(), "BMP"),
    "another SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><rect/></svg>",
    "entities": b'<?xml version="1.0"?><!DOCTYPE s [<!ENTITY a "b">]><svg>&a;</svg>',
    "spoilt path": image_bytes(STATIC, "svg").replace(b"h7m2 0", b"h7m2 0z", 1),
    "spoilt beginning": image_bytes(STATIC, "svg").replace(b'#000" d="M4 4.5', b'#000" d="M4 4,5', 1),
}


@pytest.mark.parametrize("name", NO_IMAGES)
def test_what_is_no_image_of_ours_is_refused(name: str) -> None:
    assert refusal(NO_IMAGES[name]) == "bad_image"


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.png", Path("/dev/null"), Path("a\0b"), Path("x" * 5_000)):
        with pytest.raises(LocalError) as error:
            read_image(path)
        assert error.value.code == "bad_image"


def test_spoilt_images_are_refused_or_read_and_nothing_else() -> None:
    sources = [image_bytes(STATIC, "png"), image_bytes(STATIC, "svg"), file_of(scaled(photo(STATIC), 2), "JPEG")]
    drawn = random.Random(8)
    seen = set()
    for _ in range(400):
        content = bytearray(drawn.choice(sources))
        for _ in range(drawn.randint(1, 5)):
            content[drawn.randrange(min(len(content), drawn.choice([60, 600, 10**6])))] = drawn.randrange(256)
        cut = drawn.choice([len(content), drawn.randrange(len(content))])
        try:
            assert read_content(bytes(content[:cut]), "code") == STATIC
            seen.add("read")
        except LocalError as error:
            seen.add(error.code)
    assert seen == {"read", "bad_image", "no_code"}
