from __future__ import annotations

import numpy as np
import pytest
import torch

from dil_cli.dynamics.plots import draw_dynamics, dynamics_curves, plot_dynamics
from dil_cli.dynamics.probe import read_probe, write_probe
from dil_cli.dynamics.statistics import pair_statistics
from dil_cli.errors import DilError
from dil_cli.types import PairLogps

STEPS = (0, 5, 11, 16)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Rows as the loop writes them (steps between the measurements too) and the probe folder."""
    folder = tmp_path_factory.mktemp("probe")
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(5, 60, (2, 40), generator=generator)
    rows, start = [], None
    for step in STEPS:
        noise = 0.1 * torch.randn(2, 40, generator=generator)
        per_token = torch.tensor([[-0.75], [-0.85]]) - step * torch.tensor([[0.01], [0.02]]) + noise
        logps = PairLogps(*(per_token * tokens), *tokens)
        start = start or logps
        write_probe(folder, step, range(1, 41), logps, start)
        values = pair_statistics(logps, "mean", start)
        rows.append({"step": step, "loss": -0.5, "logps/chosen": -9.0})
        rows.append({"step": step, **{f"probe/{name}": value for name, value in values.items()}})
    return rows, folder


def heights(axes):
    return [np.asarray(line.get_ydata()).tolist() for line in axes.get_lines()]


def test_curves_are_the_rows_of_the_record(run):
    rows, _ = run
    curves = dynamics_curves(rows)
    probe = rows[1::2]
    assert curves.step_N.tolist() == list(STEPS)
    for side in ("chosen", "rejected"):
        drawn = getattr(curves, side)
        assert drawn.value.tolist() == [row[f"probe/logps/{side}"] for row in probe]
        assert drawn.change.tolist() == [row[f"probe/delta/{side}"] for row in probe]
        assert drawn.low.tolist() == [row[f"probe/delta/{side}/p10"] for row in probe]
        assert drawn.high.tolist() == [row[f"probe/delta/{side}/p90"] for row in probe]
    assert curves.margin_N.tolist() == [row["probe/delta/margin"] for row in probe]
    assert curves.cost == probe[-1]["probe/chosen_cost"]


def test_curves_are_the_means_of_the_parquet(run):
    rows, folder = run
    curves, table = dynamics_curves(rows), read_probe(folder)
    column = {name: table.column(name).to_numpy().reshape(len(STEPS), 40) for name in table.column_names}
    for side in ("chosen", "rejected"):
        value = (column[f"{side}_logp_sum"] / column[f"{side}_tokens"]).mean(axis=1)
        np.testing.assert_allclose(getattr(curves, side).value, value, rtol=1e-14)
        np.testing.assert_allclose(getattr(curves, side).change, column[f"delta_{side}"].mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(curves.margin_N, column["delta_margin"].mean(axis=1), rtol=1e-12)


def test_the_picture_draws_the_curves(run):
    curves = dynamics_curves(run[0])
    left, right = draw_dynamics(curves, "tiny: LSIF").axes
    drawn = heights(left)
    for side in (curves.chosen, curves.rejected):
        assert side.value.tolist() in drawn
        assert (side.value[0] + side.low).tolist() in drawn
        assert (side.value[0] + side.high).tolist() in drawn
    assert curves.margin_N.tolist() in heights(right)
    texts = {text.get_text() for text in [*left.texts, *right.texts]}
    assert f"chosen\n\N{MINUS SIGN}{-curves.chosen.change[-1]:.3f}" in texts
    assert f"margin\n+{curves.margin_N[-1]:.3f}" in texts
    assert f"chosen_cost {curves.cost:.2f}: nats of chosen lost per nat of margin" in texts


def test_labels_of_close_lines_are_kept_apart():
    start = {"step": 0, "probe/logps/chosen": -1.0, "probe/logps/rejected": -1.0001}
    end = {"step": 9, "probe/logps/chosen": -2.0, "probe/logps/rejected": -2.0001}
    figure = draw_dynamics(dynamics_curves([start, end]), "close")
    figure.canvas.draw()
    boxes = {text.get_text().split("\n")[0]: text.get_window_extent() for text in figure.axes[0].texts}
    chosen, rejected = boxes["chosen"], boxes["rejected"]
    assert chosen.y0 >= rejected.y1


def test_the_png_is_whole_and_of_the_stated_size(run, tmp_path):
    path = tmp_path / "dynamics.png"
    plot_dynamics(dynamics_curves(run[0]), path, "a title with $ and _ and <b>")
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    assert data.endswith(b"IEND\xaeB`\x82")
    assert (int.from_bytes(data[16:20]), int.from_bytes(data[20:24])) == (1500, 600)
    plot_dynamics(dynamics_curves(run[0]), path, "a title with $ and _ and <b>")
    assert path.read_bytes() == data
    assert [file.name for file in tmp_path.iterdir()] == ["dynamics.png"]


def test_a_demonstration_run_has_one_line_and_no_margin(tmp_path):
    rows = [{"step": s, "probe/logps/chosen": -1 + s / 10, "probe/delta/chosen": s / 10} for s in (0, 1, 2)]
    curves = dynamics_curves(rows)
    assert curves.rejected is None
    assert curves.margin_N is None
    _, right = draw_dynamics(curves, "sft").axes
    assert [0.0, 0.1, 0.2] in heights(right)
    plot_dynamics(curves, tmp_path / "sft.png", "sft")


def test_one_measurement_and_nulls_can_be_drawn(tmp_path):
    first = {"step": 0, "probe/logps/chosen": -1.0, "probe/logps/rejected": -2.0}
    curves = dynamics_curves([first])
    assert curves.chosen.change.tolist() == [0.0]
    plot_dynamics(curves, tmp_path / "one.png", "one")
    nulls = {"step": 5, "probe/logps/chosen": -1.0, "probe/logps/rejected": None, "probe/delta/margin": None}
    curves = dynamics_curves([first, nulls])
    assert np.isnan(curves.margin_N[1])
    plot_dynamics(curves, tmp_path / "nulls.png", "nulls")


def test_a_record_without_measurements_is_refused():
    with pytest.raises(DilError, match="holds no probe measurement"):
        dynamics_curves([{"step": 1, "loss": 0.5}])
