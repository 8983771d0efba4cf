"""The parameters of the notebook of all claims."""

from __future__ import annotations

from labkit.workflow.schema import Params


class Claims(Params):
    """The ledger notebook: it only reads what other reports have published for the profile."""

    report = "claims"
