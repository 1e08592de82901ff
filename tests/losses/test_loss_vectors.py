"""Values and gradients against 50-digit vectors (`tests/vectors/README.md`), with the guard off.

Numbers beyond a format's largest one must come out as infinite there; what the guard makes of them
instead is tested in `test_loss_guard.py`.
"""

from __future__ import annotations

import json
import math
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from every_loss import PINNED

from dil_cli.losses import LOSSES, Bregman, PreferenceLoss, Reduction
from dil_cli.losses.dpo import Divergence

FILE = json.loads((Path(__file__).parent.parent / "vectors" / "losses.json").read_text())
DTYPES = {"float64": torch.float64, "float32": torch.float32}
RTOL = {"float64": 1e-9, "float32": 1e-4}
COLUMNS = ("loss", "grad_chosen", "grad_rejected")
INPUTS = 18

# Where the file's name is another one, or names a setting too.
NAMES = {
    "dpo_norm": "dpo", "dil_cpc": "dpo", "hinge_dpo": "rso", "slic_hf": "slic", "exo_pair": "exo", "nca_pair": "nca",
    "sppo_hard": "sppo", "fdpo_reverse_kl": "fdpo", "fdpo_forward_kl": "fdpo", "fdpo_js": "fdpo", "fdpo_alpha": "fdpo",
    "dil_lsif": "lsif", "dil_bce": "bce", "dil_ukl": "ukl", "dil_ukl_official": "ukl_official",
    "bregman_power": "power", "bregman_jeffreys": "jeffreys", "bregman_brier": "brier", "bregman_rulsif": "rulsif",
    "aot_paired": "aot", "aot_unpaired": "aot", "kto_batch": "kto", "bco_batch": "bco", "kliep_normalised": "kliep",
}  # fmt: skip
SETTINGS = {"lambda": "lam", "lambda_D": "lam_d", "lambda_U": "lam_u", "z_ref": "z", "f": "divergence"}
# Losses that are made of others; their values are those of the others.
COMPOSED = {"bregman", "combine"}


def key_of(vector) -> tuple:
    return (vector["loss_name"], vector["convention"], *sorted(vector["hyperparameters"].items()))


SETS = sorted({key_of(vector) for vector in FILE["vectors"]})
IDS = ["-".join([*key[:2], *(f"{k}={v}" for k, v in key[2:])]) for key in SETS]


def loss_of(key: tuple) -> PreferenceLoss:
    """The package's loss for a set of vectors, its guard off."""
    name, convention, *hyperparameters = key
    loss = LOSSES[NAMES.get(name, name)]
    values = {SETTINGS.get(k, k): v for k, v in hyperparameters}
    known = {f.name for f in fields(loss)}
    convert = {"nll": Reduction, "divergence": Divergence, "sign": int}
    settings = {k: convert.get(k, float)(v) for k, v in values.items()} | {"reduction": Reduction(convention)}
    return loss(**settings, **({"exp_cap": None} if "exp_cap" in known else {}))


def vectors_of(key: tuple) -> list[dict]:
    found = [vector for vector in FILE["vectors"] if key_of(vector) == key]
    assert len(found) == INPUTS
    return found


def pairs_of(rows, make_pairs, dtype):
    columns = ("policy_chosen_logp", "policy_rejected_logp", "ref_chosen_logp", "ref_rejected_logp")
    return make_pairs(
        *[[float(row[column]) for row in rows] for column in columns],
        tokens=([row["n_chosen"] for row in rows], [row["n_rejected"] for row in rows]),
        dtype=dtype,
    )


def rounding(vector, row, dtype) -> float:
    """How far the loss may move because its inputs are rounded: |dL/dx| times half a unit in the last place."""
    half = torch.finfo(dtype).eps / 2
    sides = (("grad_chosen", "chosen"), ("grad_rejected", "rejected"))
    return sum(
        half * abs(float(vector[grad])) * (abs(float(row[f"policy_{side}_logp"])) + abs(float(row[f"ref_{side}_logp"])))
        for grad, side in sides
    )


