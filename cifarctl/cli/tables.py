"""Results as rich tables that fit 80 columns; on narrower terminals they show less."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.style import Style
from rich.table import Table
from rich.text import Text

from cifarctl.comparison import COMPARISONS
from cifarctl.metrics import METRICS, Metric, compared, headline
from cifarctl.names import printable
from cifarctl.wording import format_p_value, format_score, model_name


def metrics_table(title: str, metrics: Mapping[str, Any], more: Mapping[str, str]) -> Group:
    """Metrics by their titles, then `more` rows as they are."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in metrics.items():
        metric = METRICS[name]
        table.add_row(metric.title, metric.text(value), style="bold" if metric is headline(metric.kind) else "")
    for name, value in more.items():
        table.add_row(name, _cell(value))
    return Group(_cell(title, style="bold"), "", table)


@dataclass(frozen=True)
class FirstThatFits:
    """The first of several renderables that fits the terminal, or else the last."""

    choices: Sequence[RenderableType]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        unbounded = options.update(width=1000)
        *wider, last = self.choices
        fits = (one for one in wider if Measurement.get(console, unbounded, one).maximum <= options.max_width)
        yield next(fits, last)


def comparison_table(results: Sequence[Mapping[str, Any]]) -> FirstThatFits:
    """Several results of `evaluate` by model and split, with the gap to the first split if there are others, and the
    AUROC of unfamiliar images if it was measured. What is too wide has fewer columns, the headline metric at least.
    """
    measured = set.intersection(*(set(result["metrics"]) for result in results))
    columns = [metric for metric in compared(results[0]["kind"]) if metric.name in measured]
    return FirstThatFits([_comparison_table(results, columns[:count]) for count in range(len(columns), 0, -1)])


def _comparison_table(results: Sequence[Mapping[str, Any]], columns: Sequence[Metric]) -> Table:
    splits = list(dict.fromkeys(result["split"] for result in results))
    main = columns[0]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("model", overflow="fold")
    table.add_column("split")
    for metric in columns:
        table.add_column(metric.column, justify="right")
    if len(splits) > 1:
        table.add_column(f"minus {splits[0]}", justify="right")
    has_unfamiliar = all("unfamiliar" in result for result in results)
    if has_unfamiliar:
        table.add_column("AUROC of unfamiliar", justify="right")
    for model in dict.fromkeys(result["model"] for result in results):
        rows = [result for result in results if result["model"] == model]
        for row in rows:
            cells = [metric.cell(row["metrics"][metric.name]) for metric in columns]
            if len(splits) > 1:
                gap = row["metrics"][main.name] - rows[0]["metrics"][main.name]
                cells.append("" if row is rows[0] else main.signed(gap))
            if has_unfamiliar:
                cells.append(f"{row['unfamiliar']['auroc']:.4f}")
            table.add_row(Text(model_name(model)), row["split"], *cells)
    return table


def runs_table(rows: Sequence[Mapping[str, Any]], on: Sequence[str]) -> Group:
    """Runs in the order given, a table for each kind. What is too wide has fewer columns: the name, the headline metric
    and the state at least. Below, which images each was measured on, and why a run has no figures.

    on: of each row, the images in words; empty without figures.
    """
    kinds = list(dict.fromkeys(row["kind"] for row in rows if "metrics" in row)) or [rows[0]["kind"] or "classifier"]
    tables = []
    for kind in kinds:
        # A run whose kind nobody knows stands in the last table.
        of_kind = [row for row in rows if row["kind"] == kind or (kind == kinds[-1] and row["kind"] not in kinds)]
        measured = [set(row["metrics"]) for row in of_kind if "metrics" in row]
        metrics = [each for each in compared(kind) if not measured or each.name in set.intersection(*measured)]
        details = ["arch", "recipe", "epochs", "seed"]
        for name in ("split", "data"):
            if len({row[name] for row in of_kind if "metrics" in row}) > 1:
                details.insert(0, name)
        columns = [(details, metrics[:count]) for count in range(len(metrics), 0, -1)]
        columns += [(details[:count], metrics[:1]) for count in range(len(details) - 1, -1, -1)]
        tables.append(FirstThatFits([_runs_table(of_kind, *each) for each in columns]))
    names: dict[str, list[str]] = {}  # of the runs that the same is said of
    for row, images in sorted(zip(rows, on, strict=True), key=lambda pair: "error" in pair[0]):
        problem = f"{row['state']}, not measured: {printable(row['error'])}" if "error" in row else ""
        names.setdefault(problem or f"measured on {printable(images)}", []).append(printable(model_name(row["model"])))
    notes = [f"{', '.join(of)}: {what}" for what, of in names.items()]
    if len(set(filter(None, on))) == 1:
        notes[0] = f"Measured on {printable(next(filter(None, on)))}"
    return Group(*tables, *map(Text, notes))


