"""The command line: exit codes, one-line errors, and output that a person or papermill can use.

What papermill reads is checked with its own loader. Commands run in this process through `main`, apart from one real
start.
"""

import io
import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from papermill.iorw import read_yaml_file
from rich.console import Console

from labkit import cli
from labkit.base import paths
from labkit.ledger import audit, claims
from labkit.workflow import params
from labkit.workflow.judged import judge_profile
from labkit.workflow.report import reports

REPOSITORY = paths.root()


@pytest.fixture
def labkit(tmp_path, monkeypatch, capsys):
    """Run one command; returns its exit code, stdout and stderr. Outputs go to an empty folder."""
    monkeypatch.setenv("LABKIT_OUTPUT", str(tmp_path / "output"))

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["labkit", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        printed = capsys.readouterr()
        return left.value.code, printed.out, printed.err

    return call


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "scaling_gird"], "unknown report 'scaling_gird'; did you mean 'scaling_grid'?"),
        (["run", "claims", "--hw", "h10"], "unknown hardware profile 'h10'; did you mean 'h100'?"),
        (["claims", "--hw", "h10"], "unknown hardware profile 'h10'; did you mean 'h100'?"),
        (["status", "--hw", "h10"], "unknown hardware profile 'h10'; did you mean 'h100'?"),
        (["html", "--hw", "h10"], "unknown hardware profile 'h10'; did you mean 'h100'?"),
        (["plan", "scaling_grid", "-p", "epochs"], "-p epochs: expected key=value"),
        (["plan", "scaling_grid", "-p", "epoch=1"], "-p: unknown key 'epoch'; did you mean 'epochs'?"),
        (["plan", "scaling_grid", "-p", "seeds=[0"], "-p seeds=[0, line 1: "),
        (["run", "scaling_grid", "-p", "context='1e3'"], "-p: context: Input should be a valid integer"),
        (["audit", "scaling"], "no ledger 'scaling' in "),
    ],
)
def test_bad_input_exits_with_2_and_one_line_that_names_it(labkit, arguments, message):
    code, out, err = labkit(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"labkit: {message}")
    assert err.count("\n") == 1


def test_an_unknown_command_or_option_exits_with_2(labkit):
    assert labkit("runn", "claims")[0] == 2
    assert labkit("run", "claims", "--hardware", "ci")[0] == 2


