"""A benchmark's table as LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from kanoclip.outputs.rows import BEST, Row, cells
from kanoclip.outputs.tables import METRICS

PAGE = 50  # rows of a LaTeX table that fit on a page
TEX = {"\\": r"\textbackslash{}", "±": r"$\pm$", "—": "--", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
TEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
TEX |= {sign: f"\\{sign}" for sign in "&%$#_{}"}


def latex(sections: Sequence[Sequence[Row]], notes: Sequence[str]) -> str:
    """Write it for the package booktabs, and longtable if it is longer than a page."""
    long = sum(map(len, sections)) > PAGE
    kind, last = ("longtable" if long else "tabular"), 3 + len(METRICS)
    headings = ["data", "model", "fitted on", *(metric.heading for metric in METRICS.values()), "seeds"]
    above, rules, first = "", [], 4
    for level, metrics in groupby(METRICS.values(), key=lambda metric: metric.level):
        count = len(list(metrics))
        above += rf" & \multicolumn{{{count}}}{{c}}{{{level}}}"
        rules.append(rf"\cmidrule(lr){{{first}-{first + count - 1}}}")
        first += count
    lines = [
        r"% \usepackage{booktabs}" + (r" \usepackage{longtable}" if long else ""),
        rf"\begin{{{kind}}}{{@{{}}lll{'r' * (len(METRICS) + 1)}@{{}}}}",
        r"\toprule",
        rf" & &{above} & \\",
        " ".join(rules),
        " & ".join(headings) + r" \\",
        *([r"\midrule", r"\endhead"] if long else []),
    ]
    for at, section in enumerate(sections):
        lines += [r"\midrule"] if at or not long else []
        for line in cells(section, intervals=False):
            shown = [*map(_tex, line[:3]), *map(_number, line[3:last]), line[-1]]
            lines.append(" & ".join(shown) + r" \\")
    lines += [r"\bottomrule", rf"\end{{{kind}}}", "", r"{\footnotesize"]
    return "\n".join([*lines, *(_tex(note) + r"\par" for note in notes), "}"]) + "\n"


def _number(text: str) -> str:
    """Write a value; the clearly best one in bold."""
    return rf"\textbf{{{_tex(text.replace(BEST, ''))}}}" if BEST in text else _tex(text)


def _tex(text: str) -> str:
    text = " ".join(text.split())
    options = "{}" if text.startswith(("[", "*")) else ""  # of the line break above
    return options + "".join(TEX.get(sign, sign) for sign in text)
