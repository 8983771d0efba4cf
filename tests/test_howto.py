"""The how-to's snippets run as they are printed."""

import re

import pytest

from labkit import paths

PAGE = (paths.root() / "docs" / "howto.md").read_text(encoding="utf-8")
SNIPPETS = dict(re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))


def test_every_block_of_python_is_found():
    assert len(SNIPPETS) == PAGE.count("```python") >= 4


@pytest.mark.parametrize("title", SNIPPETS)
def test_a_snippet_runs_and_says_something(title, capsys):
    exec(compile(SNIPPETS[title], title, "exec"), {"__name__": "snippet"})
    assert capsys.readouterr().out.strip()
