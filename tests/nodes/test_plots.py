"""The plots are read back from their pixels: a curve stands where its value is."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from feedback_loop.nodes import plots


def where(image: Tensor, colour: tuple[int, int, int]) -> Tensor:
    """(N, 2) rows and columns of the pixels of exactly that colour."""
    return ((image[0] * 255).round() == torch.tensor(colour)).all(-1).nonzero()


def test_a_plot_is_an_image_of_the_size_asked_for() -> None:
    image = plots.line_plot({"loss": [3.0, 2.0, 1.0]}, "loss by step", size=(400, 300))
    assert image.shape == (1, 300, 400, 3) and image.dtype == torch.float32
    assert 0 <= image.min() and image.max() == 1


def test_a_falling_curve_falls_from_left_to_right() -> None:
    """Rows grow downwards: the first value 3 stands above the last value 1."""
    image = plots.line_plot({"loss": [3.0, 2.0, 1.0]}, "t", size=(400, 300))
    curve = where(image[:, :250], plots.COLOURS[0])  # without the legend at the bottom
    left, right = curve[curve[:, 1].argmin()], curve[curve[:, 1].argmax()]
    assert left[0] < 60 and right[0] > 230
    assert left[1] <= 65 and right[1] >= 383


def test_a_value_in_the_middle_stands_in_the_middle() -> None:
    """The limits are 5 % wider on both sides, so 2 of 1..3 is halfway between row 34 and row 300 - 46."""
    image = plots.line_plot({"loss": [1.0, 2.0, 3.0]}, "t", size=(400, 300))
    rows = where(image[:, :250], plots.COLOURS[0])
    middle = rows[(rows[:, 1] - (64 + 384) // 2).abs() <= 1][:, 0].float().mean()
    assert abs(middle - (34 + 254) / 2) < 2


@pytest.mark.parametrize("values", [[], [math.nan, math.inf]])
def test_nothing_finite_says_that_there_is_nothing_to_show(values: list[float]) -> None:
    image = plots.line_plot({"loss": values} if values else {}, "t")
    assert len(where(image, plots.COLOURS[0])) == 0
    assert image.shape == (1, 384, 768, 3)


def test_one_value_and_equal_values_are_drawn() -> None:
    for values in ([0.0], [2.0, 2.0], [math.nan, 1e-9, math.nan], [1e12, -1e12]):
        image = plots.line_plot({"loss": values}, "t")
        assert len(where(image[:, :330], plots.COLOURS[0])) > 0, values


def test_a_value_that_is_not_finite_leaves_a_gap() -> None:
    """Of 101 values over 384 pixels the middle fifth is missing, so no pixel of the curve is in the middle."""
    values = [1.0] * 40 + [math.nan] * 21 + [1.0] * 40
    columns = where(plots.line_plot({"loss": values}, "t", size=(464, 300))[:, :250], plots.COLOURS[0])[:, 1]
    assert len(columns) and not ((columns > 240) & (columns < 270)).any()


def test_more_series_than_colours_are_all_drawn() -> None:
    series = {f"run {i}": [float(i), float(i)] for i in range(8)}
    image = plots.line_plot(series, "t")
    for colour in plots.COLOURS:
        assert len(where(image[:, :330], colour)) > 0


def test_an_interval_is_drawn_between_its_ends_around_its_value() -> None:
    image = plots.interval_plot({"win rate": (0.6, 0.5, 0.7)}, "t", reference=0.0, size=(764, 160))
    columns = where(image, plots.COLOURS[0])[:, 1].float()
    # limits 0 - .035 and .7 + .035 over columns 180 to 740
    at = [180 + (v + 0.035) / 0.77 * 560 for v in (0.5, 0.6, 0.7)]
    assert abs(columns.min() - at[0]) < 3 and abs(columns.max() - at[2]) < 3
    assert abs(columns.median() - at[1]) < 4


def test_the_axis_shows_its_limits_whatever_the_values_are() -> None:
    """Limits 0 - .05 to 1 + .05 over columns 180 to 740: .1 stands at 180 + .15 / 1.1 * 560."""
    row = {"share": (0.1, 0.1, 0.1)}
    dot = where(plots.interval_plot(row, "t", size=(764, 160), limits=(0, 1)), plots.COLOURS[0])[:, 1].float()
    assert abs(dot.median() - (180 + 0.15 / 1.1 * 560)) < 2


def test_an_interval_plot_without_rows_says_so() -> None:
    assert plots.interval_plot({}, "t").shape == (1, 160, 768, 3)
    assert plots.interval_plot({"a": (math.nan,) * 3}, "t").shape == (1, 160, 768, 3)


def test_a_grid_holds_each_picture_unchanged_in_its_place() -> None:
    """128 px cells, 4 px gaps and 20 px of label: picture 2 of 2 columns begins at row 4 + 128 + 20 + 4."""
    pictures = (torch.rand(3, 128, 128, 3, generator=torch.Generator().manual_seed(1)) * 255).round() / 255
    image = plots.grid(pictures, 2, ["one", "two", "three"])
    assert image.shape == (1, 2 * 152 + 4, 2 * 132 + 4, 3)
    assert torch.allclose(image[0, 4:132, 136:264], pictures[1], atol=1e-6)
    assert torch.allclose(image[0, 156:284, 4:132], pictures[2], atol=1e-6)
    assert (image[0, 156:284, 136:264] == 1).all(), "the cell without a picture is paper"


def test_small_pictures_are_enlarged_by_whole_numbers() -> None:
    pictures = (torch.rand(1, 48, 64, 3) * 255).round() / 255
    image = plots.grid(pictures, 4)
    assert image.shape == (1, 96 + 8, 128 + 8, 3)
    assert torch.allclose(image[0, 4:100:2, 5:132:2], pictures[0], atol=1e-6)


def test_a_label_is_drawn_below_its_picture_and_stays_inside_its_cell() -> None:
    image = plots.grid(torch.ones(2, 128, 128, 3), 2, ["a label far too long for a picture of this size", ""])
    assert (image[0, 132:152, 4:132] < 0.5).any(-1).any()
    assert (image[0, :, 132:] == 1).all()


def test_letters_that_the_font_lacks_become_the_nearest_that_it_has() -> None:
    assert plots._printable("Rölls  größer\nÉté 漢") == "Rolls gro?er Ete ?"


@pytest.mark.parametrize(
    ("pictures", "labels", "says"),
    [
        (torch.zeros(0, 8, 8, 3), None, "at least one RGB picture"),
        (torch.zeros(2, 3, 8, 8), None, "at least one RGB picture"),
        (torch.zeros(2, 8, 8, 3), ["a"], "2 pictures but 1 labels"),
    ],
)
def test_a_grid_of_the_wrong_things_is_refused_with_a_sentence(pictures: Tensor, labels, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        plots.grid(pictures, 2, labels)
