"""The command line: parse, call, print. Exit code 0 is success, 1 a failed run or a contradiction, 2 bad input."""

from __future__ import annotations

import io
import logging
import os
import pkgutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from labkit import __version__
from labkit.base import yaml12

HELP = (
    "Rerun four research reports on your machine, and see which of their numbers hold here.\n\n"
    "Begin with `labkit plan REPORT` (what it would take) and `labkit run REPORT` (do it); `labkit status` says how "
    "far it is, `labkit claims` what came out. `make figures` runs all reports, `make lab` opens the notebooks."
)
EPILOG = "Exit code 0 is success, 1 a failed run or a contradiction, 2 bad input. More: README.md and docs/howto.md."
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=HELP, epilog=EPILOG)
evidence = typer.Typer(no_args_is_help=True, help="Check, sign and pack the evidence that published numbers stand on.")
app.add_typer(evidence, name="evidence")
# Paths and messages may hold square brackets, which are no markup. A log or a pipe has no width; tables need some.
console = Console(soft_wrap=True, highlight=False, markup=False, width=None if sys.stdout.isatty() else 200)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"labkit {__version__}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)]


@app.callback()
def _options(version: Version = False) -> None:
    """Take what is asked of labkit itself."""


def _known_profile(name: str) -> str:
    from labkit.workflow import params

    params.resolve("claims", name)
    return name


_REPORTS = [info.name for info in pkgutil.iter_modules([str(Path(__file__).with_name("reports"))]) if info.ispkg]
Report = Annotated[str, typer.Argument(help=f"A report: {', '.join(_REPORTS)}.")]
Hardware = Annotated[
    str, typer.Option("--hw", help="A hardware profile, a file in params/hardware.", callback=_known_profile)
]
Overrides = Annotated[
    list[str] | None, typer.Option("-p", "--param", help="key=value for this run only; the value is YAML 1.2.")
]
Fresh = Annotated[
    bool,
    typer.Option("--fresh", help="Leave committed cells aside: measure here what this kind of machine has on record."),
]
Anywhere = Annotated[
    bool,
    typer.Option(
        "--anywhere", help="Go on with cells that another processor computed, unless it is their time that is asked."
    ),
]
Track = Annotated[
    str | None, typer.Option("--track", help="Follow the run: aim, tensorboard, or none to switch the profile's off.")
]
Uncommitted = Annotated[
    bool,
    typer.Option("--uncommitted", help="Publish although no commit holds what makes the figures; marks the record."),
]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="With -p: publish over the profile's figures, not in runs/PROFILE/REPORT/custom."),
]


@app.command()
def run(
    report: Report,
    hw: Hardware = "cpu",
    param: Overrides = None,
    track: Track = None,
    fresh: Fresh = False,
    anywhere: Anywhere = False,
    uncommitted: Uncommitted = False,
    overwrite: Overwrite = False,
) -> None:
    """Execute a report's notebook and publish its figures under figures/PROFILE/REPORT.

    With -p the figures go to runs/PROFILE/REPORT/custom.
    """
    from labkit.workflow import run as runner
    from labkit.workflow.cells import ANYWHERE, FRESH

    os.environ |= {name: "1" for name, asked in ((FRESH, fresh), (ANYWHERE, anywhere)) if asked}

    try:
        runner.run(
            report, hw, _overrides(param), say=console.print, track=track, uncommitted=uncommitted, overwrite=overwrite
        )
    except KeyboardInterrupt:
        # asyncio would print the traceback of the interrupted cell below the one line that matters.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        sys.stderr.write(
            f"labkit: interrupted; published figures are as they were and finished cells are kept: run "
            f"`labkit run {report} --hw {hw}` again to go on\n"
        )
        raise typer.Exit(130) from None


@app.command()
def plan(report: Report, hw: Hardware = "cpu", param: Overrides = None) -> None:
    """Show what a run would take: cells, FLOPs, time, memory, disk."""
    from labkit.workflow import params
    from labkit.workflow import plan as planner

    resolved = params.resolve(report, hw, _overrides(param))
    console.print(planner.describe(resolved, planner.plan(resolved)))


@app.command()
def doctor(report: Report, hw: Hardware = "cpu") -> None:
    """Check everything a run needs: device, memory, disk, versions, text, weights."""
    from labkit.workflow import doctor as examiner
    from labkit.workflow import params
    from labkit.workflow import plan as planner

    resolved = params.resolve(report, hw)
    checks = examiner.doctor(resolved, planner.plan(resolved))
    for check in checks:
        verdict = Text("ok ", style="green") if check.ok else Text("BAD", style="red")
        console.print(verdict, f"{check.name}: {check.detail}")
    if not all(check.ok for check in checks):
        raise typer.Exit(2)


@app.command()
def new(name: Annotated[str, typer.Argument(help="Name of the report, such as my_report.")]) -> None:
    """Begin a report: write a folder, a notebook, parameters and a test that work, with a toy claim."""
    from labkit.workflow import skeleton

    for path in skeleton.new(name):
        console.print(f"wrote {path}")
    console.print(f"`make {name} HW=ci` runs it; `labkit evidence sign {name}.estimate` records its golden")


