"""dptrain.report.confusion: the matrix in the width of a terminal."""

from __future__ import annotations

import numpy as np

from dptrain.report.confusion import confusion_lines, frequent_confusions

NAMES = ["cat", "dog\x1b[2J", "a name that is much longer than the others"]
MATRIX = np.array([[9, 1, 0], [0, 12345, 7], [3, 2, 0]])


def test_every_count_is_in_the_row_of_its_true_class() -> None:
    head, columns, *rows = confusion_lines(MATRIX, NAMES, 80)
    assert "rows are true classes" in head
    assert columns.split() == ["0", "1", "2"]
    assert [row.split()[0] for row in rows] == ["0", "1", "2"]
    assert [row.split()[-3:] for row in rows] == [["9", "1", "."], [".", "12345", "7"], ["3", "2", "."]]
    assert len({len(row) for row in (columns, *rows)}) == 1
    assert all(line.isprintable() and len(line) <= 80 for line in (head, columns, *rows))


def test_a_matrix_that_is_too_wide_becomes_a_list_of_mistakes() -> None:
    width = len(confusion_lines(MATRIX, NAMES, 80)[1])
    assert len(confusion_lines(MATRIX, NAMES, width)) == 5
    head, *pairs = confusion_lines(MATRIX, NAMES, width - 1)
    assert "wider than this terminal" in head
    assert [line.split()[-1] for line in pairs] == ["7", "3", "2", "1"]
    assert confusion_lines(np.diag([3] * 40), list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMN"), 60) == ["no mistakes"]


def test_frequent_mistakes_leave_out_the_right_ones() -> None:
    assert frequent_confusions(MATRIX, 2) == [(1, 2, 7), (2, 0, 3)]
    assert frequent_confusions(np.diag([5, 5]), 3) == []
