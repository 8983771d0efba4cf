"""The repository speaks of itself alone, and its front page says only what was measured.

Checked against the tracked files, the lock and the published figures of profile `cpu`. What the front page says of
figures is compared as git holds both: whoever runs `make figures` gets numbers of their own, and the page still speaks
of those it was published with.
"""

import io
import json
import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import yaml

from labkit.base import paths
from labkit.ledger import audit, claims, formula
from labkit.workflow import readme

ROOT = paths.root()


def staged(path: str) -> str:
    """Return a file as it is staged, which is as it was committed if nothing was added since."""
    shown = ["git", "show", f":{path}"]
    return subprocess.run(shown, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def published(tmp_path, monkeypatch):
    """The records of published figures as they are staged, in a folder that labkit takes for its output."""
    listed = subprocess.run(
        ["git", "ls-files", "figures/*.json", "figures/*.csv"], cwd=ROOT, capture_output=True, check=True
    )
    write = ["git", "checkout-index", "--stdin", f"--prefix={tmp_path}/"]
    subprocess.run(write, cwd=ROOT, input=listed.stdout, check=True)
    monkeypatch.setenv("LABKIT_OUTPUT", str(tmp_path))
    return tmp_path / "figures"


def staged_table(path: str) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(staged(path)))


def tracked_text() -> dict[str, str]:
    listing = ["git", "ls-files", "-co", "--exclude-standard"]
    listed = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in listed.split() if not name.endswith((".png", ".svg", ".xz"))]
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in files if path.is_file()}


def test_no_file_holds_an_absolute_path_of_a_machine_or_a_registry():
    machine = re.compile(r"(?<![\w.])/(?:root|home/\w+|Users/\w+|work)/|pythonhosted|pypi\.org|registry\.npmjs")
    found = {name for name, text in tracked_text().items() if machine.search(text)}
    assert found <= {"tests/test_repository.py"}


def test_nothing_is_pickled_and_no_remote_code_is_trusted():
    bad = re.compile(r"trust_remote_code\s*=\s*True|import pickle|torch\.load\(|allow_pickle=True|read_pickle")
    found = [name for name, text in tracked_text().items() if name.endswith((".py", ".ipynb")) and bad.search(text)]
    assert found == ["tests/test_repository.py"]


def test_the_lock_pins_every_direct_dependency_exactly():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[\w.]+", line) for line in lines)
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    assert {re.split(r"[><=]", each)[0] for each in wanted if not each.startswith("labkit[")} <= pinned
    assert "torch==2.13.0" in lines


def test_conda_installs_against_the_same_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    assert pip == ["-c constraints.txt", "-e .[reports,lab,track,dev]"]
    assert "conda-forge" in environment["channels"]


def test_what_the_readme_says_came_out_is_made_from_what_is_published(published):
    text = staged("README.md")
    assert readme.fill(text) == text, "make readme"
    counts = staged_table("figures/cpu/claims/verdicts.csv").set_index("verdict")["claims"]
    shown = text.split("<!-- verdicts:begin -->")[1].split("<!-- verdicts:end -->")[0]
    assert {name: int(n) for name, n in re.findall(r"\| ([a-z ]+) \| (\d+) \|", shown)} == dict(counts)


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        ({"ci": [7.01, 8.97], "value": 8.0}, "**reproduced**: 8 [7.01 to 8.97]"),  # another direction: inside the range
        ({"ci": [4.752, 6.9]}, "**contradicted**: 6.528 [4.752 to 6.9]"),
        ({"value": 6.6}, "**undecided**: 6.6 [4.752 to 8.97]"),  # another number, the same verdict
    ],
)
def test_a_planted_change_of_a_number_or_a_direction_changes_the_readme(published, planted, said):
    path = published / "cpu" / "chunked_offload" / "results.json"
    document = json.loads(path.read_text())
    document["results"]["speedup/batch_32"] |= planted
    path.write_text(json.dumps(document))
    text = staged("README.md")
    changed = readme.fill(text)
    assert changed != text
    assert said in changed


