"""How often a judge prefers a checkpoint's responses to an opponent's.

P prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dil_cli.config.judging import OpenAIJudge, Opponent, WinrateConfig
from dil_cli.config.schema import EvalConfig, ModelConfig
from dil_cli.errors import DilError
from dil_cli.evaluate.answers import Answers, answer, token_counts
from dil_cli.evaluate.chat_judge import ChatJudge
from dil_cli.evaluate.drift import check_drift, check_start
from dil_cli.evaluate.generate import sampling
from dil_cli.evaluate.judge import Judge, Match, Outcome, choose_prompt
from dil_cli.evaluate.likelihood import pairs_seed
from dil_cli.evaluate.local_judge import ScoreJudge
from dil_cli.evaluate.naming import winrate_name
from dil_cli.evaluate.scorers import check_there, judge_paths, load_scorer
from dil_cli.evaluate.store import Lines, open_lines
from dil_cli.evaluate.target import Target, data_config, find_targets, model_config, start_config
from dil_cli.report.intervals import bootstrap, sign_flip_p, wilson
from dil_cli.train.ready import is_local, stay_offline_if_local

if TYPE_CHECKING:
    from dil_cli.dynamics.statistics import Float64
    from dil_cli.tracking.console import ConsoleSink
    from dil_cli.types import PreferencePair


class Winrate:
    """The measurement of one or more checkpoints by one judge."""

    def __init__(self, config: EvalConfig, console: ConsoleSink) -> None:
        self.config, self.console = config, console
        self.benchmark: WinrateConfig = config.benchmark

    def evaluate(self, target: Target, against: Target | None = None) -> dict[str, Any]:
        """The record of one checkpoint; responses and verdicts go to `eval/winrate/` beside it, whatever its name.

        Args:
            target: the checkpoint.
            against: its opponent, if that is a checkpoint named by the user.

        Raises:
            DilError: when a model, the data or the judge cannot be had.
        """
        config = self.config
        data, seed = data_config(config, target), pairs_seed(config, target)
        model = model_config(config, target)
        rival = self._rival(target, model, against)
        check_there(config.judge)
        rivals = [] if rival is None else [rival[1].path]
        models = [model.path, *rivals, *judge_paths(config.judge)]
        stay_offline_if_local(next((path for path in models if not is_local(path)), model.path), data)

        def before(pairs: Sequence[PreferencePair]) -> None:
            if isinstance(config.judge, OpenAIJudge):
                self._asked(pairs).check()  # hours of generation would be for nothing without it

        ours = answer(
            config, target, model, data, seed, self.console, check=lambda facts: check_drift(config, target, facts),
            before=before,
        )  # fmt: skip
        theirs = None
        if rival is not None:

            def same_start(facts: dict[str, Any]) -> None:
                if against is None:
                    check_start(config, target, str(facts["path"]), facts["weights_sha256"])

            theirs = answer(config, *rival, data, seed, self.console, pairs=ours.pairs, check=same_start)
        matches = self._matches(ours, theirs)
        judge: Judge = (
            self._asked(ours.pairs)
            if isinstance(config.judge, OpenAIJudge)
            else ScoreJudge(config.judge, load_scorer(config, data, self.console))
        )
        with open_lines(target.folder / "eval" / "winrate" / "verdicts.jsonl") as store:
            outcomes = self._judged(judge, matches, store)
        return self._record(target, against, ours, theirs, judge, matches, outcomes)

    def _asked(self, pairs: Sequence[PreferencePair]) -> ChatJudge:
        judge: OpenAIJudge = self.config.judge
        return ChatJudge(judge, choose_prompt(judge.prompt, [pair.prompt for pair in pairs]))

    def _judged(self, judge: Judge, matches: Sequence[Match], store: Lines) -> list[Outcome]:
        missing = judge.missing(matches, store)
        if not missing:
            self.console.note(f"every verdict on {len(matches)} prompts is stored, the judge is not asked")
        return judge.outcomes(matches, store, self.console)

    def _rival(self, target: Target, model: ModelConfig, against: Target | None) -> tuple[Target, ModelConfig] | None:
        """The checkpoint that gives the other responses; None where the data have them."""
        config = self.config
        if against is not None:
            theirs = model_config(config, against) if against.run is not None else replace(model, path=against.path)
            return against, theirs
        if self.benchmark.opponent is not Opponent.reference:
            return None
        start = start_config(config, target)
        if start is None:
            raise DilError(
                f"{target.name} belongs to no run, so nothing says which model it started from",
                "benchmark.opponent=reference", "reference=org/model, or against=",
            )  # fmt: skip
        (found,) = find_targets(config, start.path)
        return found, start

    def _matches(self, ours: Answers, theirs: Answers | None) -> list[Match]:
        """The responses side by side, both with the space before them that the data's have."""
        matches = []
        for pair in ours.pairs:
            if theirs is None:
                other = pair.rejected if self.benchmark.opponent is Opponent.rejected else pair.chosen
            elif pair.row in theirs.responses:
                other = theirs.responses[pair.row].text
            else:
                continue  # its template does not take these turns
            space = pair.chosen[: len(pair.chosen) - len(pair.chosen.lstrip())]
            policy, opponent = (space + text.strip() for text in (ours.responses[pair.row].text, other or ""))
            matches.append(Match(pair.row, pair.prompt, policy, opponent))
        return matches

    def _record(
        self,
        target: Target,
        against: Target | None,
        ours: Answers,
        theirs: Answers | None,
        judge: Judge,
        matches: Sequence[Match],
        outcomes: Sequence[Outcome],
    ) -> dict[str, Any]:
        lengths = [token_counts(ours.tokenizer, [getattr(m, side) for m in matches]) for side in ("policy", "opponent")]
        metrics, intervals, more = summarise(outcomes, *lengths)
        cut = [not ours.responses[match.row].ended for match in matches]
        more["same"] = sum(match.same for match in matches)
        more["cut_policy"] = float(np.mean(cut))
        if theirs is not None:
            more["cut_opponent"] = float(np.mean([not theirs.responses[match.row].ended for match in matches]))
        kind = self.benchmark.opponent
        data_side = Opponent.chosen if kind is Opponent.auto else kind
        return {
            "benchmark": winrate_name(self.config, target, against),
            "checkpoint": {"name": target.name, "loss": target.loss, **ours.facts},
            "opponent": {"name": data_side.value} if theirs is None else {"name": theirs.name, **theirs.facts},
            "judge": judge.facts,
            "sampling": sampling(self.benchmark, self.config.seed),
            "pairs": len(matches),
            "pairs_sha256": ours.pairs_sha256,
            "metrics": metrics,
            "intervals": intervals,
            "more": more,
            "accepted": list(self.config.accept),
        }


