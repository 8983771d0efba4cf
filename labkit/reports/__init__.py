"""Reports retold, one folder each; `labkit.workflow.report` finds them."""
