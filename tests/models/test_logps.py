"""Response log-probs of padded micro-batches against the plainest computation transformers allows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from dil_cli.dynamics.measure import Compute, forward_pairs, score_pairs
from dil_cli.types import TokenisedPair

VOCABULARY = 97
SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 128,
}  # fmt: skip


@pytest.fixture(params=["llama", "gpt_neox"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    if request.param == "llama":
        made = LlamaForCausalLM(LlamaConfig(**SHAPE, num_key_value_heads=2))
    else:
        made = GPTNeoXForCausalLM(GPTNeoXConfig(**SHAPE))
    for parameter in made.parameters():  # weights large enough for log-probs that differ from uniform
        torch.nn.init.normal_(parameter, std=0.3)
    return made.eval()


@pytest.fixture
def pairs() -> list[TokenisedPair]:
    numbers = np.random.default_rng(0)

    def ids(low: int, high: int) -> np.ndarray:
        return numbers.integers(0, VOCABULARY, numbers.integers(low, high), dtype=np.int32)

    made = [TokenisedPair(i + 1, ids(1, 30), ids(1, 40), ids(1, 40)) for i in range(11)]
    demonstration = TokenisedPair(12, ids(3, 9), ids(5, 9), np.empty(0, dtype=np.int32))
    return [*made, demonstration]


def naive_logp(model: PreTrainedModel, prompt: np.ndarray, response: np.ndarray) -> float:
    """One row, no padding, whole vocabulary, float64 softmax, one token at a time."""
    ids = torch.tensor([*prompt.tolist(), *response.tolist()])[None]
    with torch.no_grad():
        logps_TV = torch.log_softmax(model(ids).logits[0].double(), dim=-1)
    start = len(prompt)
    return sum(float(logps_TV[start + i - 1, token]) for i, token in enumerate(response.tolist()))


@pytest.mark.parametrize("budget", [1, 64, 200, 10_000])
def test_padded_micro_batches_equal_single_rows(
    model: PreTrainedModel, pairs: list[TokenisedPair], budget: int
) -> None:
    compute = Compute(torch.device("cpu"), bf16=False, token_budget=budget, pad_id=5)
    scored = score_pairs(model, pairs, compute)
    chosen = [naive_logp(model, p.prompt, p.chosen) for p in pairs]
    rejected = [naive_logp(model, p.prompt, p.rejected) for p in pairs]
    assert scored.policy_chosen_B.tolist() == pytest.approx(chosen, rel=1e-5, abs=1e-4)
    assert scored.policy_rejected_B.tolist() == pytest.approx(rejected, rel=1e-5, abs=1e-4)
    assert scored.chosen_tokens_B.tolist() == [len(p.chosen) for p in pairs]
    assert scored.rejected_tokens_B.tolist() == [len(p.rejected) for p in pairs]
    assert scored.policy_rejected_B[-1] == 0


def test_gradient_equals_that_of_single_rows(model: PreTrainedModel, pairs: list[TokenisedPair]) -> None:
    compute = Compute(torch.device("cpu"), bf16=False, token_budget=10_000, pad_id=0)
    logps = forward_pairs(model, pairs, compute)
    (logps.policy_chosen_B.sum() - 2 * logps.policy_rejected_B.sum()).backward()
    padded = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    for pair in pairs:
        for weight, response in ((1.0, pair.chosen), (-2.0, pair.rejected)):
            if len(response):
                ids = torch.tensor([*pair.prompt.tolist(), *response.tolist()])[None]
                logps_TV = torch.log_softmax(model(ids).logits[0], dim=-1)
                at = torch.arange(len(pair.prompt) - 1, ids.shape[1] - 1)
                (weight * logps_TV[at, ids[0, len(pair.prompt) :]].sum()).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(padded[name], parameter.grad, rtol=1e-4, atol=1e-4, msg=name)


def test_bf16_autocast_keeps_float32_log_probs_near(model: PreTrainedModel, pairs: list[TokenisedPair]) -> None:
    exact = score_pairs(model, pairs, Compute(torch.device("cpu"), False, 500, 0))
    rough = score_pairs(model, pairs, Compute(torch.device("cpu"), True, 500, 0))
    assert rough.policy_chosen_B.dtype == torch.float32
    assert rough.policy_chosen_B.tolist() != exact.policy_chosen_B.tolist()
    torch.testing.assert_close(rough.policy_chosen_B, exact.policy_chosen_B, rtol=0.05, atol=0.5)
