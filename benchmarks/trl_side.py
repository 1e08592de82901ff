"""TRL's side: the real DPOTrainer, its own `train()`, its own collator, optimiser and clipping.

Left as they are: the dataset's token ids, which are given (tokenising is not what is compared). Switched off: logging
but for the first step, evaluation, saving. `Settings` is what a user can set, and one line a user would have to patch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from benchmarks.pairs import Pair


@dataclass(frozen=True)
class Settings:
    """How the trainer is set up.

    Args:
        precompute: the reference once before training, not in every step.
        checkpointing: TRL's default is on.
        micro_batch: pairs in one forward pass, None for the whole batch; the gradient is the same.
        matmul: `torch.set_float32_matmul_precision`; "medium" means oneDNN on a CPU.
        compact_head: the head only at tokens that are scored. TRL does so on a GPU, and on a CPU at every position; no
            option changes that, this patches the one function it asks.
        liger: Liger's layer kernels.
    """

    precompute: bool = True
    checkpointing: bool = True
    micro_batch: int | None = None
    matmul: str = "highest"
    compact_head: bool = False
    liger: bool = False


class Trl:
    """A DPOTrainer over given pairs in a given order of batches."""

    def __init__(
        self,
        model: PreTrainedModel,
        pairs: Sequence[Pair],
        batches: Sequence[Sequence[int]],
        settings: Settings,
        *,
        steps: int,
        folder: Path,
        bf16: bool = False,
        lr: float = 1e-5,
        beta: float = 0.1,
        clip: float = 1.0,
    ) -> None:
        import torch
        from trl import DPOConfig

        torch.set_float32_matmul_precision(settings.matmul)
        if settings.compact_head:
            _compact_the_head()
        batch = len(batches[0])
        micro = settings.micro_batch or batch
        if batch % micro:
            raise ValueError(f"micro-batches of {micro} do not divide a batch of {batch}")
        on_cpu = model.device.type == "cpu"
        config = DPOConfig(
            output_dir=str(folder), beta=beta, learning_rate=lr, lr_scheduler_type="constant", max_grad_norm=clip,
            per_device_train_batch_size=micro, gradient_accumulation_steps=batch // micro, max_steps=steps,
            precompute_ref_log_probs=settings.precompute, gradient_checkpointing=settings.checkpointing,
            bf16=bf16, use_cpu=on_cpu, dataloader_pin_memory=not on_cpu, max_length=None,
            use_liger_kernel=settings.liger, train_sampling_strategy="sequential", logging_strategy="no",
            save_strategy="no", report_to="none", disable_tqdm=True, seed=0,
        )  # fmt: skip
        self.trainer = _trainer(model, config, [pairs[index] for group in batches for index in group])

    @property
    def reference_seconds(self) -> float:
        """Time of the reference pass over all pairs, 0 without one."""
        return float(self.trainer.reference_seconds)

    def run(
        self, before_first: Callable[[], None], after_step: Callable[[int, float | None, float | None], bool]
    ) -> None:
        """Train.

        Args:
            before_first: called when everything is ready for the first step.
            after_step: called with the step (from 1), and the loss and the gradient's norm of the first; false ends it.
        """
        from transformers import PrinterCallback

        self.trainer.remove_callback(PrinterCallback)
        self.trainer.add_callback(_callback(before_first, after_step))
        self.trainer.train()


def _trainer(model: PreTrainedModel, config: Any, pairs: Sequence[Pair]) -> Any:
    import copy

    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast
    from trl import DPOTrainer

    class GivenTokens(DPOTrainer):  # type: ignore[misc]
        """Takes token ids as they come, and keeps the time of its reference pass."""

        reference_seconds = 0.0

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            dataset = super()._precompute_ref_logps(*args, **kwargs)
            self.reference_seconds = time.perf_counter() - started
            return dataset

    rows = [{"prompt_ids": p.prompt.tolist(), "chosen_ids": p.chosen.tolist(), "rejected_ids": p.rejected.tolist()}
            for p in pairs]  # fmt: skip
    reference = None if config.precompute_ref_log_probs else copy.deepcopy(model)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_any_tokenizer(), eos_token="<|end|>", pad_token="<|end|>")
    return GivenTokens(
        model=model, ref_model=reference, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )


def _any_tokenizer() -> Any:
    """TRL asks for a tokenizer; of this one it uses the padding id, 0."""
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.WordLevel({"<|end|>": 0}, unk_token="<|end|>"))
    tokenizer.add_special_tokens(["<|end|>"])
    return tokenizer


def _callback(before_first: Callable[[], None], after_step: Callable[[int, float | None, float | None], bool]) -> Any:
    from transformers import TrainerCallback

    class Steps(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 0:
                before_first()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            # The first step is logged, for its loss and norm; what follows from there is heard in on_log,
            # so that the logging is over before the next step's clock starts.
            if state.global_step == 1:
                control.should_log = True
            elif not after_step(state.global_step, None, None):
                control.should_training_stop = True

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            first = state.global_step == 1 and "grad_norm" in logs
            if first and not after_step(1, float(logs["loss"]), float(logs["grad_norm"])):
                control.should_training_stop = True

    return Steps()


def _compact_the_head() -> None:
    """`compact = _use_triton(device)` in TRL's fused head: say yes there, and only there."""
    import trl.trainer.utils

    trl.trainer.utils._use_triton = lambda device: True
