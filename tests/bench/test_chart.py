"""Charts: well-formed SVG that holds every figure of its data, for light and for dark readers."""

from xml.etree import ElementTree

import pytest

from bench.chart import COLOURS, Bar, Series, line_chart, plain, stacked_bars

SVG = "{http://www.w3.org/2000/svg}"


def texts(chart: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(chart).iter(f"{SVG}text")]


def lines(*series: Series, **options: bool) -> str:
    return line_chart("Title & <more>", "note", x_label="x in a", y_label="y in b", series=series, **options)


def places(chart: str) -> list[tuple[float, float]]:
    circles = ElementTree.fromstring(chart).iter(f"{SVG}circle")
    return [(float(circle.attrib["cx"]), float(circle.attrib["cy"])) for circle in circles]


def test_every_figure_label_and_name_is_there() -> None:
    one, other = Series("one", [(1, 12_345), (50, 431)]), Series("other", [(1, 0.25), (200, 99)])
    assert set(texts(lines(one, other))) >= {"12,345", "431", "0.25", "99", "1", "50", "200", "one", "other"}
    assert {"Title & <more>", "note", "x in a", "y in b"} <= set(texts(lines(one)))
    assert "one" not in texts(lines(one)), "the axis names a line that is alone"


def test_a_higher_figure_stands_higher_and_a_larger_one_further_right() -> None:
    (x1, y1), (x2, y2), (x3, y3) = places(lines(Series("s", [(1, 10), (10, 30), (100, 20)]), x_by_powers=True))
    assert y1 > y3 > y2
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2), "equal factors are equal steps"
    by_powers = places(lines(Series("s", [(1, 1), (2, 10), (3, 100)]), y_by_powers=True))
    assert by_powers[0][1] - by_powers[1][1] == pytest.approx(by_powers[1][1] - by_powers[2][1], abs=0.2)


def test_a_single_point_and_nothing_but_zeros_are_drawn() -> None:
    assert len(places(lines(Series("s", [(4, 7)])))) == 1
    assert len(places(lines(Series("s", [(4, 0), (5, 0)])))) == 2


def test_figures_stay_inside_the_picture() -> None:
    chart = lines(Series("p50", [(10, 104), (90, 743)]), Series("p99", [(10, 233), (90, 1_064)]), y_by_powers=True)
    root = ElementTree.fromstring(chart)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    assert all(0 <= x <= width and 0 <= y <= height for x, y in places(chart))
    axis = max(float(line.attrib["y1"]) for line in root.iter(f"{SVG}line") if line.attrib["class"] == "grid")
    values = [float(text.attrib["y"]) for text in root.iter(f"{SVG}text") if text.attrib["class"] == "value"]
    assert len(values) == 4
    assert all(y < axis for y in values)


def test_a_reference_is_named_with_its_height() -> None:
    chart = line_chart("t", "n", x_label="x", y_label="y", series=[Series("s", [(1, 5)])], reference=("bound", 11_385))
    assert "bound: 11,385" in texts(chart)
    assert "12,500" in texts(chart) or "15,000" in texts(chart), "the axis reaches it"


def test_bars_say_their_segments_and_their_sums() -> None:
    bars = [Bar("single", {"verify": 45.5, "rest": 90}), Bar("envelope", {"verify": 45.5, "pool": 0.25, "rest": 30})]
    chart = stacked_bars("t", "n", x_label="µs", bars=bars)
    root = ElementTree.fromstring(chart)
    told = [element.text for element in root.iter(f"{SVG}title")]
    assert told == ["verify: 45.5", "rest: 90", "verify: 45.5", "pool: 0.25", "rest: 30"]
    assert {"single", "envelope", "verify", "rest", "pool", "136", "76"} <= set(texts(chart))
    widths = [float(box.attrib["width"]) for box in root.iter(f"{SVG}rect") if box.find(f"{SVG}title") is not None]
    assert widths[1] > widths[0] > widths[3] >= 0


def test_both_schemes_have_a_background_and_colours_differ() -> None:
    chart = lines(Series("s", [(1, 5)]))
    assert "prefers-color-scheme: dark" in chart
    assert chart.count(".background") == 2
    assert len(set(COLOURS)) == len(COLOURS) >= 11, "a node's ten stages and the rest"


def test_figures_as_people_write_them() -> None:
    assert [plain(value) for value in (0, 5, 12_345.6, 431.4, 45.25, 0.25)] == [
        "0",
        "5",
        "12,346",
        "431",
        "45.2",
        "0.25",
    ]
