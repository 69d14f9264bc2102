"""The sections of the page, top to bottom."""

from __future__ import annotations

import json
import math
import shlex
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from agentrl.report import say
from agentrl.report.gather import Gathered, Seen
from agentrl.report.svg import WIDE, Line, bar_chart, line_chart, share_bar
from agentrl.view.html.markup import Markup, tag

_PARITY = {
    "log-probs: learner minus engine": ("gap/mean", "gap/max"),
    "learner steps since a trained token was drawn": ("staleness/mean", "staleness/max"),
}
_PARITY_NOTE = (
    "On policy the gap is the rounding of two programs, and stays where it is. Where trained tokens are some steps old it "
    "holds what was learned since, too."
)
SLOWEST = 12
"""Episodes in the table of stragglers."""
_SECOND_POLICIES = ("loss", "entropy", "kl/k1", "kl/k3", "clip/fraction", "grad_norm", "ratio/max", "lr")
"""What a learner tells of each step; with several policies each name stands behind its policy's."""


def tiles(gathered: Gathered) -> Markup:
    """The few numbers that one looks for first."""
    spent = gathered.stage_seconds()
    total = sum(spent.values())
    held_out = [value for _, value in gathered.series("held_out/success") if value == value]
    rates = [value for _, value in gathered.series("tokens_per_second") if value == value]
    sound, _ = say.of_drift(gathered)
    lags = gathered.lags()
    lost = sum(each.count for each in gathered.episodes.lost.values())
    shown: list[tuple[str, str, str]] = [
        ("batches", say.number(gathered.steps[-1].step) if gathered.steps else "none", ""),
        ("held-out success", f"{held_out[-1]:.1%}" if held_out else "-", ""),
        ("episodes", say.number(len(gathered.episodes.seen)), ""),
        ("lost", say.number(lost), "bad" if lost else "good"),
        ("time in steps", say.seconds(total) if total else "-", ""),
        ("tokens/s", say.number(round(sum(rates) / len(rates))) if rates else "-", ""),
        ("worst p99 lag", say.seconds(max(lag[2] for lag in lags)) if lags else "-", ""),
        ("drift", "none" if sound else "yes", "good" if sound else "bad"),
    ]
    return tag("div", *(tag("div", tag("span", name, class_="dim"), tag("b", value, class_=kind or None))
                        for name, value, kind in shown), class_="tiles")  # fmt: skip


def what_it_is(gathered: Gathered) -> list[Markup]:
    """Experiment, settings, lineage; and each call with its versions."""
    facts: list[tuple[str, str]] = [("folder", str(gathered.folder))]
    described = gathered.described
    experiment = described["experiment"] if described else None
    if experiment:
        facts += [
            ("target", described["target"] or "started from Python"),
            ("settings", ", ".join(described["settings"]) or "none"),
            ("lineage", described["lineage"]),
            ("policies", _policies(experiment["policies"])),
            ("credit", _type(experiment["credit"])),
            ("objective", _type(experiment["objective"])),
            ("rollout", f"{_type(experiment['rollout'])}, {experiment['tasks_per_step']} tasks a step"),
            ("max_staleness", str(experiment["max_staleness"])),
        ]
    else:
        facts.append(("experiment", "there is no experiment.json"))
    for session in gathered.sessions:
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(session["began"])) if "began" in session else "unknown time"
        versions = [f"{name} {value}" for name, value in session.items() if name not in ("session", "began")]
        facts.append((f"session {session['session']}", ", ".join([began, *versions])))
    if not gathered.sessions:
        facts.append(("sessions", "there is no metrics.jsonl: the run ended before its first batch, or wrote none"))
    parts = [tag("dl", *(part for name, text in facts for part in (tag("dt", name), tag("dd", text))))]
    if experiment:
        whole = json.dumps(experiment, indent=1, ensure_ascii=False)
        parts.append(tag("details", tag("summary", "experiment.json"), tag("pre", whole)))
    return parts


