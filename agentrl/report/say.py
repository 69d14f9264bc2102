"""What the numbers say, in words: the same in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Iterator

from agentrl.metrics.console import duration
from agentrl.metrics.trend import Trend
from agentrl.report.gather import Gathered, Seen

SLOW_LAG = 0.1
"""Seconds of the loop's 99th percentile from which episodes are held up by it."""


def seconds(value: float) -> str:
    """Seconds in three digits: `3.1 ms`, `0.42 s`, `12.3 s`, then as `duration`."""
    if value < 0.1:
        return f"{value * 1000:.3g} ms"
    return f"{value:.3g} s" if value < 100 else duration(value)


def size(count: float) -> str:
    """Bytes as people say them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.3g} {unit}" if count < 1000 else f"{count:.0f} {unit}"
        count /= 1000
    raise AssertionError


def number(value: float) -> str:
    """A count with commas, or four digits of what is none."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"


def of_run(gathered: Gathered) -> str:
    """How far the run has come."""
    described, steps = gathered.described, gathered.steps
    name = described["experiment"]["workflow"]["name"] if described else gathered.folder.name
    wanted = f" of {described['experiment']['steps']}" if described else ""
    done = f"batch {steps[-1].step}{wanted}" if steps else "no batch learned yet"
    again = len(gathered.sessions) - 1
    resumed = f", resumed {again} time{'s' if again > 1 else ''}" if again > 0 else ""
    running = gathered.episodes.statuses["running"]
    return f"{name}: {done}{resumed}" + (f", {number(running)} episodes running or suspended" if running else "")


def of_learning(gathered: Gathered) -> str:
    """What became of success and reward."""
    parts: list[str] = []
    for name, metric in (("held-out success", "held_out/success"), ("sampled reward", "reward/mean")):
        series = [point for point in gathered.series(metric) if point[1] == point[1]]
        if series:
            (first, before), (last, after) = series[0], series[-1]
            change = f"{before:.3f} at batch {first:.0f}, {after:.3f} at batch {last:.0f}"
            parts.append(f"{name} {change if last > first else f'{after:.3f} at batch {last:.0f}'}")
    return "; ".join(parts) or "nothing was measured yet"


def of_time(gathered: Gathered) -> str:
    """Which stage took most."""
    spent = gathered.stage_seconds()
    if not spent:
        return "no step was timed yet"
    total = sum(spent.values())
    stage = max(spent, key=lambda name: spent[name])
    rest = [name for name in sorted(spent, key=lambda name: -spent[name])[1:3] if spent[name] > 0.05 * total]
    then = "".join(f", then {name} {spent[name] / total:.0%}" for name in rest)
    return f"most of the time went into {stage}: {spent[stage] / total:.0%} of {seconds(total)}{then}"


