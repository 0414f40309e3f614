"""A judgement as a Markdown table, as JSON, and as one HTML file with its pictures inside."""

import base64
import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from student_jax.evaluation.judge import MEASURES, Judgement
from triplets import contact_sheet, encode_image, resize_shorter_side
from triplets.atomic import atomic_write

FIGURE_SIDE = 160
"""Shorter side in pixels of the pictures in a figure."""

_ARROWS = {"lower": "↓", "higher": "↑", "as the teacher": "≈"}
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem }}
body {{ padding: 0 1rem }}
table {{ border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto }}
th, td {{ padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: right }}
th:first-child, td:first-child {{ text-align: left }}
td.best {{ font-weight: 600 }}
td small {{ display: block; font-weight: 400; color: #666; white-space: nowrap }}
.pictures td {{ padding: .15rem; border: 0 }}
.pictures th, .pictures td {{ text-align: center }}
.sheet img {{ max-width: 100% }}
.pictures img {{ width: 100%; min-width: 6rem; max-width: 16rem; display: block }}
</style>
<h1>{title}</h1>
<p>{summary}</p>
{table}
<ul>{remarks}</ul>
<table class="pictures">{pictures}</table>
<div class="sheet">{sheet}</div>
</html>
"""


def shown_measures(judgement: Judgement) -> list[str]:
    """The measures that were taken of at least one method, in their fixed order."""
    return [m for m in MEASURES if any(m in of for of in judgement.measures.values())]


def cell(measure: str, value: float | None) -> str:
    """A value as it stands in a table; a dash where there is none or where it says nothing."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.{MEASURES[measure].digits}f}"


def heading(measure: str) -> str:
    """Title with an arrow: down where lower is better, up where higher is."""
    return f"{MEASURES[measure].title} {_ARROWS[MEASURES[measure].better]}"


def markdown_table(judgement: Judgement, first: str) -> str:
    """Methods down, measures across; `first` heads the column of the methods."""
    measures = shown_measures(judgement)
    rows = (
        [method, *(cell(m, values.get(m)) for m in measures)]
        for method, values in judgement.measures.items()
    )
    return markdown_rows([first, *map(heading, measures)], rows)


def markdown_rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown: the first column to the left, the others to the right."""
    lines = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def notes(judgement: Judgement) -> list[str]:
    """What each measure is, where its interval is, and which are missing and why."""
    measures = shown_measures(judgement)
    lines = [f"{heading(m)}: {MEASURES[m].meaning}; {_reading(m)}." for m in measures]
    if any(judgement.intervals.values()):
        lines.append(
            "Means over pictures have 95 % intervals for other contents and styles like these, in "
            "report.html and measures.json."
        )
    return lines + [
        f"{MEASURES[m].title} is missing: {reason}." for m, reason in judgement.missing.items()
    ]


def _reading(measure: str) -> str:
    better = MEASURES[measure].better
    return "best near the teacher's" if better == "as the teacher" else f"{better} is better"


def finite(figures: Mapping[str, float]) -> dict[str, float | None]:
    """With None for the infinite ones, which JSON cannot say."""
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


def json_text(judgement: Judgement, **about: object) -> str:
    """All figures with what they are about; strict JSON, an infinite figure becomes null."""
    fields = asdict(judgement)
    fields["measures"] = {name: finite(of) for name, of in judgement.measures.items()}
    return json.dumps(about | fields, indent=2, allow_nan=False)


def html_page(
    judgement: Judgement,
    *,
    title: str,
    summary: str,
    remarks: Sequence[str],
    captions: Sequence[str],
    rows: Sequence[Sequence[UInt8[np.ndarray, "h w 3"]]],
    sheet: UInt8[np.ndarray, "h2 w2 3"] | None = None,
) -> str:
    """A page that needs no other file and no server: table, remarks, rows of pictures, a sheet."""
    measures = shown_measures(judgement)
    best = {m: _best(judgement, m) for m in measures}
    table = [
        f"<tr><th></th>{''.join(f'<th>{html.escape(heading(m))}</th>' for m in measures)}</tr>"
    ]
    for method, values in judgement.measures.items():
        cells = (
            f"<td{' class=best' if best[m] == method else ''}>{cell(m, values.get(m))}"
            f"{_ends(judgement, method, m)}</td>"
            for m in measures
        )
        table.append(f"<tr><td>{html.escape(method)}</td>{''.join(cells)}</tr>")
    pictures = [f"<tr>{''.join(f'<th>{html.escape(c)}</th>' for c in captions)}</tr>"]
    pictures += [
        f"<tr>{''.join(f'<td>{_inline(image)}</td>' for image in row)}</tr>" for row in rows
    ]
    return _PAGE.format(
        title=html.escape(title),
        summary=html.escape(summary),
        table=f"<table>{''.join(table)}</table>",
        remarks="".join(f"<li>{html.escape(remark)}</li>" for remark in remarks),
        pictures="".join(pictures),
        sheet="" if sheet is None else f"<h2>Contents and styles</h2>{_inline(sheet)}",
    )


def _ends(judgement: Judgement, method: str, measure: str) -> str:
    if measure not in judgement.intervals[method]:
        return ""
    low, high = (cell(measure, end) for end in judgement.intervals[method][measure])
    return f"<small>{low} to {high}</small>"


def _best(judgement: Judgement, measure: str) -> str | None:
    """The method with the best figure; the teacher does not take part."""
    values = {
        name: of[measure]
        for name, of in judgement.measures.items()
        if measure in of and name != "teacher"
    }
    better = MEASURES[measure].better
    if better == "as the teacher":
        teacher = judgement.measures.get("teacher", {}).get(measure)
        if teacher is None:
            return None
        return min(values, key=lambda name: abs(values[name] - teacher))
    return (min if better == "lower" else max)(values, key=values.get)


def _inline(image: UInt8[np.ndarray, "h w 3"]) -> str:
    data = base64.b64encode(encode_image(image, ".jpg", quality=92)).decode("ascii")
    return f'<img alt="" src="data:image/jpeg;base64,{data}">'


def write_figure(
    path: Path, rows: Sequence[Sequence[UInt8[np.ndarray, "h w 3"]]], captions: Sequence[str]
) -> None:
    """Rows of pictures as a JPEG that is light enough to stand in a page."""
    small = [[resize_shorter_side(image, FIGURE_SIDE) for image in row] for row in rows]
    with atomic_write(path) as file:
        file.write(encode_image(contact_sheet(small, captions), ".jpg", quality=80))


def write_text(path: Path, text: str) -> None:
    """Write a text file that appears under its name when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(f"{text.rstrip()}\n".encode())
