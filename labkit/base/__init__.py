"""What every room builds on: files, paths, units, strict YAML, worker processes; none of it knows a model."""