def of_stragglers(gathered: Gathered) -> str:
    """How much longer the slowest took than most."""
    ended = gathered.episodes.ended()
    if not ended:
        return "no episode has ended yet"
    slowest, median = ended[0], ended[len(ended) // 2].seconds
    times = f", {slowest.seconds / median:.1f} times the median of {seconds(median)}" if median > 0 else ""
    return f"the slowest episode is {slowest.id}: {seconds(slowest.seconds)}{times}; {where_it_went(slowest)}"


def where_it_went(episode: Seen) -> str:
    """Whether the model or the tools took an episode's time."""
    parts = {"the model": episode.model_seconds, "tools": episode.tool_seconds}
    return ", ".join(f"{seconds(value)} of it {name}" for name, value in parts.items())


def of_lag(gathered: Gathered) -> str:
    """Whether the event loop keeps up."""
    lags = gathered.lags()
    if not lags:
        return "the loop's lag was not measured in this run"
    worst = max(lags, key=lambda lag: lag[3])
    slow = sum(1 for lag in lags if lag[2] > SLOW_LAG)
    held = f"in {slow} of {len(lags)} steps its 99th percentile is above {seconds(SLOW_LAG)}" if slow else "it keeps up"
    return f"the event loop was at most {seconds(worst[3])} late (batch {worst[0]:.0f}); {held}"


def of_drift(gathered: Gathered) -> tuple[bool, str]:
    """Whether the engine always saw the tokens on record; and in words."""
    drifted = int(gathered.total("drift")) if gathered.steps else gathered.episodes.untrained.total()
    turns = sum(episode.turns for episode in gathered.episodes.seen)
    if not turns:
        return True, "no turn was sampled yet"
    if drifted:
        return False, f"drift: in {number(drifted)} sampled turns the engine saw other tokens than the record holds"
    return True, f"no drift: the engine saw the recorded tokens in every one of {number(turns)} turns"


def of_gap(gathered: Gathered) -> Iterator[str]:
    """A sentence for each policy: how far its learner's log-probs are from the engine's, and whether that grows."""
    for policy in gathered.policies("gap/mean"):
        means = [value for _, value in gathered.series(f"{policy}gap/mean") if value == value]
        most = max(gathered.series(f"{policy}gap/max"), key=lambda point: point[1] if point[1] == point[1] else -1.0)
        if means:
            name = f" of {policy.rstrip('/')}" if policy else ""
            gap = f"the gap between engine and learner{name} is {sum(means) / len(means):.2g} on average"
            grows = trend(Trend(gathered.series(f"{policy}gap/mean")))
            yield f"{gap}, at most {most[1]:.2g} (batch {most[0]:.0f}); its mean {grows}"


def trend(line: Trend) -> str:
    """Whether a number grows."""
    if not line.known:
        return "has too few steps for a trend"
    if line.flat:
        return f"is flat ({line.slope:+.1g} a step, ± {line.error:.1g})"
    return f"{'grows' if line.slope > 0 else 'shrinks'} by {abs(line.slope):.2g} a step (± {line.error:.1g})"


def of_staleness(gathered: Gathered) -> str:
    """How old the weights were that sampled what was trained."""
    policies = gathered.policies("staleness/mean")
    means = [value for policy in policies for _, value in gathered.series(f"{policy}staleness/mean") if value == value]
    if not means:
        return "the age of trained tokens was not measured in this run"
    most = max(value for policy in policies for _, value in gathered.series(f"{policy}staleness/max") if value == value)
    dropped = gathered.total("stale/dropped")
    refused = f"; {number(dropped)} group{'s were' if dropped != 1 else ' was'} refused as too old" if dropped else ""
    if not most:
        return f"every trained token was drawn by the weights that learned from it{refused}"
    mean = sum(means) / len(means)
    return f"trained tokens were drawn {mean:.2g} learner steps before on average, at most {number(most)}{refused}"


def of_tokens(gathered: Gathered) -> str:
    """What was sampled and what the cache saved."""
    paid = gathered.episodes.paid
    if not paid.model_calls:
        return "no tokens yet"
    shares = f"{number(paid.prompt_tokens)} of prompts, {paid.cached_tokens / max(1, paid.prompt_tokens):.0%} of them cached"
    besides = "".join(
        f", {number(count)} {what}" for what, count in (("lost", paid.lost_tokens), ("probed", paid.probe_tokens)) if count
    )
    return f"{number(paid.sampled_tokens)} tokens sampled; {shares}{besides}"


def of_failures(gathered: Gathered) -> Iterator[str]:
    """A sentence for each cause by which episodes were lost."""
    for lost in sorted(gathered.episodes.lost.values(), key=lambda each: -each.count):
        yield f"{number(lost.count)} lost ({lost.cause}): {lost.id}: {lost.message}"


def of_tools(gathered: Gathered) -> Iterator[str]:
    """A sentence for each tool."""
    for name, use in sorted(gathered.episodes.tools.items(), key=lambda item: -sum(item[1].seconds)):
        mean = sum(use.seconds) / len(use.seconds)
        calls = f"{number(len(use.seconds))} calls, {seconds(mean)} each, at most {seconds(max(use.seconds))}"
        yield f"{name}: {calls}, {use.errors:.1%} failed"