def test_a_file_that_cannot_be_written_is_named_in_one_line(labkit, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LABKIT_OUTPUT", str(tmp_path / "file"))
    code, _, err = labkit("run", "claims", "--hw", "ci")
    assert code == 2
    assert err == f"labkit: output folder: {tmp_path / 'file'} is no writable folder; set LABKIT_OUTPUT to one\n"


def test_a_file_that_is_missing_is_named_in_one_line(labkit, tmp_path, monkeypatch):
    shutil.copytree(REPOSITORY / "params" / "hardware", tmp_path / "params" / "hardware")
    monkeypatch.setenv("LABKIT_ROOT", str(tmp_path))
    expected = f"labkit: {tmp_path / 'params' / 'claims.yaml'}: No such file or directory\n"
    assert labkit("params", "claims", "--hw", "ci") == (2, "", expected)


def test_a_notebook_that_raises_exits_with_1_and_no_traceback(labkit, tmp_path, monkeypatch):
    shutil.copytree(REPOSITORY / "params", tmp_path / "clone" / "params")
    (tmp_path / "clone" / "notebooks").mkdir()
    notebook = (REPOSITORY / "notebooks" / "00_claims.ipynb").read_text()
    broken = notebook.replace("from labkit.workflow.judged import judge_profile", "1 / 0")
    assert broken != notebook
    (tmp_path / "clone" / "notebooks" / "00_claims.ipynb").write_text(broken)
    monkeypatch.setenv("LABKIT_ROOT", str(tmp_path / "clone"))
    code, out, err = labkit("run", "claims", "--hw", "ci")
    assert code == 1
    assert out.startswith("claims on ci: ")
    assert "labkit: cell [4] of claims raised ZeroDivisionError: division by zero\nsee " in err
    assert "Traceback" not in err


def test_a_real_start_prints_one_line_and_its_traceback_only_when_asked():
    arguments = [sys.executable, "-m", "labkit.cli", "params", "scaling_gird"]
    plain = subprocess.run(arguments, capture_output=True, text=True)
    assert (plain.returncode, plain.stdout) == (2, "")
    assert plain.stderr == "labkit: unknown report 'scaling_gird'; did you mean 'scaling_grid'?\n"
    debug = subprocess.run(arguments, capture_output=True, text=True, env=os.environ | {"LABKIT_DEBUG": "1"})
    assert debug.returncode != 0
    assert "Traceback" in debug.stderr
    assert "ValueError: unknown report 'scaling_gird'" in debug.stderr


@pytest.mark.parametrize("hardware", paths.profiles())
@pytest.mark.parametrize("report", sorted(reports()))
def test_printed_parameters_are_what_plain_papermill_reads(labkit, tmp_path, report, hardware):
    code, out, _ = labkit("params", report, "--hw", hardware)
    file = tmp_path / "params.yaml"
    file.write_text(out)
    assert code == 0
    assert read_yaml_file(str(file)) == yaml.safe_load(out) == params.resolve(report, hardware).model_dump()


def test_overrides_are_read_as_yaml_1_2_and_printed_so_that_1_1_reads_the_same(labkit):
    out = labkit("params", "scaling_grid", "-p", "dropout=1e-5", "-p", "seeds=[0, 1]", "-p", "n_layers=[0o10]")[1]
    values = yaml.safe_load(out)
    assert (values["dropout"], values["seeds"], values["n_layers"]) == (1e-5, [0, 1], [8])


def test_plan_says_models_work_time_memory_and_where_the_rate_comes_from(labkit):
    code, out, _ = labkit("plan", "scaling_grid", "--hw", "ci")
    assert code == 0
    for part in (
        r"smoke scale, cpu",
        r"\d+ cells \(models trained\), \S+ tokens, \S+ TFLOP",
        r"about .* at .* GFLOP/s \(measured on 3 steps",
    ):
        assert re.search(part, out)
    assert re.search(r"up to \S+ [MG]iB of memory, \S+ [MG]iB of disk", out)
    assert labkit("plan", "claims", "--hw", "ci")[1].endswith("reads published results, trains nothing\n")


def test_plan_writes_nothing(labkit, tmp_path):
    labkit("plan", "claims", "--hw", "ci")
    labkit("doctor", "claims", "--hw", "ci")
    labkit("status", "--hw", "ci")
    assert not (tmp_path / "output").exists()


def test_doctor_lists_its_checks_and_exits_with_2_if_one_is_bad(labkit, tmp_path, monkeypatch):
    code, out, _ = labkit("doctor", "claims", "--hw", "ci")
    assert code == 0
    checks = dict(line.removeprefix("ok  ").split(": ", 1) for line in out.splitlines() if line.startswith("ok  "))
    assert list(checks) == ["device", "disk", "output folder", "versions"]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LABKIT_OUTPUT", str(tmp_path / "file" / "below"))
    code, out, _ = labkit("doctor", "claims", "--hw", "ci")
    assert code == 2
    assert f"BAD output folder: {tmp_path / 'file'} is no writable folder; set LABKIT_OUTPUT to one" in out


def test_paths_are_printed_as_they_are(labkit, tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_OUTPUT", str(tmp_path / "[red]output"))
    assert f"{tmp_path}/[red]output is writable" in labkit("doctor", "claims", "--hw", "ci")[1]


def test_status_says_of_each_report_which_cells_have_to_run(labkit):
    code, out, error = labkit("status", "--hw", "ci")
    said = dict(line.split(": ", 1) for line in out.splitlines())
    assert (code, error, list(said)) == (0, "", paths.reports())
    assert said.pop("claims") == "rendering out of date, seconds to make: never run here"
    for report, state in said.items():
        assert re.fullmatch(r"must run, 0 cells are on record: \d+ cells are missing", state), report


def test_claims_lists_every_row_whole_and_counts_every_verdict(labkit):
    code, out, _ = labkit("claims", "--hw", "ci", "--all")
    rows = claims.load()
    assert code == 0
    assert [row.id for row in rows if row.id not in out] == []
    counted = dict(reversed(part.split(" ", 1)) for part in out.splitlines()[-1].split(", "))
    assert set(counted) <= set(map(str, claims.Verdict))
    assert sum(map(int, counted.values())) == len(rows)


def test_claims_lead_with_the_headlines_and_say_how_many_are_decided(labkit):
    code, out, _ = labkit("claims", "--hw", "ci")
    main = claims.headlines(judge_profile("ci"))
    assert code == 0
    assert [name for name in main["claim"] if name not in out] == []
    assert f"{claims.decided(main)} of {len(main)} headlines are decided on ci" in out


def test_a_narrow_terminal_cuts_no_word_of_the_claims():
    screen = Console(width=80, file=io.StringIO())
    screen.print(claims.render(claims.judge(paths.output_root(), report="scaling_grid")))
    assert "…" not in screen.file.getvalue()


def test_audit_lists_every_finding_whole_and_exits_with_1_for_a_contradiction(labkit):
    code, out, _ = labkit("audit", "scaling_grid")
    findings = audit.audit(claims.ledgers("scaling_grid")[0])
    bad = [finding for finding in findings if finding.kind == "contradiction"]
    assert [finding.claim for finding in findings if finding.claim not in out] == []
    assert out.endswith(f"{len(findings)} derived figures recomputed, {len(bad)} contradict their source\n")
    assert code == bool(bad)


def test_a_template_left_in_a_profile_is_one_line(labkit, tmp_path, monkeypatch):
    shutil.copytree(REPOSITORY / "params", tmp_path / "params")
    file = tmp_path / "params" / "hardware" / "ci.yaml"
    file.write_text(re.sub(r"memory_gib: .*", "memory_gib: {{ MEMORY }}", file.read_text()))
    monkeypatch.setenv("LABKIT_ROOT", str(tmp_path))
    code, out, err = labkit("params", "claims", "--hw", "ci")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.match(rf"labkit: {file}, line \d+: a mapping or a list as a key, as in a template", err)


@pytest.mark.parametrize(
    ("encoding", "command"),
    [
        ("ascii", ["claims", "scaling_grid", "--hw", "ci", "--all"]),
        ("latin-1", ["audit", "size_inertia"]),
        ("cp437", ["audit", "predict_phase"]),
    ],
)
def test_a_pipe_that_is_not_utf_8_gets_its_text(encoding, command, tmp_path):
    start = [sys.executable, "-m", "labkit.cli", *command]
    own = os.environ | {"LABKIT_OUTPUT": str(tmp_path)}
    done, wide = (
        subprocess.run(start, capture_output=True, env=own | {"PYTHONIOENCODING": name}) for name in (encoding, "utf-8")
    )
    assert done.stderr == b""
    assert done.returncode == wide.returncode
    assert len(done.stdout.decode(encoding).splitlines()) == len(wide.stdout.decode().splitlines())
    assert len(done.stdout) > 0.8 * len(wide.stdout.decode())


def test_an_error_that_a_terminal_cannot_spell_is_shown_all_the_same(tmp_path):
    start = [sys.executable, "-m", "labkit.cli", "plan", "größe"]
    done = subprocess.run(start, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 2
    assert done.stderr.startswith(b"labkit: unknown report 'gr??e'")


def test_the_version_is_told(labkit):
    from labkit import __version__

    assert labkit("--version") == (0, f"labkit {__version__}\n", "")
    assert "--version" in labkit("--help")[1]
    assert "Rerun four research reports" in labkit("--help")[1], "it takes nothing from the help"


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[1]", b"{}"], ids=["cut", "no text", "a list", "empty"])
@pytest.mark.parametrize(
    ("report", "name", "command"), [("scaling_grid", "results.json", "claims"), ("claims", "run.json", "status")]
)
def test_a_damaged_record_is_named_in_one_line(labkit, tmp_path, report, name, command, content):
    file = tmp_path / "output" / "figures" / "ci" / report / name
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    code, _, err = labkit(command, "--hw", "ci")
    assert (code, err.count("\n")) == (2, 1)
    assert str(file) in err
