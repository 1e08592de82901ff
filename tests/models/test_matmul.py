"""oneDNN multiplies where it is exact and worth it, and never for the many small products of attention."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from dil_cli.models import matmul

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _as_a_new_process_has_it() -> Iterator[None]:
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(("error", "width", "choice"), [
    (1e-7, 128, "medium"), (1e-7, 4096, "medium"), (1e-7, 64, "highest"), (1e-3, 4096, "highest"),
])  # fmt: skip
def test_choice_by_accuracy_and_width(error: float, width: int, choice: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(matmul, "_error", lambda: error)
    assert matmul.choose_matmul(CPU, width) == choice == torch.get_float32_matmul_precision()


def test_the_error_is_that_of_the_precision_in_force(monkeypatch: pytest.MonkeyPatch):
    assert 0 < matmul._error() < 1e-6
    product = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: (
        product(a.bfloat16(), b.bfloat16()).float() if a.dtype == torch.float32 else product(a, b)
    ))  # fmt: skip
    assert matmul._error() > matmul.ROUNDING


def test_other_devices_keep_what_they_have():
    torch.set_float32_matmul_precision("high")
    assert matmul.choose_matmul(torch.device("meta"), 4096) == "high"
    with matmul.small_products(torch.device("meta")):
        assert torch.get_float32_matmul_precision() == "high"


def test_small_products_come_back_to_the_choice():
    torch.set_float32_matmul_precision("medium")
    with matmul.small_products(CPU):
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == "medium"
