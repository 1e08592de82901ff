"""Runs with `data.join_to`: trained, measured and recorded on joined pairs."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq

from dil_cli.dynamics.probe import read_probe


def test_a_run_trains_on_pairs_of_the_length_and_says_so(dil_here, small_run, tmp_path: Path):
    small = [*small_run, "data.heldout_fraction=0.25"]
    join = ["data.join_to=100", "data.max_length=100", "data.max_prompt_length=60", "data.label_noise=0.5"]
    manifests, outs = {}, {}
    for name, words in {"plain": [], "joined": join, "limited": [*join, "data.limit=2"]}.items():
        code, out, err = dil_here("train", *small, *words, f"name={name}")
        assert code == 0, err
        (folder,) = (tmp_path / "outputs").glob(f"{name}-*")
        manifests[name], outs[name] = json.loads((folder / "manifest.json").read_text()), out
    plain, joined, limited = (manifest["pairs"] for manifest in manifests.values())
    assert plain["joined"] is None
    train, heldout = joined["joined"]
    assert train["used"] + train["short"] == plain["train"] == 30
    assert heldout["used"] + heldout["short"] == plain["heldout"] == 10
    assert f"train: {train['used']} pairs joined into {train['made']} by data.join_to" in outs["joined"]
    assert 2 < train["made"] == joined["train"] == manifests["joined"]["tokens"]["train"]["pairs"] < 15
    assert len(manifests["joined"]["flipped_rows"]) == joined["flipped"] == round(0.5 * train["made"])
    assert (limited["train"], limited["flipped"]) == (2, 1)
    assert limited["beyond_limit"] == 30 - limited["joined"][0]["used"]
    assert len({manifest["data_sha256"] for manifest in manifests.values()}) == 3

    (folder,) = (tmp_path / "outputs").glob("joined-*")
    assert read_probe(folder / "probe").to_pandas()["row"].nunique() == heldout["made"]
    kept = [pq.read_table(path).to_pylist() for path in (tmp_path / "outputs" / "cache" / "tokens").glob("*.parquet")]
    totals = [
        {len(pair["prompt"]) + max(len(pair["chosen"]), len(pair["rejected"])) for pair in split} for split in kept
    ]
    assert len(totals) == 5  # plain: both splits; joined: both; limited: its training pairs
    assert totals.count({100}) == 3
