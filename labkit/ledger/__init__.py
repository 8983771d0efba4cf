"""What reports claim: ledgers, their audit, verdicts, and the sentences made of them."""

OLD = "recorded before cells were kept"
"""What is said of results that stand beside no cells."""
