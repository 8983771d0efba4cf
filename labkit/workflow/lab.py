"""What a notebook has where somebody sits before it: another profile by one choice, and edited code without a restart.

cfg = params.collect("my_report", globals())
lab.controls("my_report", globals())     # choose a profile, then run the cells below
"""

from __future__ import annotations

import html
import os
import sys
from collections.abc import MutableMapping
from typing import Any

import ipywidgets as widgets

from labkit.base import paths
from labkit.progress.faces import HEADLESS
from labkit.workflow import params
from labkit.workflow.plan import describe, plan

_CHOICE = "_chosen_profile"
"""Name in the notebook's namespace: what the parameters cell said when a profile was chosen, and that profile."""
_HOW = "Run \N{BLACK RIGHT-POINTING SMALL TRIANGLE} Run Selected Cell and All Below"


class Controls:
    """A choice of the hardware profile that the cells below run on."""

    def __init__(self, report: str, namespace: MutableMapping[str, Any]) -> None:
        """Show the profile that the notebook has its parameters from.

        Args:
            report: which report.
            namespace: the notebook's `globals()`; a choice sets `hardware`, `cfg` and `out_dir`.
        """
        self._report, self._namespace = report, namespace
        self._stated = namespace["cfg"].model_dump()
        hardware = namespace["cfg"].hardware
        names = paths.profiles()
        self.choice = widgets.Dropdown(options=names, value=hardware if hardware in names else None)
        self.choice.description, self.choice.style.description_width = "hardware profile", "initial"
        self._words = widgets.HTML()
        self.text = f"The cells below run on {hardware}. Choose another profile, then {_HOW}."
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
        self._namespace.update(
            hardware=chosen.hardware, cfg=chosen, out_dir=paths.staging(chosen.hardware, self._report)
        )
        self.text = f"{describe(chosen, plan(chosen))}\nThe cells below run on {chosen.hardware}: {_HOW}."
        self._words.value = _paragraph(self.text)

    def __str__(self) -> str:
        return self.text

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """Offer the widget first; a page without a kernel has the words."""
        own = self.widget._repr_mimebundle_(include=include, exclude=exclude)
        return {**(own or {}), "text/html": _paragraph(self.text), "text/plain": self.text}


def controls(report: str, namespace: MutableMapping[str, Any]) -> Controls:
    """Return the choice of a profile, and let the kernel reload labkit's modules when they are edited.

    Args:
        report: which report.
        namespace: the notebook's `globals()`, in which `params.collect` has made `cfg`.
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
