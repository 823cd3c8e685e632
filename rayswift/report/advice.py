"""Advice: one sentence for each problem or bottleneck of a run, with the field to change."""

from collections.abc import Iterator
from dataclasses import dataclass

from rayswift.config.derived import rollout_of
from rayswift.config.rollout import RolloutConfig
from rayswift.config.schema import TrainingConfig
from rayswift.report.charts import show
from rayswift.report.curves import Curve
from rayswift.run.events import Event

_MUCH_WAITING = 0.1
_POOR_FILL = 0.75
_MANY_ROWS = 0.05
_FEW_TRAINED_TOKENS = 0.05
_EVALS_WITHOUT_GAIN = 3
_MANY_FAILURES = 2
# Online tasks: smallest shares that give an advice.
_TRAINER_WAITS = 0.3
_ENGINES_WAIT = 0.3
_MANY_EQUAL = 0.5
_MANY_CUT = 0.2


@dataclass(frozen=True)
class Advice:
    """A sentence; bad: the problem spoils the training, else it slows it down."""

    text: str
    bad: bool = False


def advise(
    config: TrainingConfig, curves: dict[str, Curve], counts: dict[str, int], events: list[Event], local: bool
) -> list[Advice]:
    """Advice on problems and on the current bottleneck, the worst first.

    counts: raw rows by outcome; local: Ray was started for this run.
    """
    found = [*_diverging(config, curves), *_failing(events), *_rows(config, counts)]
    rollout = rollout_of(config)
    if rollout is not None:
        return [*found, *_prompts(counts), *_rollouts(rollout, curves), *_rewards(rollout, curves)]
    return [
        *found,
        *_waiting(config, curves, local),
        *_filling(config, curves),
        *_training(curves),
        *_overfitting(curves),
    ]


def verdict(config: TrainingConfig, curves: dict[str, Curve]) -> str:
    """The sentence for a run without a bottleneck."""
    fill, wait = _recent(curves, "fill"), _recent(curves, "data_wait")
    if rollout_of(config) is not None and wait is not None:
        return f"No bottleneck: the trainer waits for rollouts {show(wait, '%')} of the time."
    if fill is None or wait is None:
        return "No step has been logged yet."
    return f"No bottleneck: workers wait for data {show(wait, '%')} of the time, rows are {show(fill, '%')} full."


def _diverging(config: TrainingConfig, curves: dict[str, Curve]) -> Iterator[Advice]:
    for name in ("loss", "grad_norm", "eval_loss"):
        curve = curves.get(name)
        if curve and curve.first_broken is not None:
            times = "once" if curve.broken == 1 else f"{curve.broken:,} times"
            yield Advice(
                f"The {name.replace('_', ' ')} was NaN or infinite {times}, first at step {curve.first_broken:,}: "
                f"lower train.learning_rate (now {show(config.train.learning_rate)}), warm up longer, or compute in "
                f"another model.dtype (now {config.model.dtype}).",
                bad=True,
            )
            return


def _failing(events: list[Event]) -> Iterator[Advice]:
    failures = [event for event in events if event.kind == "failure"]
    if len(failures) >= _MANY_FAILURES:
        yield Advice(
            f"Workers were lost {len(failures)} times; the last error: {failures[-1].text or 'unknown'}. Steps "
            "since the last checkpoint are trained again: find the cause in logs/, or save more often.",
            bad=True,
        )


def _rows(config: TrainingConfig, counts: dict[str, int]) -> Iterator[Advice]:
    seen = sum(counts.values())
    bad = sum(count for outcome, count in counts.items() if outcome.startswith("quarantined"))
    if bad:
        yield Advice(
            f"{bad:,} of {seen:,} rows ({show(bad / seen, '%')}) are bad and were left out: data/quarantine.jsonl "
            "names each with its reason.",
            bad=bad > config.data.max_bad_fraction * seen,
        )
    long = sum(count for outcome, count in counts.items() if "data.max_length" in outcome)
    if long > _MANY_ROWS * seen:
        drops = config.data.truncation == "drop"
        done, instead = ("left out", " or set data.truncation to cut them instead") if drops else ("cut", "")
        yield Advice(
            f"{show(long / seen, '%')} of the rows are longer than data.max_length = {config.data.max_length:,} "
            f"and were {done}: raise it{instead}."
        )


def _waiting(config: TrainingConfig, curves: dict[str, Curve], local: bool) -> Iterator[Advice]:
    wait = _recent(curves, "data_wait")
    if wait is not None and wait > _MUCH_WAITING:
        what = "give the cluster more CPUs beside those of the workers"
        if local:
            what = f"raise cluster.num_data_cpus (now {config.cluster.num_data_cpus}) if the machine has idle cores"
        yield Advice(f"Workers wait for data {show(wait, '%')} of the time: {what}.")


