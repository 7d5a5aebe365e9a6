"""Aligned text: tables, and the table of comparisons that both parts of the benchmark share."""

from collections.abc import Sequence

from benchmarks.bars import Verdict

SEPARATOR = "  "
OUTCOME = {True: "reached", False: "missed", None: ""}


def table(cells: Sequence[Sequence[str]], groups: Sequence[tuple[str, int]] = ()) -> str:
    """Aligned columns, the first to the left and the others to the right.

    `groups` are titles above the columns after the first, each with the number of columns that it spans.
    """
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    titles, column = [" " * widths[0]], 1
    for title, span in groups:
        spanned = len(SEPARATOR.join(" " * width for width in widths[column : column + span]))
        widths[column] += max(0, len(title) - spanned)
        titles.append(title.center(max(spanned, len(title))))
        column += span
    lines = [SEPARATOR.join(titles)] if groups else []
    for first, *others in cells:
        aligned = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append(SEPARATOR.join([first.ljust(widths[0]), *aligned]))
    return "\n".join(line.rstrip() for line in lines)


def verdicts_table(verdicts: Sequence[Verdict]) -> str:
    """One line for each comparison, with its range over the rounds."""
    cells = [["subject", "against", "figure", "ratio", "", "range", "bar", ""]]
    for one in verdicts:
        span = f"{one.ratio.lowest:.2f} .. {one.ratio.highest:.2f}"
        middle = f"{one.ratio.middle:.2f}x"
        what = [one.subject, one.rival, one.figure, middle, one.meaning, span, one.bar, OUTCOME[one.reached]]
        cells.append(what)
    return table(cells)
