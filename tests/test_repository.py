"""The repository speaks of itself alone, and its front page says only what was measured.

Checked against the tracked files, the lock and the published figures of profile `cpu`. What the front page says of
figures is compared as git holds both: whoever runs `make figures` gets numbers of their own, and the page still speaks
of those it was published with.
"""

import io
import json
import re
import subprocess

import pandas as pd
import yaml

from labkit import audit, claims, paths
from labkit.hybrid import protocol

ROOT = paths.root()


def staged(path: str) -> str:
    """Return a file as it is staged, which is as it was committed if nothing was added since."""
    shown = ["git", "show", f":{path}"]
    return subprocess.run(shown, cwd=ROOT, capture_output=True, text=True, check=True).stdout


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
    assert {re.split(r"[><=]", each)[0] for each in wanted} <= pinned
    assert "torch==2.13.0" in lines


def test_conda_installs_against_the_same_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    assert pip == ["-c constraints.txt", "-e .[dev,lab,track]"]
    assert "conda-forge" in environment["channels"]


def test_the_readmes_table_is_the_published_one():
    readme = staged("README.md")
    table = readme.split("<!-- verdicts:begin -->")[1].split("<!-- verdicts:end -->")[0]
    shown = {row[0].strip(): int(row[1]) for row in re.findall(r"\| ([a-z ]+) \| (\d+) \|", table)}
    published = staged_table("figures/cpu/claims/verdicts.csv")
    assert shown == dict(zip(published["verdict"], published["claims"], strict=True))


def test_what_is_published_for_cpu_judges_as_published():
    judged = claims.judge(ROOT / "figures" / "cpu")
    published = pd.read_csv(ROOT / "figures" / "cpu" / "claims" / "claims.csv", keep_default_na=False)
    assert judged["verdict"].tolist() == published["verdict"].tolist()


def test_every_picture_and_page_the_readme_names_is_there():
    readme = staged("README.md")
    for target in re.findall(r"\]\(([^)#]+)\)", readme):
        assert (ROOT / target).exists(), target


def test_the_readmes_held_out_counts_are_the_published_ones():
    readme = " ".join(staged("README.md").split())
    table = staged_table("figures/cpu-24gb/size_inertia/held_out.csv")
    after = table[table["arm"].str.startswith("report's schedule, 75")]
    words = table.loc[table["model"] == "words alone", "correct"].item()
    assert f"on {' and '.join(map(str, after['correct']))} of {after['n'].max()} held-out pairs" in readme
    assert f"a bag of words without any model gets {words}" in readme
    template = table.loc[table["arm"] == "template negatives"].iloc[0]
    assert template["low"] < 0.5 < template["high"]
    assert f"training loss {template['training loss']:.4f}" in readme
    shuffled = table.loc[table["arm"] == "shuffled labels"].iloc[0]
    assert shuffled["low"] < 0.5 < shuffled["high"]
    assert f"(five shuffles, {shuffled['correct']} of {shuffled['n']})" in readme


def test_what_the_readme_says_the_audit_finds_is_what_it_finds():
    readme = " ".join(staged("README.md").split())
    found = audit.audit(claims.ledgers("size_inertia")[0])
    middle = {f.claim: (f.recomputed.low + f.recomputed.high) / 2 for f in found if f.kind == "contradiction"}
    assert f"5.46x is {middle['inertia.phi_2.size_ratio']:.2f}x" in readme
    assert f"3.42x is {middle['inertia.inference.ratio_full_length']:.2f}x" in readme
    assert f"122 GB and {middle['inertia.hardware.ram']:.1f} GB are one memory" in readme


def test_what_the_readme_says_of_routing_is_in_the_published_matrix():
    readme = " ".join(staged("README.md").split())
    assert "the smaller one is not even cheaper per query, because it writes more" in readme
    matrix = staged_table("figures/cpu-24gb/size_inertia/matrix.csv")
    mean = matrix.groupby("model")[["seconds", "tokens_out"]].mean()
    assert (mean.loc["smollm2-135m"] > mean.loc["gemma-3-270m"]).all()


