"""Parameters: every way a wrong value can slip in is refused with a message that names it.

The reference is the YAML 1.2 core schema (section 10.3.2 of the specification) and, for the layers, the rule that a
profile may only shrink a report's scope.
"""

import re
import subprocess
import sys

import pytest

from labkit.base import paths, yaml12
from labkit.base.scale import Scale
from labkit.workflow import params
from labkit.workflow.report import reports
from labkit.workflow.schema import Layer


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A copy of params/ and notebooks/ that a test may edit."""
    for folder in ("params", "notebooks"):
        source = paths.root() / folder
        for path in source.rglob("*"):
            if path.is_file() and "checkpoint" not in str(path):
                target = tmp_path / folder / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
    monkeypatch.setenv("LABKIT_ROOT", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("1e-5", 1e-5), ("5e-7", 5e-7), ("1e5", 1e5), (".5", 0.5), ("1.", 1.0), ("1:30", "1:30"), ("010", 10)],
        *[("0o10", 8), ("0x10", 16), ("on", "on"), ("yes", "yes"), ("true", True), ("~", None)],
        ("2024-01-01", "2024-01-01"),
    ],
)
def test_scalars_follow_yaml_1_2(text, value):
    got = yaml12.loads(f"x: {text}")["x"]
    assert got == value
    assert type(got) is type(value)


def test_a_key_given_twice_is_refused_with_its_line():
    with pytest.raises(ValueError, match=r"file\.yaml, line 2: key 'a' is given twice"):
        yaml12.loads("a: 1\na: 2", "file.yaml")


@pytest.mark.parametrize(
    "value", [1e-5, 5e-7, 1e22, "1e-5", "on", "1:30", "010", "", "a: b", "null", [1, 2.5], None, True]
)
def test_dumped_yaml_reads_back_equal_under_1_1_and_1_2(value):
    import yaml

    text = yaml12.dumps({"x": value})
    assert yaml12.loads(text) == {"x": value}
    assert yaml.safe_load(text) == {"x": value}


@pytest.mark.parametrize("hardware", paths.profiles())
@pytest.mark.parametrize("report", sorted(reports()))
def test_every_report_resolves_on_every_profile(report, hardware):
    resolved = params.resolve(report, hardware)
    assert resolved.hardware == hardware


def test_the_named_profiles_exist():
    assert set(paths.profiles()) >= {"ci", "cpu", "cpu-24gb", "gtx1650", "rtx5080", "jetson-thor", "h100"}


@pytest.mark.parametrize("hardware", ["h100", "rtx5080"])
def test_large_cards_hold_the_reports_whole_grid(hardware):
    grid = params.resolve("scaling_grid", hardware)
    assert (grid.d_model, grid.n_layers, grid.epochs) == ([64, 128, 256, 512], [4, 8, 12, 16], 5)
    assert grid.corpus == "wikitext-2"
    assert params.scale(grid) is Scale.STATED


def test_scale_is_derived_from_the_files_and_the_overrides():
    assert params.scale(params.resolve("scaling_grid", "ci")) is Scale.SMOKE
    assert params.scale(params.resolve("scaling_grid", "cpu")) is Scale.REDUCED
    assert params.scale(params.resolve("scaling_grid", "cpu", {"grad_clip": 0.5})) is Scale.CUSTOM


def test_a_science_value_is_the_same_on_every_profile():
    model = reports()["scaling_grid"].params
    science = {name for name in model.model_fields if model.layer(name) is Layer.SCIENCE}
    seen = [params.resolve("scaling_grid", hardware).model_dump(include=science) for hardware in paths.profiles()]
    assert science
    assert all(values == seen[0] for values in seen)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("    d_modle: [64]", r"ci\.yaml: unknown key 'd_modle'; did you mean 'd_model'"),
        ("    grad_clip: 0.5", r"ci\.yaml: grad_clip is part of the science of scaling_grid"),
        ("    epochs: '1e-5'", r"ci\.yaml: epochs: .*'1e-5' as text: write 1e-5 without quotes"),
        ("    n_layers: [32]", r"ci\.yaml: n_layers = \[32\] goes beyond the report's \[4, 8, 12, 16\]"),
        ("    seeds: []", r"seeds must list at least one value"),
        ("    corpus: ptb", r"ci\.yaml: corpus: Input should be 'wikitext-2' or 'wiki-sample'"),
    ],
)
def test_a_wrong_profile_line_is_refused_by_name(clone, line, message):
    path = clone / "params" / "hardware" / "ci.yaml"
    key = line.split(":")[0].strip()
    lines = [each for each in path.read_text().splitlines() if each.split(":")[0].strip() != key]
    path.write_text("\n".join([*lines, line]) + "\n")
    with pytest.raises(ValueError, match=message):
        params.resolve("scaling_grid", "ci")


def test_an_unknown_machine_key_is_refused_by_name(clone):
    path = clone / "params" / "hardware" / "ci.yaml"
    path.write_text(path.read_text().replace("threads:", "thread:"))
    with pytest.raises(ValueError, match=r"ci\.yaml: unknown key 'thread'; did you mean 'threads'"):
        params.resolve("scaling_grid", "ci")


def test_unknown_names_offer_the_nearest():
    with pytest.raises(ValueError, match="unknown report 'scaling_gird'; did you mean 'scaling_grid'"):
        params.resolve("scaling_gird", "ci")
    with pytest.raises(ValueError, match="unknown hardware profile 'h10'; did you mean 'h100'"):
        params.resolve("scaling_grid", "h10")
    with pytest.raises(ValueError, match="-p: unknown key 'dropuot'; did you mean 'dropout'"):
        params.resolve("scaling_grid", "ci", {"dropuot": 0.1})


def test_a_whole_number_is_a_float_where_a_float_is_meant_and_nothing_else_is_converted():
    whole, real = (params.resolve("scaling_grid", "ci", {"epochs": value}) for value in (1, 1.0))
    assert whole.model_dump_json() == real.model_dump_json()
    for value in (True, "3", 3.0):
        with pytest.raises(ValueError, match="-p: context"):
            params.resolve("scaling_grid", "ci", {"context": value})


def test_collect_reads_the_notebooks_variables_back():
    resolved = params.resolve("scaling_grid", "ci")
    assert params.collect("scaling_grid", resolved.model_dump()) == resolved


def test_a_notebook_has_its_profiles_values_and_its_own_in_their_place():
    assert params.collect("scaling_grid", {"hardware": "cpu"}) == params.resolve("scaling_grid", "cpu")
    own = params.collect("scaling_grid", {"hardware": "cpu", "seeds": [7], "unrelated": 3})
    assert own == params.resolve("scaling_grid", "cpu", {"seeds": [7]})
    assert params.given(own) == {"hardware": "cpu", "seeds": [7]}
    assert params.scale(own) == "custom"
    with pytest.raises(ValueError, match=r"'cpv'.*did you mean 'cpu'"):
        params.collect("scaling_grid", {"hardware": "cpv"})


def test_a_machine_without_a_profile_runs_on_what_it_is_given_in_full():
    values = params.resolve("scaling_grid", "cpu").model_dump() | {"hardware": "elsewhere"}
    assert params.collect("scaling_grid", values).hardware == "elsewhere"


def test_the_table_names_what_a_run_holds_less_of():
    shown = params.table(params.resolve("scaling_grid", "ci")).set_index("parameter")
    assert shown.loc["d_model", "here"] == [16, 32]
    assert shown.loc["d_model", "the report's scale"] == params.stated_scope("scaling_grid")["d_model"]
    assert shown["meaning"].str.len().min() > 10
    assert "hardware" not in shown.index


def test_collect_refuses_text_missing_and_unknown_injected_names():
    values = params.resolve("scaling_grid", "ci").model_dump()
    with pytest.raises(ValueError, match=r"epochs: .*as text"):
        params.collect("scaling_grid", values | {"epochs": "1e-5"})
    with pytest.raises(ValueError, match="does not set hardware, the name of the profile"):
        params.collect("scaling_grid", {k: v for k, v in values.items() if k != "hardware"})
    with pytest.raises(ValueError, match="does not set hardware"):
        params.collect("scaling_grid", values | {"hardware": 3})
    with pytest.raises(ValueError, match="injected-parameters: unknown key 'epocks'; did you mean 'epochs'"):
        params.collect("scaling_grid", values | {"In": ["", "# Parameters\nepocks = 5\n"]})


def test_the_command_line_exits_with_2_and_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "labkit.cli", "params", "scaling_grid", "--hw", "ci", "-p", "epochs='1e-5'"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("labkit: -p: epochs:")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: {{ MEMORY }}", r"file\.yaml, line 2: a mapping or a list as a key, as in a template"),
        ("a: {[1]: 2}", r"file\.yaml, line 1: a mapping or a list as a key"),
        ("? {b: 1}\n: 2", r"file\.yaml, line 1: a mapping or a list as a key"),
        ("a: {% MEMORY %}", r"file\.yaml, line 1: "),
        ("a: !!int eight", r"file\.yaml: invalid literal"),
        ("a: " + "9" * 5000, r"file\.yaml: Exceeds the limit"),
        ("a: " + "[" * 3000 + "]" * 3000, r"file\.yaml: maximum recursion depth"),
    ],
    ids=["template", "list as key", "mapping as key", "block of a template", "tag", "digits", "depth"],
)
def test_whatever_cannot_be_read_names_the_file(text, message):
    with pytest.raises(ValueError, match=message):
        yaml12.loads(text, "file.yaml")


@pytest.mark.parametrize(
    ("report", "asked", "message"),
    [
        ("scaling_grid", {"seeds": []}, "-p: seeds must list at least one value, none of them twice; got []"),
        ("scaling_grid", {"seeds": [0, 0]}, "-p: seeds must list at least one value, none of them twice; got [0, 0]"),
        ("size_inertia", {"control_models": ["phi-2"], "models": ["gpt2"]}, "-p: control_models names phi-2"),
        ("predict_phase", {"budgets": [1.0, 0.5]}, "-p: budgets must grow and end with 1; got [1.0, 0.5]"),
        ("chunked_offload", {"batch_sizes": [2, 1]}, "-p: batch_sizes must begin with 1 and grow; got [2, 1]"),
        ("scaling_grid", {"hardware": "h100"}, "-p hardware: a profile is named with --hw h100"),
        ("scaling_grid", {"epochs": 10**400}, "-p: epochs: "),
        ("scaling_grid", {"seeds": ["a"]}, "-p: seeds: "),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_other_values_is_blamed_on_who_asked_for_it(report, asked, message):
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        params.resolve(report, "ci", asked)
    assert "\n" not in str(refused.value)
    assert "'vocab_size'" not in str(refused.value), "no list of all parameters"


def test_a_profile_is_blamed_for_its_own_list(clone):
    path = clone / "params" / "hardware" / "ci.yaml"
    lines = [line for line in path.read_text().splitlines() if line.split(":")[0].strip() != "seeds"]
    path.write_text("\n".join([*lines, "    seeds: []"]) + "\n")
    with pytest.raises(ValueError, match=r"ci\.yaml: seeds must list at least one value"):
        params.resolve("scaling_grid", "ci", {"dropout": 0.1})


def test_a_profile_with_another_kind_of_list_is_refused_by_name(clone):
    path = clone / "params" / "hardware" / "ci.yaml"
    lines = [line for line in path.read_text().splitlines() if line.split(":")[0].strip() != "mixers"]
    path.write_text("\n".join([*lines, "    corpus: [1]"]) + "\n")
    with pytest.raises(ValueError, match=r"ci\.yaml"):
        params.resolve("scaling_grid", "ci")
