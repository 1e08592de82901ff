"""Values and gradients against 50-digit vectors (`tests/vectors/README.md`), with the guard off.

Numbers beyond a format's largest one must come out as infinite there; what the guard makes of them
instead is tested in `test_loss_guard.py`.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from dil_cli.losses import BCE, DPO, LSIF, SFT, UKL, Reduction, SimPO, SLiC

FILE = json.loads((Path(__file__).parent.parent / "vectors" / "losses.json").read_text())
DTYPES = {"float64": torch.float64, "float32": torch.float32}
INPUTS = 18

# Each set of vectors of the seven losses: name in the file, convention, the loss it belongs to.
SETS = [
    ("sft", "sum", {}, SFT(reduction=Reduction.sum)),
    ("sft", "mean", {}, SFT()),
    ("dpo", "sum", {"beta": "0.1"}, DPO()),
    ("dpo", "sum", {"beta": "0.01"}, DPO(beta=0.01)),
    ("dpo_norm", "mean", {"beta": "5"}, DPO(beta=5, reduction=Reduction.mean)),
    ("dil_cpc", "sum", {"beta": "1"}, DPO(beta=1)),
    ("dil_cpc", "mean", {"beta": "1"}, DPO(beta=1, reduction=Reduction.mean)),
    ("slic_hf", "sum", {"delta": "1", "lambda": "0.1"}, SLiC(reduction=Reduction.sum)),
    ("slic_hf", "mean", {"delta": "1", "lambda": "0.1"}, SLiC()),
    ("simpo", "mean", {"beta": "2", "gamma": "1.6"}, SimPO()),
    ("simpo", "mean", {"beta": "2", "gamma": "1"}, SimPO(gamma=1)),
    ("dil_lsif", "sum", {}, LSIF(reduction=Reduction.sum, exp_cap=None)),
    ("dil_lsif", "mean", {}, LSIF(exp_cap=None)),
    ("dil_bce", "sum", {}, BCE(reduction=Reduction.sum)),
    ("dil_bce", "mean", {}, BCE()),
    ("dil_ukl", "sum", {}, UKL(reduction=Reduction.sum, exp_cap=None)),
    ("dil_ukl", "mean", {}, UKL(exp_cap=None)),
]
IDS = [f"{name}-{convention}-{'-'.join(values.values())}".rstrip("-") for name, convention, values, _ in SETS]


def select(name, convention, hyperparameters):
    wanted = (name, convention, hyperparameters)
    found = [v for v in FILE["vectors"] if (v["loss_name"], v["convention"], v["hyperparameters"]) == wanted]
    assert len(found) == INPUTS, f"{wanted}: {len(found)} vectors"
    return found


def pairs_of(vectors, make_pairs, dtype):
    rows = [FILE["inputs"][v["input"]] for v in vectors]
    columns = ("policy_chosen_logp", "policy_rejected_logp", "ref_chosen_logp", "ref_rejected_logp")
    return make_pairs(
        *[[float(row[column]) for row in rows] for column in columns],
        tokens=([row["n_chosen"] for row in rows], [row["n_rejected"] for row in rows]),
        dtype=dtype,
    )


def agrees(column, actual, expected, largest, rtol):
    """Whether `actual` is `expected`, or infinite where `expected` is beyond the format's `largest`."""
    if abs(expected) <= largest:
        return abs(actual - expected) <= rtol * abs(expected) + 1e-12
    if column == "loss":  # both terms of LSIF may overflow, and inf - inf is NaN
        return not math.isfinite(actual)
    return actual == math.copysign(math.inf, expected)


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize(("name", "convention", "hyperparameters", "loss"), SETS, ids=IDS)
def test_vectors_hold(name, convention, hyperparameters, loss, precision, make_pairs, value_and_gradients):
    # float32 rounds the input -59.99 by up to 2e-6, which s keeps; the large inputs are exact in float32.
    rtol = {"float64": 1e-9, "float32": 1e-4}[precision]
    dtype = DTYPES[precision]
    largest = torch.finfo(dtype).max
    vectors = select(name, convention, hyperparameters)
    results = value_and_gradients(loss, pairs_of(vectors, make_pairs, dtype))
    assert {x_B.dtype for x_B in results} == {dtype}

    wrong = []
    for column, actual_B in zip(("loss", "grad_chosen", "grad_rejected"), results, strict=True):
        for vector, actual in zip(vectors, actual_B.tolist(), strict=True):
            if not agrees(column, actual, float(vector[column]), largest, rtol):
                wrong.append(f"{vector['input']} {column}: {actual} is not {vector[column]}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(("name", "convention", "hyperparameters", "loss"), SETS, ids=IDS)
def test_flags_of_the_file_say_what_was_tested(name, convention, hyperparameters, loss):
    numbers = ("loss", "grad_chosen", "grad_rejected", "grad_chosen_wrt_mean", "grad_rejected_wrt_mean")
    for vector in select(name, convention, hyperparameters):
        for precision, dtype in DTYPES.items():
            beyond = any(abs(float(vector[number])) > torch.finfo(dtype).max for number in numbers)
            assert vector[f"overflow_{precision}"] == beyond
        assert not vector["at_kink"]  # SLiC has a corner; no input of the file sits on it


def test_every_set_of_the_seven_losses_is_checked():
    prefixes = ("sft", "dpo", "dpo_norm", "dil_cpc", "slic_hf", "simpo", "dil_lsif", "dil_bce", "dil_ukl")
    in_file = {
        (v["loss_name"], v["convention"], *sorted(v["hyperparameters"].items()))
        for v in FILE["vectors"]
        if v["loss_name"] in prefixes
    }
    assert in_file == {(n, c, *sorted(h.items())) for n, c, h, _ in SETS}
    assert {type(loss).name for *_, loss in SETS} == {"sft", "dpo", "slic", "simpo", "lsif", "bce", "ukl"}
    assert len(in_file) * INPUTS == 306


@pytest.mark.parametrize("loss_type", [LSIF, UKL])
@pytest.mark.parametrize("convention", ["sum", "mean"])
def test_the_default_guard_changes_no_vector_below_its_cap(loss_type, convention, make_pairs, value_and_gradients):
    vectors = select(f"dil_{loss_type.name}", convention, {})
    pairs = pairs_of(vectors, make_pairs, torch.float64)
    guarded = loss_type(reduction=Reduction(convention))
    free = loss_type(reduction=Reduction(convention), exp_cap=None)
    beyond_B = guarded(pairs).guarded_B
    assert 0 < int(beyond_B.sum()) < INPUTS
    for with_guard_B, without_B in zip(
        value_and_gradients(guarded, pairs), value_and_gradients(free, pairs), strict=True
    ):
        assert torch.equal(with_guard_B[~beyond_B], without_B[~beyond_B])
        assert torch.isfinite(with_guard_B).all()
