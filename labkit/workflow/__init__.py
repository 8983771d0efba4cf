"""What every report's run has in common: cells, what they are bound to, whether they still stand."""
