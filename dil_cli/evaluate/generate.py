"""Responses of a checkpoint to prompts: by the likeliest token, or drawn so that batches do not matter.

R rows of a batch, T tokens of the longest prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dil_cli.config.judging import WinrateConfig
from dil_cli.config.schema import EvalConfig, WeightType
from dil_cli.errors import DilError
from dil_cli.evaluate.store import Lines, key_of
from dil_cli.models.load import Policy
from dil_cli.train.ready import use_bf16

if TYPE_CHECKING:
    from transformers import GenerationConfig

    from dil_cli.tracking.console import ConsoleSink

NOISE_STREAM = 0x726573706F6E7365
"""Keeps the random numbers of responses apart from those of training under one seed."""


@dataclass(frozen=True)
class Response:
    """What a checkpoint answered; `ended` is False where `benchmark.max_new_tokens` cut it."""

    text: str
    tokens: int
    ended: bool


class Writer:
    """A policy on its device and how it is sampled; `facts` are all that its responses depend on but the prompt."""

    def __init__(self, config: EvalConfig, policy: Policy, weights: str, device: torch.device) -> None:
        benchmark: WinrateConfig = config.benchmark
        held_in: WeightType = WeightType.bf16 if policy.model.dtype == torch.bfloat16 else WeightType.fp32
        bf16 = held_in is WeightType.bf16 or use_bf16(config.precision, device)
        self.policy, self.device, self.batch_size = policy, device, benchmark.batch_size
        self.benchmark, self.seed = benchmark, config.seed
        self.ends = _ends(policy)
        model: Any = policy.model
        # Under autocast every token would cast the weights anew.
        self.model = model.to(device, torch.bfloat16 if bf16 else torch.float32).eval()
        self.facts = {
            "weights_sha256": weights,
            "ends": self.ends,
            "compute": "bf16" if bf16 else "fp32",
            **sampling(benchmark, config.seed),
        }

    def respond(self, prompts: Mapping[int, np.ndarray], store: Lines, console: ConsoleSink) -> dict[int, Response]:
        """Responses to prompts (row to token ids), those that `store` has taken from it; the others go there.

        Raises:
            DilError: when a prompt leaves the model too few positions.
        """
        keys = {row: self.key(ids) for row, ids in prompts.items()}
        missing = self.missing(prompts, store)
        if missing:
            self._check_room(max(len(prompts[row]) for row in missing))
            with console.phase("generating", len(missing)) as phase:
                for start in range(0, len(missing), self.batch_size):
                    batch = missing[start : start + self.batch_size]
                    for row, response in zip(batch, self._batch([prompts[row] for row in batch]), strict=True):
                        store.add(keys[row], {"row": row, **response.__dict__})
                    phase.advance(len(batch))
        return {row: Response(**{k: v for k, v in store[key].items() if k != "row"}) for row, key in keys.items()}

    def missing(self, prompts: Mapping[int, np.ndarray], store: Lines) -> list[int]:
        """Rows without a stored response, the longest prompts first, so that too little memory shows at once."""
        rows = [row for row, ids in prompts.items() if self.key(ids) not in store]
        return sorted(rows, key=lambda row: -len(prompts[row]))

    def key(self, prompt: np.ndarray) -> str:
        """The name of the response to these token ids."""
        return key_of(self.facts, prompt.tolist())

    @torch.no_grad()
    def _batch(self, prompts: Sequence[np.ndarray]) -> list[Response]:
        longest = max(map(len, prompts))
        ids_RT = np.full((len(prompts), longest), self.ends[0], dtype=np.int64)
        mask_RT = np.zeros((len(prompts), longest), dtype=np.int64)
        for row, prompt in enumerate(prompts):
            # On the left: the response follows the prompt at once.
            ids_RT[row, longest - len(prompt) :], mask_RT[row, longest - len(prompt) :] = prompt, 1
        self.model.generation_config = _plain_generation(self.benchmark.max_new_tokens, self.ends)
        processors: list[Any] = []
        if self.benchmark.temperature > 0:
            seeds = [_prompt_seed(self.seed, prompt) for prompt in prompts]
            processors.append(Draw(self.benchmark.temperature, self.benchmark.top_p, seeds))
        whole_RT = self.model.generate(
            input_ids=torch.from_numpy(ids_RT).to(self.device),
            attention_mask=torch.from_numpy(mask_RT).to(self.device),
            logits_processor=processors,
        )
        return [self._response(row) for row in whole_RT[:, longest:].tolist()]

    def _response(self, tokens: list[int]) -> Response:
        end = next((i for i, token in enumerate(tokens) if token in self.ends), None)
        written = tokens[:end]
        text = str(self.policy.tokenizer.decode(written, skip_special_tokens=True))
        return Response(text, len(written), end is not None)

    def _check_room(self, prompt: int) -> None:
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        needed = prompt + self.benchmark.max_new_tokens
        if positions is not None and needed > positions:
            raise DilError(
                f"a prompt of {prompt} tokens and a response of {self.benchmark.max_new_tokens} do not fit the model's "
                f"{positions} positions", "benchmark.max_new_tokens",
                f"benchmark.max_new_tokens={max(1, positions - prompt)}, or a smaller data.max_prompt_length",
            )  # fmt: skip


class Draw:
    """A logits processor after which the largest score is a draw from the softmax, at a temperature, within top_p.

    Gumbel noise is added to the scores, each row's from a generator of its own: a response then depends neither on the
    batch it was drawn in nor on the device.
    """

    def __init__(self, temperature: float, top_p: float, seeds: Sequence[Sequence[int]]) -> None:
        self.temperature, self.top_p = temperature, top_p
        self._random = [np.random.default_rng(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores_RV: Tensor) -> Tensor:
        """Scores (R, V) of the next token, to be compared; called once for each token."""
        scores_RV = scores_RV.float() / self.temperature
        if self.top_p < 1:
            scores_RV = _within(scores_RV, self.top_p)
        noise_RV = np.stack([random.gumbel(size=scores_RV.shape[-1]) for random in self._random])
        return scores_RV + torch.from_numpy(noise_RV).to(scores_RV)


def sampling(benchmark: WinrateConfig, seed: int) -> dict[str, Any]:
    """How responses are drawn; without the seed where nothing is."""
    drawn = {"top_p": benchmark.top_p, "seed": seed} if benchmark.temperature > 0 else {}
    return {"max_new_tokens": benchmark.max_new_tokens, "temperature": benchmark.temperature, **drawn}


def _within(scores_RV: Tensor, top_p: float) -> Tensor:
    """-inf for the tokens beyond the smallest set, the likeliest first, that holds `top_p`."""
    sorted_RV, order_RV = scores_RV.sort(dim=-1, descending=True)
    before_RV = sorted_RV.softmax(-1).cumsum(-1) - sorted_RV.softmax(-1)
    beyond_RV = torch.zeros_like(before_RV, dtype=torch.bool).scatter(-1, order_RV, before_RV >= top_p)
    return scores_RV.masked_fill(beyond_RV, -torch.inf)


def _prompt_seed(seed: int, prompt: np.ndarray) -> list[int]:
    return [NOISE_STREAM, seed, int(key_of(prompt.tolist()), 16)]


def _ends(policy: Policy) -> list[int]:
    """The tokens that end a response: the tokenizer's EOS, by which training ends one, and the model's own."""
    own = getattr(policy.model.generation_config, "eos_token_id", None)
    more = own if isinstance(own, list) else [] if own is None else [own]
    eos = policy.tokenizer.eos_token_id
    return list(dict.fromkeys([int(eos), *map(int, more)]))


def _plain_generation(max_new_tokens: int, ends: list[int]) -> GenerationConfig:
    """In place of the model's own, whose temperature, penalties and the like nobody asked for."""
    from transformers import GenerationConfig

    make: Any = GenerationConfig  # its constructor has no types
    config: GenerationConfig = make(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=ends, pad_token_id=ends[0]
    )
    return config