@app.command()
def params(report: Report, hw: Hardware = "cpu", param: Overrides = None) -> None:
    """Print the resolved parameters as YAML that plain `papermill -f` reads."""
    from labkit.workflow.params import resolve

    sys.stdout.write(yaml12.dumps(resolve(report, hw, _overrides(param)).model_dump()))


@app.command()
def claims(
    report: Annotated[str | None, typer.Argument(help="One report; all of them if left out.")] = None,
    hw: Hardware = "cpu",
    every: Annotated[bool, typer.Option("--all", help="Every number, not only the headlines.")] = False,
) -> None:
    """Say which of the reports' claims hold on a profile, each with what was measured and why."""
    from labkit.ledger import claims as ledger
    from labkit.workflow.judged import judge_profile

    judged = judge_profile(hw, report)
    main = ledger.headlines(judged)
    console.print(ledger.render(judged if every else main), soft_wrap=False)
    if not every:
        console.print(f"{ledger.decided(main)} of {len(main)} headlines are decided on {hw}. All numbers, with --all:")
    counts = judged["verdict"].value_counts()
    console.print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))


@app.command()
def audit(
    report: Annotated[str | None, typer.Argument(help="One report; all of them if left out.")] = None,
) -> None:
    """Recompute the reports' own derived figures; exit 1 if one contradicts its source."""
    from labkit.ledger import audit as auditor
    from labkit.ledger import claims as ledger

    findings = [finding for path in ledger.ledgers(report) for finding in auditor.audit(path)]
    table = Table(*(Column(name, overflow="fold") for name in ("claim", "kind", "reported", "recomputed")))
    colours = {"contradiction": "red", "rounding": "yellow", "consistent": "green"}
    for finding in findings:
        kind = Text(finding.kind, style=colours[finding.kind])
        table.add_row(finding.claim, kind, str(finding.reported), str(finding.recomputed))
    console.print(table, soft_wrap=False)
    bad = sum(finding.kind == "contradiction" for finding in findings)
    console.print(f"{len(findings)} derived figures recomputed, {bad} contradict their source")
    if bad:
        raise typer.Exit(1)


@app.command()
def render(report: Report, hw: Hardware = "cpu", uncommitted: Uncommitted = False) -> None:
    """Make a published profile's figures, tables and verdicts again from its cells on record, training nothing.

    Results recorded before cells were kept are judged again by the present rule and ledger; nothing else changes.
    """
    from labkit.workflow import run as runner

    runner.render(report, hw, say=console.print, uncommitted=uncommitted)


@evidence.command("check")
def evidence_check() -> None:
    """Hold every cell function's code against its version; run the goldens of those whose code changed."""
    from labkit.workflow import lock

    if not lock.check(say=console.print):
        raise typer.Exit(1)
    console.print("every cell function does what its version promises")


@evidence.command("sign")
def evidence_sign(
    names: Annotated[list[str] | None, typer.Argument(help="Cell functions; all of them if left out.")] = None,
) -> None:
    """Record the goldens of new cell functions and new versions, and this machine's rounding of the others."""
    from labkit.workflow import lock

    lock.sign(names, say=console.print)


@evidence.command("save")
def evidence_save(report: Report, hw: Hardware = "cpu") -> None:
    """Pack the finished cells of a report into figures/PROFILE/REPORT/cells.json.xz, also while a run is incomplete."""
    from labkit.workflow import params
    from labkit.workflow.evidence import save

    path, n = save(params.resolve(report, hw))
    console.print(f"{n} cells in {path}")


@app.command()
def status(hw: Hardware = "cpu") -> None:
    """Say what is running on a profile, how far it is, which cells have to run, and what is only to be rendered."""
    from labkit.workflow.freshness import states
    from labkit.workflow.watch import at_work

    for report, said in states(hw):
        console.print(f"{report}: {said}")
        if told := at_work(hw, report):
            console.print(f"  {told}")


@app.command()
def html(hw: Hardware = "cpu") -> None:
    """Write the executed notebooks as self-contained HTML under runs/PROFILE/html."""
    from labkit.workflow import html as report

    console.print(f"wrote {report.write_html(hw)}")


def _overrides(given: list[str] | None) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for item in given or []:
        key, separator, value = item.partition("=")
        if not separator:
            raise ValueError(f"-p {item}: expected key=value")
        values[key] = yaml12.loads(value, f"-p {item}")
    return values


def main() -> None:
    """Run the command line; user errors become one line on stderr and exit code 2."""
    _print_anywhere()
    try:
        app()
    except RuntimeError as error:
        # Here, because what a report needs takes longer to import than most commands take.
        from labkit.workflow.goldens import GoldenFailed
        from labkit.workflow.record import RunFailed

        if not isinstance(error, RunFailed | GoldenFailed):
            raise
        _fail(error, 1)
    except (ValueError, OSError) as error:
        _fail(error, 2)


def _print_anywhere() -> None:
    """Show a question mark for a character that a terminal or a pipe has none for, instead of ending without a word."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _fail(error: Exception, code: int) -> None:
    if os.environ.get("LABKIT_DEBUG"):
        raise error
    text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
    sys.stderr.write(f"labkit: {text}\n")
    raise SystemExit(code)


if __name__ == "__main__":
    main()
