"""What a function reaches, and what its hash holds: behaviour, not text.

The references are small packages written here, whose reached definitions are known, and the package's own cell
functions after edits to a copy.
"""

from __future__ import annotations

import textwrap

import pytest

from labkit.workflow import reach

PACKAGE = {
    "__init__.py": "",
    "work.py": '''
        """Work."""
        from labkit.cell import cell
        from labkit import parts
        from labkit.parts import numbers as own
        from labkit.lazy_home import Late

        SCALE = 2.0
        """A scale."""
        UNUSED = 3.0
        TABLE = {"a": "_by_name"}

        @cell("demo.work", version=3)
        def work(spec):
            """Do it."""
            from labkit.inner import deep
            return _helper(spec) * SCALE + parts.total(own.FIRST) + deep() + Late().value + run(f"{__name__}:_isolated")

        def _helper(spec: int) -> int:
            return spec + 1

        def _isolated():
            return 5

        def run(name):
            return name

        def stranger():
            return UNUSED
        ''',
    "parts/__init__.py": "from .sums import total\n",
    "parts/sums.py": (
        "import os\nos.environ.setdefault('X', '1')\ndef total(x):\n    return x * _FACTOR\n_FACTOR = 7\n"
        "def other():\n    return 1\n"
    ),
    "parts/numbers.py": "FIRST = 1\nSECOND = 2\n",
    "inner.py": "def deep():\n    return 9\ndef shallow():\n    return 8\n",
    "lazy_home/__init__.py": "_HOMES = {'Late': 'late'}\n",
    "lazy_home/late.py": (
        "class Late:\n    value = 11\n    def other(self):\n        return helper()\ndef helper():\n    return 12\n"
    ),
}
REACHED = {
    *(("labkit.work", name) for name in ("work", "_helper", "SCALE", "run", "_isolated")),
    *(("labkit.parts.sums", name) for name in ("total", "_FACTOR", "")),
    ("labkit.parts.numbers", "FIRST"),
    ("labkit.inner", "deep"),
    ("labkit.lazy_home.late", "Late"),
    ("labkit.lazy_home.late", "helper"),
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that stands for labkit; caches know nothing of it before or after."""
    root = tmp_path / "labkit"
    for name, text in PACKAGE.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(textwrap.dedent(text))
    monkeypatch.setattr(reach, "_ROOT", root)
    forget()
    yield root
    forget()


def forget():
    for cached in (reach.code_hash, reach.reached, reach._references, reach._texts, reach._module):
        cached.cache_clear()


def code_hash():
    forget()
    return reach.code_hash("demo.work")


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_declared_functions_are_found_without_importing(package):
    assert reach.declared() == {"demo.work": reach.Declared("demo.work", 3, ("labkit.work", "work"))}


def test_exactly_the_definitions_that_are_named_are_reached(package):
    assert set(reach.reached(("labkit.work", "work"))) == REACHED


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("work.py", "SCALE = 2.0", "SCALE = 2.5"),
        ("work.py", "spec + 1", "spec - 1"),
        ("work.py", "return 5", "return 6"),
        ("parts/sums.py", "_FACTOR = 7", "_FACTOR = 8"),
        ("parts/sums.py", "'1'", "'2'"),
        ("parts/numbers.py", "FIRST = 1", "FIRST = 0"),
        ("inner.py", "return 9", "return 10"),
        ("lazy_home/late.py", "value = 11", "value = 12"),
        ("lazy_home/late.py", "return 12", "return 13"),
    ],
)
def test_what_is_reached_is_in_the_hash(package, file, old, new):
    before = code_hash()
    edit(package / file, old, new)
    assert code_hash() != before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("work.py", '"""Do it."""', '"""Do something else."""'),
        ("work.py", '"""A scale."""', '"""Another sentence."""'),
        ("work.py", "def _helper(spec: int) -> int:", "def _helper(spec: float) -> float:  # a comment"),
        ("work.py", "SCALE = 2.0", "SCALE: float = 2.0"),
        ("work.py", "return _helper(spec) * SCALE", "return   _helper(spec)*SCALE"),
        ("work.py", "version=3", "version=4"),
        ("work.py", "UNUSED = 3.0", "UNUSED = 4.0"),
        ("parts/sums.py", "return 1", "return 2"),
        ("parts/numbers.py", "SECOND = 2", "SECOND = 3"),
        ("inner.py", "return 8", "return 7"),
    ],
)
def test_what_no_behaviour_depends_on_is_not(package, file, old, new):
    before = code_hash()
    edit(package / file, old, new)
    assert code_hash() == before


def test_a_moved_module_is_the_same_code(package):
    before = code_hash()
    (package / "inner.py").rename(package / "moved.py")
    edit(package / "work.py", "from labkit.inner import deep", "from labkit.moved import deep")
    (package / "parts" / "sums.py").rename(package / "parts" / "added.py")
    edit(package / "parts" / "__init__.py", ".sums", ".added")
    assert code_hash() == before


def test_two_functions_of_one_name_are_refused(package):
    (package / "copy.py").write_text((package / "work.py").read_text())
    with pytest.raises(ValueError, match=r"are both cell 'demo\.work'"):
        reach.declared()


def test_every_cell_function_of_the_package_reaches_its_own_definition():
    known = reach.declared()
    assert len(known) >= 14
    for one in known.values():
        assert one.place in reach.reached(one.place)
