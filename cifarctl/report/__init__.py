"""`evaluate --report`: one page that needs nothing but itself, neither network nor other files."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from cifarctl.comparison import COMPARISONS
from cifarctl.files import write_text
from cifarctl.metrics import METRICS, Metric, compared
from cifarctl.names import printable, shortened
from cifarctl.report.confusion import DIAGONAL, OFF_DIAGONAL
from cifarctl.report.image_files import ImageFile
from cifarctl.report.sections import ClassifierSection, Section, autoencoder_section, classifier_section
from cifarctl.version import __version__
from cifarctl.wording import format_p_value, format_score, measured_on, unfamiliar_rows

__all__ = ["Section", "autoencoder_section", "classifier_section", "write_report"]

_LONGEST_NAME = 500  # characters: a class of a hostile file is named hundreds of times


def write_report(path: Path, sections: Sequence[Section], differences: Sequence[Mapping[str, Any]]) -> None:
    """Write the sections as one page, atomically. differences: as `evaluate --json` shows them. Raises OSError.

    Files of images in the page's folder, or below it, are linked to.
    """
    write_text(path, _render(sections, differences, path.parent))


@dataclass(frozen=True)
class _Row:
    """A section in the page. gap: its metric minus that of its model's first split; empty for that split itself."""

    id: str
    section: Section
    gap: str


def _rows(sections: Sequence[Section], metric: Metric) -> list[_Row]:
    first: dict[str, Section] = {}
    rows = []
    for number, section in enumerate(sections, 1):
        base = first.setdefault(section.result["model"], section)
        gap = section.result["metrics"][metric.name] - base.result["metrics"][metric.name]
        rows.append(_Row(f"s{number}", section, "" if base is section else metric.difference(gap)))
    return rows


def _names_by_number(section: Section) -> bool:
    return isinstance(section, ClassifierSection) and any(answer.path is None for answer in section.uncertain)


def _render(sections: Sequence[Section], differences: Sequence[Mapping[str, Any]], folder: Path) -> str:
    kind = sections[0].result["kind"]
    measured = set.intersection(*(set(section.result["metrics"]) for section in sections))
    columns = [metric for metric in compared(kind) if metric.name in measured]
    script, style = (
        Markup(files(__name__).joinpath(f"report.{suffix}").read_text("utf-8")) for suffix in ("js", "css")
    )
    # Names of files and classes come from elsewhere, so everything that is not Markup is made visible and escaped.
    # Should that ever fail, the policy in the page lets no script run but this one, and nothing be loaded.
    environment = Environment(
        loader=PackageLoader("cifarctl", "report"),
        autoescape=True,
        finalize=lambda value: printable(shortened(value, _LONGEST_NAME)) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "all_metrics": METRICS,
        "diagonal": DIAGONAL,
        "off_diagonal": OFF_DIAGONAL,
        "format_p_value": format_p_value,
        "format_score": format_score,
        "image_file": partial(ImageFile.seen_from, folder),
        "measured_on": measured_on,
        "unfamiliar_rows": unfamiliar_rows,
    }
    return environment.get_template("report.html").render(
        rows=_rows(sections, columns[0]),
        is_numbered=any(_names_by_number(section) for section in sections),
        columns=columns,
        comparison=COMPARISONS[kind],
        differences=differences,
        model_names={section.result["model"]: section.name for section in sections},
        style=style,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        version=__version__,
        created=datetime.now(UTC),
    )