def _prompts(counts: dict[str, int]) -> Iterator[Advice]:
    """Prompts that were not trained: failed completions or rewards, or too long."""
    seen, failed = sum(counts.values()), {k: v for k, v in counts.items() if k.startswith("failed")}
    lost = sum(failed.values())
    if lost:
        most = max(failed, key=lambda outcome: failed[outcome])
        yield Advice(
            f"{lost:,} of {seen:,} prompts ({show(lost / seen, '%')}) failed, most often for this reason: "
            f"{most.partition(': ')[2]}; completions/failed.jsonl has those without a reward.",
            bad=lost > _MANY_ROWS * seen,
        )
    long = sum(count for outcome, count in counts.items() if "rollout.max_prompt_length" in outcome)
    if long > _MANY_ROWS * seen:
        was_cut = any(outcome.startswith("trained") and "rollout.max_prompt_length" in outcome for outcome in counts)
        done = "were cut on the left: raise it" if was_cut else "were left out: raise it or set data.truncation left"
        yield Advice(
            f"{show(long / seen, '%')} of the prompts are longer than rollout.max_prompt_length (or, without it, "
            f"what data.max_length leaves) and {done}."
        )


def _rollouts(rollout: RolloutConfig, curves: dict[str, Curve]) -> Iterator[Advice]:
    """Whether trainer and engines wait for each other."""
    wait, idle = _recent(curves, "data_wait") or 0.0, _recent(curves, "engines_idle") or 0.0
    engines = rollout.num_engines
    if wait > _TRAINER_WAITS and idle > _ENGINES_WAIT:  # they take turns
        yield Advice(
            f"The trainer waits {show(wait, '%')} of the time and the engines {show(idle, '%')}, for each "
            f"other: raise rollout.max_staleness (now {rollout.max_staleness}), so that both work at once."
        )
    elif wait > _TRAINER_WAITS:
        now = f"{show(_recent(curves, 'engines'))}, of {engines}" if isinstance(engines, list) else show(engines)
        sooner = "" if rollout.max_staleness else ", or set rollout.max_staleness 1 to train while they are sampled"
        what = f"raise rollout.num_engines (now {now}){sooner}"
        yield Advice(f"The trainer waits {show(wait, '%')} of the time for rollouts: {what}.")
    elif idle > _ENGINES_WAIT:
        fewer = "lower rollout.num_engines" if engines != 1 else "give the trainer more of the machine (cluster)"
        yield Advice(f"The engines have no work {show(idle, '%')} of the time: the trainer is slower; {fewer}.")


def _rewards(rollout: RolloutConfig, curves: dict[str, Curve]) -> Iterator[Advice]:
    """Completions without a learning signal."""
    cut, equal = _recent(curves, "completions/clipped_ratio"), _recent(curves, "frac_reward_zero_std")
    if cut is not None and cut > _MANY_CUT:
        yield Advice(
            f"{show(cut, '%')} of the completions are cut off at rollout.max_completion_length = "
            f"{rollout.max_completion_length:,}: raise it, or set train.mask_truncated_completions."
        )
    if equal is not None and equal > _MANY_EQUAL and rollout.num_generations > 1 and not rollout.dynamic_sampling:
        yield Advice(
            f"For {show(equal, '%')} of the prompts all completions have the same reward and train nothing: "
            f"raise rollout.num_generations (now {rollout.num_generations}), set rollout.dynamic_sampling, or take "
            "prompts of another difficulty."
        )


def _filling(config: TrainingConfig, curves: dict[str, Curve]) -> Iterator[Advice]:
    fill = _recent(curves, "fill")
    if fill is None or fill >= _POOR_FILL:
        return
    what = "set data.packing true, or lower data.max_length"
    if config.data.packing:
        what = (
            f"pack more rows together with a larger data.window_rows (now {show(config.data.window_rows)}), or choose "
            f"a data.max_length (now {config.data.max_length:,}) that fits the rows better"
        )
    yield Advice(f"Rows are only {show(fill, '%')} full; the rest is padding: {what}.")


def _training(curves: dict[str, Curve]) -> Iterator[Advice]:
    tokens, trained = _recent(curves, "tokens_per_s"), _recent(curves, "trained_tokens_per_s")
    if tokens and trained is not None and trained / tokens < _FEW_TRAINED_TOKENS:
        yield Advice(
            f"Only {show(trained / tokens, '%')} of the tokens are trained; the others are prompts. If this is "
            "not intended, change data.loss_on."
        )


def _overfitting(curves: dict[str, Curve]) -> Iterator[Advice]:
    curve = curves.get("eval_loss")
    if curve is None or not curve.buckets:
        return
    best = min(curve.buckets, key=lambda bucket: bucket.low)
    if sum(bucket.step > best.step for bucket in curve.buckets) >= _EVALS_WITHOUT_GAIN:
        yield Advice(
            f"The evaluation loss was best at step {best.step:,} ({show(best.low)}) and has not improved since: stop "
            "earlier (train.early_stopping_patience), or keep the best with train.load_best_model_at_end."
        )


def _recent(curves: dict[str, Curve], name: str) -> float | None:
    return curves[name].recent_mean if name in curves else None