def learning(gathered: Gathered) -> list[Markup]:
    """Curves of success, reward and what the learner says."""
    panels = [
        _panel("success and reward", line_chart([
            Line("sampled reward", gathered.series("reward/mean")),
            Line("held-out success", gathered.series("held_out/success"), dots=True),
        ])),
        _panel("turns and tool calls of an episode", line_chart([
            Line("turns", gathered.series("turns_per_episode")), Line("tool calls", gathered.series("tool_calls_per_episode")),
        ], least=0.0)),
    ]  # fmt: skip
    names = list(dict.fromkeys(name for step in gathered.steps for name in step.values))
    for metric in _SECOND_POLICIES:
        of_policies = [name for name in names if name == metric or name.endswith(f"/{metric}")]
        if of_policies:
            lines = [Line(name.removesuffix(f"/{metric}"), gathered.series(name)) for name in of_policies]
            panels.append(_panel(metric, line_chart(lines)))
    own = [Line(name.removeprefix("metric/"), gathered.series(name)) for name in names if name.startswith("metric/")]
    if own:
        panels.append(_panel("metrics of the workflow", line_chart(own)))
    return [_sentence(say.of_learning(gathered)), _panels(panels)]


def where_time_went(gathered: Gathered) -> list[Markup]:
    """Seconds of each step by stage."""
    spent = gathered.stage_seconds()
    if not spent:
        return [_sentence(say.of_time(gathered))]
    total = sum(spent.values())
    steps = [step for step in gathered.steps if any(f"time/{stage}" in step.values for stage in spent)]
    bars: dict[float, Mapping[str, float]] = {
        step.step: {stage: _finite(step.values.get(f"time/{stage}", 0.0)) for stage in spent} for step in steps
    }
    rows = [
        (tag("b", stage), say.seconds(seconds), f"{seconds / total:.1%}", say.seconds(seconds / len(steps)))
        for stage, seconds in sorted(spent.items(), key=lambda item: -item[1])
    ]
    note = (
        "Rollout is the time in which the learner waits for episodes; a training that samples ahead (max_staleness above 0) "
        "samples under the other stages, too."
    )
    return [
        _sentence(say.of_time(gathered)),
        share_bar(list(spent.items()), say.seconds),
        _panels([_panel("seconds of each step by stage", bar_chart(bars, list(spent), say.seconds)),
                 _table(("stage", "#seconds", "#share", "#of a step"), rows)], wide=True),
        tag("p", note, class_="dim"),
    ]  # fmt: skip


def stragglers(gathered: Gathered) -> list[Markup]:
    """Which episodes the others waited for."""
    episodes = gathered.episodes
    slow = episodes.ended()[:SLOWEST]
    if not slow:
        return [_sentence(say.of_stragglers(gathered))]
    by_step = episodes.seconds_by_step("train") or episodes.seconds_by_step(slow[0].split)
    lines = [
        Line(name, [(float(step), values[at]) for step, values in by_step.items()], broad=at == 2)
        for at, name in enumerate(("median", "99th percentile", "slowest"))
    ]
    rows = [
        (tag("code", each.id), each.status, f"{each.split} {each.step}", say.seconds(each.seconds), str(each.turns),
         say.seconds(each.model_seconds), say.seconds(each.tool_seconds), say.seconds(_waited(each)),
         tag("code", f"agentrl view {shlex.quote(str(gathered.folder))} {shlex.quote(each.id)}"))
        for each in slow
    ]  # fmt: skip
    heads = ("episode", "end", "sampled for", "#took", "#turns", "#model", "#tools", "#neither", "look at it")
    return [
        _sentence(say.of_stragglers(gathered)),
        _panels(
            [_panel("seconds of the episodes of a step", line_chart(lines, say.seconds, least=0.0, width=WIDE))], wide=True
        ),
        _table(heads, rows),
    ]


def loop_lag(gathered: Gathered) -> list[Markup]:
    """How late the event loop was."""
    lags = gathered.lags()
    about = "What is due in the event loop runs this much later; a loop that is late holds up every episode at once."
    if not lags:
        return [_sentence(say.of_lag(gathered))]
    lines = [
        Line(name, [(lag[0], lag[at]) for lag in lags], broad=at == 3)
        for at, name in ((1, "mean"), (2, "99th percentile"), (3, "maximum"))
    ]
    chart = _panel("seconds late, of each step", line_chart(lines, say.seconds, least=0.0, width=WIDE))
    return [_sentence(say.of_lag(gathered)), _panels([chart], wide=True), tag("p", about, class_="dim")]


