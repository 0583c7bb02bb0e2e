"""What somebody's program says may not act on the terminal of whoever reads it."""

from __future__ import annotations

import pytest

from training.plain import everywhere, one_line, plain


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("step 3/9\n\tloss 0.1", "step 3/9\n\tloss 0.1"),
        ("caf\xe9 \u4f60\u3000\U0001f600", "caf\xe9 \u4f60\u3000\U0001f600"),
        ("\x1b]0;title\x07\x1b[2J", r"\x1b]0;title\x07\x1b[2J"),
        ("\x9b2J \x7f \u202egpj.exe \ud800", r"\x9b2J \x7f \u202egpj.exe \ud800"),
        ("a\rb", r"a\rb"),
    ],
)
def test_what_a_terminal_would_obey_is_shown(said, shown):
    assert plain(said) == shown
    assert everywhere({"a": [said, 1, None, {said: True}]}) == {"a": [shown, 1, None, {shown: True}]}


def test_of_a_progress_bar_its_last_word_stays():
    assert one_line("  0%|   |\r 50%|#  |\r100%|###| 9/9\r") == "100%|###| 9/9"
    assert one_line("x" * 5000) == f"{'x' * 1000}... (5000 characters)"
