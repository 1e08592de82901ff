"""Responses: what a plain loop over the model gives, whatever the batch; draws have the softmax's frequencies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dil_cli.config.judging import Opponent, WinrateConfig
from dil_cli.config.schema import Device, EvalConfig, ModelConfig, Precision
from dil_cli.evaluate.generate import Draw, Writer
from dil_cli.evaluate.store import open_lines
from dil_cli.models.load import Policy, load_policy
from dil_cli.tracking.console import make_console

NEW = 12


@pytest.fixture(scope="module")
def policy(model_folder: Path) -> Policy:
    """The small model with weights so large that its choices differ from prompt to prompt."""
    config = ModelConfig(
        path=str(model_folder), lr=1.0, batch_size=1, max_length=128, max_prompt_length=64, token_budget=512
    )
    policy = load_policy(config)
    torch.manual_seed(1)
    for parameter in policy.model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    return policy


PROMPTS = {row: np.random.default_rng(row).integers(3, 250, size=5 + 3 * row, dtype=np.int32) for row in range(7)}


def writer(policy: Policy, **benchmark) -> Writer:
    config = EvalConfig(
        checkpoint="m", device=Device.cpu, precision=Precision.fp32, seed=benchmark.pop("seed", 42), judge=object(),
        benchmark=WinrateConfig(opponent=Opponent.chosen, max_new_tokens=NEW, **benchmark),
    )  # fmt: skip
    return Writer(config, policy, "sha", torch.device("cpu"))


def respond(policy: Policy, folder: Path, **benchmark) -> list[str]:
    with open_lines(folder / f"{len(list(folder.iterdir()))}.jsonl") as store:
        found = writer(policy, **benchmark).respond(PROMPTS, store, make_console())
    return [found[row].text for row in PROMPTS]


@torch.no_grad()
def by_hand(policy: Policy, prompt: np.ndarray) -> list[int]:
    ids = prompt.tolist()
    for _ in range(NEW):
        ids.append(int(policy.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == policy.tokenizer.eos_token_id:
            ids.pop()
            break
    return ids[len(prompt) :]


def test_the_likeliest_tokens_in_any_batch(policy: Policy, tmp_path: Path):
    tokens = [by_hand(policy, prompt) for prompt in PROMPTS.values()]
    expected = [policy.tokenizer.decode(ids, skip_special_tokens=True) for ids in tokens]
    assert len(set(expected)) == len(expected)
    for batch_size in (1, 3, 16):
        assert respond(policy, tmp_path, batch_size=batch_size) == expected


def test_draws_do_not_depend_on_the_batch(policy: Policy, tmp_path: Path):
    drawn = [respond(policy, tmp_path, batch_size=size, temperature=0.9, top_p=0.95) for size in (1, 4, 16)]
    assert drawn[0] == drawn[1] == drawn[2]
    assert respond(policy, tmp_path, batch_size=4, temperature=0.9, top_p=0.95, seed=1) != drawn[0]
    assert respond(policy, tmp_path, batch_size=4) != drawn[0]


def test_a_response_ends_at_any_end(policy: Policy, tmp_path: Path, monkeypatch):
    tokens = {row: by_hand(policy, prompt) for row, prompt in PROMPTS.items()}
    longest = max(tokens, key=lambda row: len(tokens[row]))
    end = tokens[longest][4]
    # As a model has it with an end of turn beside the tokenizer's EOS.
    monkeypatch.setattr(policy.model.generation_config, "eos_token_id", [end])
    with open_lines(tmp_path / "ends.jsonl") as store:
        found = writer(policy).respond(PROMPTS, store, make_console())
    assert found[longest].tokens <= 4
    for row, ids in tokens.items():
        kept = ids[: ids.index(end)] if end in ids else ids
        assert (found[row].text, found[row].tokens) == (
            policy.tokenizer.decode(kept, skip_special_tokens=True),
            len(kept),
        )
        assert found[row].ended == (len(kept) < NEW)
    assert not all(response.ended for response in found.values())


def test_what_is_stored_is_not_generated_again(policy: Policy, tmp_path: Path, monkeypatch):
    with open_lines(tmp_path / "kept.jsonl") as store:
        made = writer(policy).respond(PROMPTS, store, make_console())
    again = writer(policy)
    monkeypatch.setattr(Writer, "_batch", lambda *_: pytest.fail("generated again"))
    with open_lines(tmp_path / "kept.jsonl") as store:
        assert again.respond(PROMPTS, store, make_console()) == made
        assert writer(policy, temperature=0.5).missing(PROMPTS, store), "other settings are other responses"


@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_draws_have_the_frequencies_of_the_softmax(top_p: float):
    scores = torch.tensor([2.0, 1.0, 0.5, -1.0])
    rows = 20_000
    drawn = Draw(0.8, top_p, [[row] for row in range(rows)])(torch.empty(0), scores.expand(rows, -1)).argmax(-1)
    expected = (scores / 0.8).softmax(-1)
    if top_p < 1:
        assert expected[0] < 0.7 < expected[:2].sum(), "two tokens hold 0.7"
        expected = torch.tensor([*expected[:2], 0, 0]) / expected[:2].sum()
    found = torch.bincount(drawn, minlength=4) / rows
    assert torch.allclose(found, expected, atol=0.012)
    assert (found == 0).equal(expected == 0)
