"""What a notebook has where somebody sits before it: another profile by one choice, and edited code without a restart.

cfg, out_dir, show = lab.begin("my_report", globals())
lab.controls("my_report", globals())     # choose a profile, then run the cells below
"""

from __future__ import annotations

import html
import os
import sys
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from labkit.base import paths
from labkit.base.modes import rendering
from labkit.progress.faces import HEADLESS
from labkit.workflow import figures, params, record
from labkit.workflow.plan import describe, plan
from labkit.workflow.report import reports
from labkit.workflow.schema import Params

_CHOICE = "_chosen_profile"
"""Name in the notebook's namespace: what the parameters cell said when a profile was chosen, and that profile."""
_HOW = "Run \N{BLACK RIGHT-POINTING SMALL TRIANGLE} Run Selected Cell and All Below"


def begin(report: str, namespace: Mapping[str, Any]) -> tuple[Params, Path, Callable[..., Any]]:
    """Return a notebook's parameters, the folder it publishes to, and what it shows figures and tables with.

    Args:
        report: which report.
        namespace: the notebook's `globals()`; see `labkit.workflow.params.collect`.

    Raises:
        ValueError: a parameter is no such, or unknown.
    """
    chosen = params.collect(report, namespace)
    return (chosen, *_places(chosen))


def _places(chosen: Params) -> tuple[Path, Callable[..., Any]]:
    out_dir = paths.staging(chosen.hardware, chosen.report_id())
    return out_dir, figures.shower(out_dir, record.provenance(chosen))


class Controls:
    """A choice of the hardware profile that the cells below run on."""

    def __init__(self, report: str, namespace: MutableMapping[str, Any]) -> None:
        """Show the profile that the notebook has its parameters from.

        Args:
            report: which report.
            namespace: the notebook's `globals()`; a choice sets `hardware`, `cfg`, `out_dir` and `show`.
        """
        self._report, self._namespace = report, namespace
        self._stated = namespace["cfg"].model_dump()
        hardware = namespace["cfg"].hardware
        names = paths.profiles()
        self.choice = widgets.Dropdown(options=names, value=hardware if hardware in names else None)
        self.choice.description, self.choice.style.description_width = "hardware profile", "initial"
        self._words = widgets.HTML()
        choose = f"The cells below run on {hardware}. Choose another profile, then {_HOW}."
        self.text = f"{_about(namespace['cfg'])}\n{choose}"
        self._words.value = _paragraph(self.text)
        self.choice.observe(self._switch, names="value")
        self.widget = widgets.VBox([self.choice, self._words])
        self._keep(*namespace.get(_CHOICE, ({}, "")))

    def _keep(self, stated: dict[str, Any], chosen: str) -> None:
        """Choose again what was chosen in this kernel while the parameters cell said what it says now.

        "Run All" runs that cell, too; without this it would go back to its profile behind the reader's back. A cell
        that was edited since is what the reader wants.
        """
        if chosen in self.choice.options and stated == self._stated and chosen != self.choice.value:
            self.choice.value = chosen
            back = "To go back, choose another, edit the parameters, or restart the kernel"
            self.text = f"{chosen} was chosen before and is kept. {back}.\n{self.text}"
            self._words.value = _paragraph(self.text)

    def _switch(self, change: Any) -> None:
        """Set what the notebook's parameters cell and the cell after it have set."""
        chosen = params.resolve(self._report, change["new"])
        self._namespace[_CHOICE] = (self._stated, chosen.hardware)
        out_dir, show = _places(chosen)
        self._namespace.update(hardware=chosen.hardware, cfg=chosen, out_dir=out_dir, show=show)
        self.text = f"{_about(chosen)}\nThe cells below run on {chosen.hardware}: {_HOW}."
        self._words.value = _paragraph(self.text)

    def __str__(self) -> str:
        return self.text

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """Offer the widget first; a page without a kernel has the words."""
        own = self.widget._repr_mimebundle_(include=include, exclude=exclude)
        return {**(own or {}), "text/html": _paragraph(self.text), "text/plain": self.text}


def _about(chosen: Params) -> str:
    """Say what a run holds and takes, and what its numbers come from; a page made from its record takes nothing."""
    told = f"{chosen.report_id()} on {chosen.hardware}: {params.scale(chosen)} scale"
    if not (rendering() and reports()[chosen.report_id()].cost):
        told = describe(chosen, plan(chosen))
    return f"{told}\n{record.describe(record.provenance(chosen))}"


def controls(report: str, namespace: MutableMapping[str, Any]) -> Controls:
    """Return the choice of a profile, and let the kernel reload labkit's modules when they are edited.

    Args:
        report: which report.
        namespace: the notebook's `globals()`, in which `begin` has made `cfg`.
    """
    reload_edited_code()
    return Controls(report, namespace)


def reload_edited_code() -> None:
    """Have IPython reload edited modules before each cell; a headless run keeps the code that it began with."""
    if os.environ.get(HEADLESS) == "1" or "IPython" not in sys.modules:
        return
    from IPython import get_ipython

    shell = get_ipython()
    if shell is not None:
        shell.extension_manager.load_extension("autoreload")
        shell.run_line_magic("autoreload", "2")


def _paragraph(text: str) -> str:
    return f'<p style="white-space: pre-line">{html.escape(text)}</p>'