def agrees(column, actual, expected, largest, allowed):
    """Whether `actual` is `expected`, or not finite where `expected` is beyond the format's `largest`."""
    if abs(expected) <= largest:
        return abs(actual - expected) <= allowed
    if column == "loss":  # both terms of LSIF may overflow, and inf - inf is NaN
        return not math.isfinite(actual)
    return actual == math.copysign(math.inf, expected)


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("key", SETS, ids=IDS)
def test_vectors_hold(key, precision, make_pairs, value_and_gradients):
    dtype, rtol = DTYPES[precision], RTOL[precision]
    vectors = vectors_of(key)
    rows = [FILE["inputs"][vector["input"]] for vector in vectors]
    results = value_and_gradients(loss_of(key), pairs_of(rows, make_pairs, dtype), coupled=False)
    assert {x_B.dtype for x_B in results} == {dtype}

    wrong = []
    for column, actual_B in zip(COLUMNS, results, strict=True):
        for vector, row, actual in zip(vectors, rows, actual_B.tolist(), strict=True):
            expected = float(vector[column])
            allowed = rtol * abs(expected) + 1e-12
            if precision == "float32" and column == "loss":
                allowed += rounding(vector, row, dtype)
            if precision == "float32" and key[0] == "apo_down":
                allowed += 1e-8  # two slopes of 0.025 cancel to 2e-8
            if not agrees(column, actual, expected, torch.finfo(dtype).max, allowed):
                wrong.append(f"{vector['input']} {column}: {actual} is not {vector[column]}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("key", SETS, ids=IDS)
def test_flags_of_the_file_say_what_was_tested(key):
    for vector in vectors_of(key):
        for precision, dtype in DTYPES.items():
            beyond = any(abs(float(vector[number])) > torch.finfo(dtype).max for number in COLUMNS)
            assert vector[f"overflow_{precision}"] == beyond


def test_every_vector_belongs_to_a_loss_and_every_loss_has_vectors():
    assert len(SETS) * INPUTS == len(FILE["vectors"]) == 1242
    in_file = {vector["loss_name"] for vector in [*FILE["vectors"], *FILE["batch_vectors"]]}
    assert {NAMES.get(name, name) for name in in_file} == PINNED - COMPOSED


def test_corners_take_the_flat_side():
    """Five inputs sit on the corner of a hinge, where the file stores the gradient of the flat side."""
    at_kink = [vector for vector in FILE["vectors"] if vector["at_kink"]]
    assert {NAMES.get(vector["loss_name"], vector["loss_name"]) for vector in at_kink} == {"rso", "rrhf", "dpop"}
    assert len(at_kink) == 5


@pytest.mark.parametrize("key", [key for key in SETS if hasattr(loss_of(key), "exp_cap")], ids=lambda key: key[0])
def test_the_default_guard_changes_no_vector_below_its_cap(key, make_pairs, value_and_gradients):
    free = loss_of(key)
    guarded = type(free)(**{**{f.name: getattr(free, f.name) for f in fields(free)}, "exp_cap": 30.0})
    pairs = pairs_of([FILE["inputs"][vector["input"]] for vector in vectors_of(key)], make_pairs, torch.float64)
    beyond_B = guarded(pairs).guarded_B
    if beyond_B is None:
        beyond_B = torch.zeros(INPUTS, dtype=torch.bool)
    for with_guard_B, without_B in zip(
        value_and_gradients(guarded, pairs), value_and_gradients(free, pairs), strict=True
    ):
        torch.testing.assert_close(with_guard_B[~beyond_B], without_B[~beyond_B], rtol=1e-12, atol=0)
        assert torch.isfinite(with_guard_B).all()


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("index", range(len(FILE["batch_vectors"])))
def test_batch_vectors_hold(index, precision, make_pairs, value_and_gradients):
    """Losses with a statistic of the batch: the mean over it, and its gradient pair by pair."""
    vector, dtype = FILE["batch_vectors"][index], DTYPES[precision]
    pairs = pairs_of(FILE["batch_inputs"], make_pairs, dtype)
    loss_B, *gradients = value_and_gradients(batch_loss(vector), pairs)
    tolerance = {"rtol": RTOL[precision], "atol": 1e-12 if precision == "float64" else 1e-7}
    expected = torch.tensor(float(vector["loss"]), dtype=dtype)
    torch.testing.assert_close(loss_B.mean(), expected, **tolerance)
    for actual_B, column in zip(gradients, ("grad_chosen", "grad_rejected"), strict=True):
        expected_B = torch.tensor([float(number) for number in vector[column]], dtype=dtype)
        torch.testing.assert_close(actual_B / len(actual_B), expected_B, **tolerance)


def batch_loss(vector) -> PreferenceLoss:
    name, given = vector["loss_name"], vector["hyperparameters"]
    settings = {k: float(given[k]) for k in ("beta", "epsilon") if k in given}
    if name.startswith("aot"):
        settings["paired"] = name == "aot_paired"
    if name == "kto_batch":  # the file's z is of mismatched pairs, which a loss does not see
        settings["z"] = float(vector["z_ref_value"])
    return LOSSES[NAMES.get(name, name)](reduction=Reduction(vector["convention"]), **settings)


def test_kto_and_bco_with_the_batch_s_own_statistic(make_pairs):
    """z = max(0, mean s) and delta = mean beta s over all 2n responses, worked out from the inputs here."""
    rows = FILE["batch_inputs"]
    s = [float(row[f"policy_{x}_logp"]) - float(row[f"ref_{x}_logp"]) for row in rows for x in ("chosen", "rejected")]
    mean = sum(s) / len(s)
    assert mean == pytest.approx(-47 / 24)  # below 0: the batch's own z is 0
    pairs = pairs_of(rows, make_pairs, torch.float64)
    assert torch.equal(LOSSES["kto"]()(pairs).loss_B, LOSSES["kto"](z=0.0)(pairs).loss_B)
    swapped = make_pairs(
        pairs.policy_rejected_B.tolist(), pairs.policy_chosen_B.tolist(),
        (pairs.policy_rejected_B + pairs.policy_rejected_B - pairs.reference_rejected_B).tolist(),
        (pairs.policy_chosen_B + pairs.policy_chosen_B - pairs.reference_chosen_B).tolist(),
    )  # fmt: skip
    torch.testing.assert_close(LOSSES["kto"]()(swapped).loss_B, LOSSES["kto"](z=-mean)(swapped).loss_B)
    torch.testing.assert_close(LOSSES["bco"]()(pairs).loss_B, LOSSES["bco"](delta=0.1 * mean)(pairs).loss_B)


def own_lsif(r):
    return (r - 1) ** 2 / 2


def own_bce(r):
    return r * r.log() - (1 + r) * (1 + r).log()


def own_ukl(r):
    return r * r.log() - r


def own_jeffreys(r):
    return (r - 1) * r.log()


def own_brier(r):
    return -r / (1 + r)


def own_itakura_saito(r):
    return -r.log()


# h as a Python function, the set of vectors it must give, and what that loss leaves out of the general form.
FUNCTIONS = {
    "lsif": (own_lsif, "dil_lsif", (), 0.5),
    "bce": (own_bce, "dil_bce", (), 0),
    "ukl": (own_ukl, "dil_ukl", (), 0),
    "jeffreys": (own_jeffreys, "bregman_jeffreys", (), 0),
    "brier": (own_brier, "bregman_brier", (), 0),
    "itakura_saito": (own_itakura_saito, "bregman_power", (("alpha", "-1"),), 0),
}


@pytest.mark.parametrize("convention", ["mean", "sum"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_any_convex_function_gives_its_loss(name, convention, make_pairs, value_and_gradients):
    """By autograd from the function alone, against the vectors of the closed forms, for |s| up to the guard."""
    function, file_name, hyperparameters, constant = FUNCTIONS[name]
    vectors = vectors_of((file_name, convention, *hyperparameters))
    rows = [FILE["inputs"][vector["input"]] for vector in vectors]
    pairs = pairs_of(rows, make_pairs, torch.float64)
    loss = Bregman(h=function, reduction=Reduction(convention))
    inside_B = ~loss(pairs).guarded_B
    assert inside_B.sum() >= 8
    offset = loss.at_reference() - LOSSES[NAMES[file_name]](**{k: float(v) for k, v in hyperparameters}).at_reference()
    for column, actual_B in zip(COLUMNS, value_and_gradients(loss, pairs), strict=True):
        expected_B = torch.tensor([float(vector[column]) for vector in vectors], dtype=torch.float64)
        expected_B = expected_B + (offset if column == "loss" else 0)
        torch.testing.assert_close(actual_B[inside_B], expected_B[inside_B], rtol=1e-9, atol=1e-9)
        assert actual_B.isfinite().all()
    assert offset == pytest.approx(constant, abs=1e-12)
    assert torch.equal(  # a name that is known is the closed form itself
        Bregman(h=name, reduction=Reduction(convention))(pairs).loss_B,
        loss_of((file_name, convention, *hyperparameters)).__class__(
            reduction=Reduction(convention), **{k: float(v) for k, v in hyperparameters}
        )(pairs).loss_B,
    )  # fmt: skip