def test_outside_the_parts_that_are_made_the_readme_states_no_result_of_a_report():
    """What is left are texts beside figures; a bracketed interval or a factor in them would be typed."""
    text = staged("README.md")
    section = text.split("## What came out on two CPU cores")[1].split("## How to read a verdict")[0]
    typed = re.sub(r"<!-- (\w+):begin -->.*?<!-- \1:end -->", "", section, flags=re.DOTALL)
    assert (
        re.findall(r"\d+(?:\.\d+)? (?:times|%)|\[\d[^\]]*,[^\]]*\]|\d\.\d+", typed.replace("95 % interval", "")) == []
    )


def test_a_part_without_its_markers_is_named():
    with pytest.raises(ValueError, match="no part between <!-- reports:begin -->"):
        readme.fill("nothing")


def test_what_is_published_judges_as_published(published):
    for path in published.glob("*/*/claims.json"):
        assert claims.judge(path.parent).to_dict("records") == json.loads(path.read_text()), path
    every = pd.read_csv(published / "cpu" / "claims" / "claims.csv", keep_default_na=False)
    assert claims.judge(published / "cpu")["verdict"].tolist() == every["verdict"].tolist()


STATED = re.compile(r"(?<![A-Za-z]-)(?<!\w)\d[\d,]*(?:\.\d+)?")
"""Numbers of a statement; the 2 of Phi-2 is a name."""


def test_every_number_in_the_statement_of_a_defect_stands_in_its_rows_or_follows_from_them():
    planted = caught = 0
    for path in claims.ledgers():
        for one in claims.defects(audit.report_of(path)):
            known = numbers_behind(path, one.rows)
            for text in STATED.findall(one.statement):
                number, step = float(text.rstrip(",").replace(",", "")), 10.0 ** -len(text.partition(".")[2])
                assert stands_in(number, step, known), (one.id, text)
                planted += 1
                caught += not stands_in(number + 3 * step, step, known)
    assert caught / planted > 0.8, "a wrong digit is noticed"


def stands_in(number: float, step: float, known: list[float]) -> bool:
    """Whether a number is one of those known, in some unit, to its own digits."""
    return any(abs(abs(x) / unit - number) <= 0.51 * step for x in known for unit in (1, 1e3, 1e6, 1e9, 1e-2))


def numbers_behind(ledger: Path, ids: list[str]) -> list[float]:
    """Numbers of some rows and of all that their formulas name: values, constants, notes, and what is recomputed."""
    rows = {claim.id: claim for claim in claims.load(audit.report_of(ledger))}
    boxes = {finding.claim: finding.recomputed for finding in audit.audit(ledger)}
    found, seen, pending = [], set(), list(ids)
    while pending:
        name = pending.pop()
        if name in seen or name not in rows:
            continue
        seen.add(name)
        row, box = rows[name], boxes.get(name)
        pending += formula.names(row.formula or "0")
        text = f"{row.printed} {row.note} {row.formula or ''}"
        found += row.value if isinstance(row.value, list) else [row.value]
        found += [*row.where.values(), *([box.low, box.high, box.middle] if box else [])]
        found += [float(x.replace(",", "")) for x in re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?", text)]
    return found


def test_what_the_readme_says_of_disk_offload_is_in_the_committed_table():
    said = " ".join(staged("README.md").split())
    results = staged("benchmarks/results/offload_throughput.md")
    table = results.partition("## steps")[2].partition("## equal-memory")[0].splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table if line.startswith(("| 1 x", "| 32 x"))]
    found = {(row[0], row[1]): row for row in rows}
    ratios = [found[f"{n} x 16", "accelerate"][8].split()[0] for n in (1, 32)]
    assert f"takes accelerate's disk_offload {float(ratios[0]):.1f} times as long" in said
    assert f"a step of 32 samples {float(ratios[1]):.1f} times" in said
    memory = [float(found[f"{n} x 16", arm][2].replace(",", "")) for n in (1, 32) for arm in ("accelerate", "labkit")]
    assert [round(memory[0] / memory[1]), round(memory[2] / memory[3])] == [2, 4]
    assert "with two and four times the memory" in said
