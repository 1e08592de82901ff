"""From a config to everything the loop needs; all wrong input is found here, before a folder is made."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dil_cli.config.schema import TrainConfig
from dil_cli.data.join import join_splits
from dil_cli.data.load import PairSplits
from dil_cli.data.tokenise import TokenisedSplit, flip_labels, tokenise_splits
from dil_cli.distributed.shard import shard
from dil_cli.distributed.world import ALONE, World
from dil_cli.dynamics.measure import Compute
from dil_cli.models.load import Policy
from dil_cli.models.logps import PASSES, let_pass
from dil_cli.models.trained import load_trained
from dil_cli.tracking.console import ConsoleSink
from dil_cli.train.optimiser import check_available
from dil_cli.train.ready import ready_policy


@dataclass(frozen=True)
class Prepared:
    """A policy on its device, both splits in its tokens, and how to compute with them; `path` says that in a line.

    `pairs` are the splits as text: what was loaded, joined where `data.join_to` asks for it.
    """

    policy: Policy
    pairs: PairSplits
    train: TokenisedSplit
    heldout: TokenisedSplit
    compute: Compute
    path: str

    def notices(self) -> list[str]:
        """What the user should know of loading and tokenising, a sentence a line."""
        lines = [*self.policy.notices, self.path]
        for name, split in (("train", self.train), ("held out", self.heldout)):
            lines += [f"{name}: {line}" for line in split.counts.describe()]
            lines += [split.notice] if split.notice else []
        return lines


def prepare(
    config: TrainConfig, pairs: PairSplits, console: ConsoleSink, keep: bool = True, world: World = ALONE
) -> Prepared:
    """Load the policy and tokenise the pairs; without `keep` the token cache is read and left as it is.

    Raises:
        DilError: for a device, optimiser, model or data set that cannot be trained with.
        RunFailed: when the processes of `world` come to compute in different ways.
    """
    check_available(config.optim)
    load = partial(load_trained, peft=config.peft, seed=config.seed)
    ready = ready_policy(
        config.model, config.data, config.device, config.precision, config.optim.token_budget, console, load, world
    )
    precision = "bf16" if ready.compute.bf16 else "fp32"
    attention = ready.policy.model.config._attn_implementation
    world.require_same("how rows are computed", f"{ready.compute.layout.value}, {attention}, {precision}")
    tokenizer = ready.policy.tokenizer
    if config.data.join_to is not None:
        with console.phase("joining pairs", None):
            pairs = join_splits(pairs, tokenizer, config.data, config.seed)
    if world.sharded:
        let_pass(ready.policy.model)
        shard(ready.policy.model, config.distributed, world, ready.compute.device, precision == "bf16", PASSES)
    cache = Path(config.output) / "cache" / "tokens"
    with console.phase("tokenising", None), world.main_first():
        train, heldout = tokenise_splits([pairs.train, pairs.heldout], tokenizer, config.data, cache, keep)
    return Prepared(ready.policy, pairs, flip_labels(train, pairs.flipped), heldout, ready.compute, ready.path)
