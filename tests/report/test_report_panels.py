"""Axes that are read without a legend: plain numbers, wherever the values lie."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from dil_cli.dynamics.style import Line
from dil_cli.report.curves import Curve
from dil_cli.report.panels import _draw_numerics


@pytest.mark.parametrize(
    ("norms", "scale"), [([0.946, 1.27], "linear"), ([0.3, 7.0], "log"), ([1e-4, 3e3], "log"), ([0.0, 0.0], "linear")]
)
def test_gradient_norms_of_any_range_have_two_plain_labels_at_least(norms: list[float], scale: str):
    figure, axes = plt.subplots()
    curve = Curve(np.array([1.0, 2.0]), np.array(norms))
    _draw_numerics(axes, {"lsif": curve}, {"lsif": Line("black", "-", "o")}, "gradient norm", "log")
    figure.canvas.draw()
    low, high = axes.get_ylim()
    shown = [
        label.get_text()
        for which in ("major", "minor")
        for label in axes.yaxis.get_ticklabels(which=which)
        if low <= label.get_position()[1] <= high and label.get_text()
    ]
    plt.close(figure)
    assert axes.get_yscale() == scale
    assert len(shown) >= 2
    assert not any("$" in text for text in shown)