def test_what_the_readme_says_of_streaming_is_what_was_published():
    readme = " ".join(staged("README.md").split())
    found = json.loads(staged("figures/cpu/chunked_offload/results.json"))["results"]
    gain = found["speedup/batch_32"]
    low, high = gain["ci"]
    assert f"costs a sample {gain['value']:.1f} times less than a step of one [{low:.1f}, {high:.1f}]" in readme
    assert f"has {found['parameters/phi-4']['value'] / 1e9:.2f}B parameters" in readme
    apart = staged_table("figures/cpu/chunked_offload/learning.csv")
    both = apart.pivot_table(index=["arm", "step"], columns="kind", values="loss")
    assert ((both["streamed"] - both["resident"]).abs() / both["resident"]).max() < 1e-5


def test_what_the_readme_says_of_prediction_is_what_was_published():
    readme = " ".join(staged("README.md").split())
    hybrid = json.loads(staged("figures/cpu/predict_phase/results.json"))["results"]["equal_loss_speed/hybrid"]
    low, high = hybrid["ci"]
    assert f"the hybrid runs at {hybrid['value']:.2f} [{low:.2f}, {high:.2f}] times the baseline's speed" in readme
    arms = staged_table("figures/cpu/predict_phase/judgements.csv").set_index("arm")
    assert f"Muon, runs at {arms.loc['muon', 'speed at equal loss']}," in readme
    said = arms["may be said"]
    assert not said.str.contains("faster").any(), "three seeds are too few, as the README says"
    longer = staged_table("figures/cpu-24gb/predict_phase/judgements.csv").set_index("arm")
    speeds = longer["speed at equal loss"]
    assert f"Muon is {speeds['muon']} times as fast, with jumps {speeds['muon-block-trend']}, jumps alone" in readme
    assert f"jumps alone {speeds['block-trend']}." in readme
    faster = longer["may be said"].str.contains("faster")
    assert set(faster[faster].index) == {"muon", "muon-block-trend"}
    assert not longer["may be said"].str.contains("due to prediction").any()
    tuned = protocol.judge(staged_table("figures/cpu-24gb/predict_phase/finetune_runs.csv"))
    repeated = next(own for own in tuned if own.arm == "last-update")
    assert f"repeating the last update runs at {repeated.reach}." in readme
    own = json.loads(staged("figures/cpu-24gb/predict_phase/results.json"))["results"]
    ratio, equal = (own[key]["value"] for key in ("time_ratio/original", "equal_loss_speed/original"))
    assert f"takes {ratio:.2f} times less time for as many steps and runs at {equal:.2f} times the speed" in readme
    runs = staged_table("figures/cpu/predict_phase/runs.csv")
    assert runs["seed"].nunique() == 3
    assert runs.loc[runs["arm"] == "block-trend", "jumps"].sum() == 0, "the gate believes no jump, as the README says"


def test_what_the_readme_says_of_disk_offload_is_in_the_committed_table():
    readme = " ".join(staged("README.md").split())
    text = staged("benchmarks/results/offload_throughput.md")
    table = text.partition("## steps")[2].partition("## equal-memory")[0].splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table if line.startswith(("| 1 x", "| 32 x"))]
    found = {(row[0], row[1]): row for row in rows}
    ratios = [found[f"{n} x 16", "accelerate"][8].split()[0] for n in (1, 32)]
    assert f"takes accelerate's disk_offload {float(ratios[0]):.1f} times as long" in readme
    assert f"a step of 32 samples {float(ratios[1]):.1f} times" in readme
    memory = [float(found[f"{n} x 16", arm][2].replace(",", "")) for n in (1, 32) for arm in ("accelerate", "labkit")]
    assert [round(memory[0] / memory[1]), round(memory[2] / memory[3])] == [2, 4]
    assert "with two and four times the memory" in readme
