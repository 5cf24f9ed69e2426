"""What `evaluate --fail-under METRIC=VALUE` demands. All but the values is checked before anything is measured."""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from cifarctl.cli.output import report_error
from cifarctl.errors import UsageError
from cifarctl.metrics import METRICS, Metric
from cifarctl.wording import model_name

if TYPE_CHECKING:
    from cifarctl.weights import ModelInfo

BELOW_THRESHOLD = 3


@dataclass(frozen=True)
class Threshold:
    """The worst value of a metric that is good enough."""

    metric: Metric
    bound: float

    @classmethod
    def parse(cls, text: str) -> "Threshold":
        """From METRIC=VALUE. Raises UsageError, which names the metrics that there are."""
        name, _, value = text.partition("=")
        bound = math.nan
        with suppress(ValueError):
            bound = float(value)
        if math.isnan(bound):  # nothing is worse than "not a number": the check would always pass
            raise UsageError(
                f"--fail-under {text}: expected METRIC=VALUE, where VALUE is a number", hint="for example accuracy=0.9"
            )
        metric = METRICS.get(name)
        if metric is None or metric.better is None:
            raise UsageError(f"--fail-under {name}: no such metric", hint=f"one of: {_names(METRICS.values())}")
        if metric.unit == "%" and bound > 2:  # a little above 1 is a demand that nothing meets
            raise UsageError(
                f"--fail-under {text}: {name} is from 0 to 1", hint=f"{name}={bound / 100:g} for {bound:g} %"
            )
        return cls(metric, bound)

    def check_applies(self, kind: str, classes: int, model: object) -> None:
        """Raise UsageError if models of this kind, with so many classes, are not measured by the metric."""
        if not self.metric.applies(kind, classes):
            known = _names(metric for metric in METRICS.values() if metric.applies(kind, classes))
            raise UsageError(
                f"--fail-under {self.metric.name}: no metric of {model}, a{'n' * (kind[0] == 'a')} {kind}"
                + (f" of {classes} classes" if classes else ""),
                hint=f"one of: {known}",
            )

    def shortfall(self, metrics: Mapping[str, Any]) -> str | None:
        """How the measured value misses the bound, or None if it does not."""
        value = metrics[self.metric.name]
        if not self.metric.misses(value, self.bound):
            return None
        side = "above" if self.metric.better == "lower" else "below"
        return f"{self.metric.name} is {value:.6g}, {side} {self.bound:g}"


def parse_thresholds(texts: Sequence[str] | None) -> list[Threshold]:
    """Raises UsageError."""
    return [Threshold.parse(text) for text in texts or []]


def check_thresholds(thresholds: Sequence[Threshold], info: "ModelInfo", model: object) -> None:
    """Raise UsageError if such a model is not measured by one of the metrics."""
    for threshold in thresholds:
        threshold.check_applies(info.kind, len(info.classes or ()), model)


def fail_below(results: Sequence[Mapping[str, Any]], thresholds: Sequence[Threshold]) -> None:
    """End the program with `BELOW_THRESHOLD` if a metric misses its threshold, and say which of which model."""
    below = []
    for result in results:
        where = f"{model_name(result['model'])} on {result['split']}: " if len(results) > 1 else ""
        shortfalls = (threshold.shortfall(result["metrics"]) for threshold in thresholds)
        below += [where + text for text in shortfalls if text]
    if below:
        report_error("; ".join(below))
        raise typer.Exit(BELOW_THRESHOLD)


def _names(metrics: Iterable[Metric]) -> str:
    return ", ".join(metric.name for metric in metrics if metric.better)