def drift(gathered: Gathered) -> list[Markup]:
    """Whether the engine saw the recorded tokens, computes what the learner computes, and with how old weights."""
    sound, text = say.of_drift(gathered)
    parts = [tag("p", f"{text[0].upper()}{text[1:]}.", class_=f"verdict {'good' if sound else 'bad'}")]
    parts += [_sentence(text) for text in say.of_gap(gathered)] + [_sentence(say.of_staleness(gathered))]
    panels = [_panel(title, _of_policies(gathered, metrics)) for title, metrics in _PARITY.items()
              if gathered.policies(metrics[0])]  # fmt: skip
    if panels:
        parts += [_panels(panels), tag("p", _PARITY_NOTE, class_="dim")]
    untrained = gathered.episodes.untrained
    if untrained:
        parts.append(_table(("turns never trained, by reason", "#turns"),
                            [(reason, say.number(count)) for reason, count in untrained.most_common()]))  # fmt: skip
    return parts


def tokens(gathered: Gathered) -> list[Markup]:
    """Sampled, cached, lost, probed."""
    paid = gathered.episodes.paid
    rows = [
        ("sampled, in turns that stand", say.number(paid.sampled_tokens), ""),
        ("sampled and lost (failed attempts, cancelled branches)", say.number(paid.lost_tokens),
         f"{paid.lost_tokens / max(1, paid.sampled_tokens + paid.lost_tokens):.1%} of those sampled"),
        ("of prompts", say.number(paid.prompt_tokens), ""),
        ("of prompts, cached", say.number(paid.cached_tokens),
         f"{paid.cached_tokens / max(1, paid.prompt_tokens):.1%} of those of prompts"),
        ("probed", say.number(paid.probe_tokens), ""),
        ("model calls", say.number(paid.model_calls), ""),
        *((name, say.number(cost), "cost") for name, cost in paid.costs.items()),
    ]  # fmt: skip
    rate = [Line("tokens/s", gathered.series("tokens_per_second"))]
    cached = [Line("cached", gathered.series("cache_hit_rate"))]
    panels = [
        _panel("tokens sampled a second", line_chart(rate, least=0.0, width=WIDE)),
        _panel("share of prompt tokens that were cached", line_chart(cached, "{:.0%}".format, least=0.0, width=WIDE)),
    ]
    return [_sentence(say.of_tokens(gathered)), _table(("tokens", "#number", ""), rows), _panels(panels, wide=True)]


def failures(gathered: Gathered) -> list[Markup]:
    """What was lost and why; why loops ended."""
    episodes = gathered.episodes
    lost = sorted(episodes.lost.values(), key=lambda each: -each.count)
    total = max(1, len(episodes.seen))
    parts: list[Markup] = []
    if lost:
        rows = [(each.cause, say.number(each.count), f"{each.count / total:.1%}", tag("code", each.id), _short(each.message))
                for each in lost]  # fmt: skip
        parts.append(_table(("cause", "#episodes", "#share", "for example", "says"), rows, text=4))
    else:
        parts.append(tag("p", "No episode was lost.", class_="verdict good") if episodes.seen else _sentence("no episode yet"))
    if episodes.stops:
        every = episodes.stops.total()
        rows = [(reason, say.number(count), f"{count / every:.1%}", _bar(count / every))
                for reason, count in episodes.stops.most_common()]  # fmt: skip
        parts += [tag("h3", "Why model-tool loops ended"), _table(("stop reason", "#loops", "#share", ""), rows)]
    return parts