def summarise(
    outcomes: Sequence[Outcome], policy_P: Float64, opponent_P: Float64
) -> tuple[dict[str, float], dict[str, list[float]], dict[str, Any]]:
    """Metrics, their 95 % intervals, and what else there is to say, of P outcomes and the responses' tokens.

    A prompt without a verdict is left out of `win_rate` and `tie_rate` and counted in `unparsed`. Shares have Wilson's
    interval over the prompts, lengths the bootstrap's.
    """
    values = np.array([np.nan if outcome.value is None else outcome.value for outcome in outcomes])
    judged = values[~np.isnan(values)]
    shares = {"unparsed": (float(np.isnan(values).mean()), len(values))}
    if len(judged):
        shares |= {
            "win_rate": (float(judged.mean()), len(judged)),
            "tie_rate": (float((judged == 0.5).mean()), len(judged)),
        }
    found = {name: wilson(*share) for name, share in shares.items()}
    for name, tokens_P in (("length_policy", policy_P), ("length_opponent", opponent_P)):
        found[name] = bootstrap(tokens_P[:, None], lambda mean: mean[..., 0])
    order = ("win_rate", "tie_rate", "unparsed", "length_policy", "length_opponent")
    found = {name: found[name] for name in order if name in found}
    intervals = {
        name: [interval.low, interval.high]
        for name, interval in found.items()
        if interval.low is not None and interval.high is not None
    }
    more: dict[str, Any] = {
        "wins": int((judged > 0.5).sum()),
        "ties": int((judged == 0.5).sum()),
        "losses": int((judged < 0.5).sum()),
        "unparsed": int(np.isnan(values).sum()),
        "cut_replies": sum(outcome.cut for outcome in outcomes),
        "policy_longer": float((policy_P > opponent_P).mean()),
    }
    first = [won for outcome in outcomes for won in outcome.first_won]
    both = [outcome.first_won for outcome in outcomes if len(outcome.first_won) == 2]
    unread = next((outcome.unread for outcome in outcomes if outcome.value is None), None)
    if unread is not None:
        more["first_unread"] = unread
    more["contradicted"] = sum(one == other for one, other in both)
    if first:
        more["first_shown_wins"] = float(np.mean(first))
    if len(judged):
        more["p"] = sign_flip_p(judged - 0.5)
    for name, longer in (
        ("win_rate_when_longer", policy_P > opponent_P),
        ("win_rate_when_shorter", policy_P < opponent_P),
    ):
        part = values[longer & ~np.isnan(values)]
        if len(part):
            more[name] = float(part.mean())
    return {name: interval.mean for name, interval in found.items()}, intervals, more