def _runs_table(rows: Sequence[Mapping[str, Any]], details: Sequence[str], metrics: Sequence[Metric]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("model", overflow="fold")
    for name in details:
        table.add_column(name, justify="right" if name in ("epochs", "seed") else "left")
    for metric in metrics:
        table.add_column(metric.column, justify="right")
    table.add_column("state", no_wrap=True)
    for row in rows:
        measured = row.get("metrics", {})
        figures = [each.cell(measured[each.name]) if each.name in measured else "–" for each in metrics]
        cells = [_cell("–" if row.get(name) is None else str(row[name])) for name in details]
        table.add_row(Text(model_name(row["model"])), *cells, *figures, Text(row["state"]))
    return table


def difference_line(difference: Mapping[str, Any]) -> str:
    """How much better one model is than another, with the interval and the p-value, as a sentence."""
    first, second = model_name(difference["first"]), model_name(difference["second"])
    metric = METRICS[difference["metric"]]
    low, high = map(metric.signed, difference["ci95"])
    verb = COMPARISONS[metric.kind].verb
    return (
        f"{second} minus {first} on {difference['split']}: {metric.difference(difference['difference'])}"
        f" (95 %: {low} to {high}), p {format_p_value(difference['p_value'])};"
        f" {difference['only_second']:,} images {verb} only with {second},"
        f" {difference['only_first']:,} only with {first}"
    )


def per_class_table(rows: Sequence[Mapping[str, Any]]) -> FirstThatFits:
    """Precision, recall, F1 and support of each class; if that is too wide, recall and F1."""
    return FirstThatFits(
        [_per_class_table(rows, columns) for columns in (("precision", "recall", "f1"), ("recall", "f1"))]
    )


def _per_class_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("class", overflow="ellipsis", no_wrap=True)
    complete = "precision" in columns
    for name in (*columns, "support") if complete else columns:
        table.add_column(name, justify="right")
    for row in rows:
        scores = [format_score(row[name]) for name in columns]
        table.add_row(_cell(row["label"]), *scores, *([f"{row['support']:,}"] if complete else []))
    return table


def confusion_table(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> FirstThatFits:
    """Counts, coloured by their fraction of the row; rows are the truth. Column names are cut to five letters."""
    instead = Text("The confusion matrix is wider than this terminal: --plots and --report draw it.", style="dim")
    return FirstThatFits((_confusion_table(matrix, classes), instead))


def _confusion_table(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> Table:
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title="rows: truth, columns: prediction",
        title_justify="left",
    )
    table.add_column("", overflow="ellipsis", max_width=14)
    for name in classes:
        table.add_column(Text(printable(name)[:5]), justify="right")
    for label, row in zip(classes, matrix, strict=True):
        total = max(sum(row), 1)
        cells = [
            Text(str(count), style=_shade(count / total, hit=classes[i] == label) if count else "dim")
            for i, count in enumerate(row)
        ]
        table.add_row(_cell(label), *cells)
    return table


def _cell(name: str, style: str = "") -> Text:
    """A name from elsewhere as a cell: rich would take `[red]` in a plain string for a colour."""
    return Text(printable(name), style=style)


def _shade(share: float, *, hit: bool) -> Style:
    strength = int(60 + 150 * min(share if hit else 5 * share, 1.0))
    return Style(color=f"rgb({60 if hit else strength},{strength if hit else 60},60)", bold=hit)