def tool_calls(gathered: Gathered) -> list[Markup]:
    """Calls by tool: how many, how long, how often in vain."""
    tools = gathered.episodes.tools
    if not tools:
        return [_sentence("no tool was called")]
    rows = [
        (tag("code", name), say.number(len(use.seconds)), say.seconds(sum(use.seconds) / len(use.seconds)),
         say.seconds(max(use.seconds)), say.seconds(sum(use.seconds)), f"{use.errors:.1%}",
         ", ".join(f"{status} {count}" for status, count in use.by_status.most_common() if status != "ok") or "-")
        for name, use in sorted(tools.items(), key=lambda item: -sum(item[1].seconds))
    ]  # fmt: skip
    return [_table(("tool", "#calls", "#mean", "#slowest", "#in all", "#failed", "how"), rows)]


def kept(gathered: Gathered) -> list[Markup]:
    """What lies on the disk."""
    episodes, sizes = gathered.episodes, gathered.sizes
    count = len(episodes.seen)
    each = f" ({say.size(sizes['store'] / count)} an episode)" if count else ""
    splits = ", ".join(f"{number} {split}" for split, number in episodes.splits.most_common())
    statuses = ", ".join(f"{number} {status}" for status, number in episodes.statuses.most_common() if number)
    facts = [
        ("store.db", say.size(sizes["store"]) + each), ("checkpoints", say.size(sizes["checkpoints"])),
        ("metrics.jsonl", say.size(sizes["metrics"])), ("episodes", f"{say.number(count)}: {splits}" if count else "none"),
        ("ends", statuses or "none"),
    ]  # fmt: skip
    return [tag("dl", *(part for name, text in facts for part in (tag("dt", name), tag("dd", text))))]


SECTIONS: Mapping[str, Callable[[Gathered], list[Markup]]] = {
    "Learning": learning,
    "Where the time went": where_time_went,
    "Stragglers": stragglers,
    "Loop lag": loop_lag,
    "Drift": drift,
    "Tokens": tokens,
    "Failures and ends": failures,
    "Tools": tool_calls,
    "What is kept": kept,
    "The run": what_it_is,
}


# --- parts -------------------------------------------------------------------------------------------------------------------
def _sentence(text: str) -> Markup:
    return tag("p", f"{text[0].upper()}{text[1:]}.")


def _panel(title: str, chart: Markup) -> Markup:
    return tag("div", tag("h3", title), chart, class_="panel")


def _panels(panels: Iterable[Markup], *, wide: bool = False) -> Markup:
    return tag("div", *panels, class_="panels wide" if wide else "panels")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, text: int = -1) -> Markup:
    """A head with # is of a column of numbers; `text` is the column of long texts."""
    kinds = ["number" if head.startswith("#") else "text" if at == text else None for at, head in enumerate(heads)]
    top = tag("tr", *(tag("th", head.lstrip("#"), class_=kind) for head, kind in zip(heads, kinds, strict=True)))
    body = [tag("tr", *(tag("td", cell, class_=kind) for cell, kind in zip(row, kinds, strict=True))) for row in rows]
    return tag("div", tag("table", tag("thead", top), tag("tbody", *body)), class_="scroll")


def _of_policies(gathered: Gathered, metrics: Sequence[str]) -> Markup:
    """Lines of some metrics of each policy; the last of them broad, for it lies above the others."""
    lines = [
        Line(f"{policy}{metric.rpartition('/')[2]}", gathered.series(f"{policy}{metric}"), broad=metric == metrics[-1])
        for policy in gathered.policies(metrics[0])
        for metric in metrics
    ]
    return line_chart(lines, least=0.0)


def _bar(share: float) -> Markup:
    return tag("span", class_="bar", style=f"width:{share * 12:.2f}rem")


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _waited(episode: Seen) -> float:
    """Seconds in which neither a model nor a tool was at work, if those ran one after the other."""
    return max(0.0, episode.seconds - episode.model_seconds - episode.tool_seconds)


def _short(text: str) -> str:
    return text if len(text) <= 400 else f"{text[:399]}…"


def _type(value: Mapping[str, str]) -> str:
    return value["type"].rpartition(":")[2] if "type" in value else str(value)


def _policies(policies: Mapping[str, object]) -> str:
    found = [policies] if "model" in policies else list(policies.values())
    return ", ".join(f"{policy['name']} ({policy['model'] or 'no model'})" for policy in found if isinstance(policy, Mapping))
