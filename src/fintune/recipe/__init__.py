"""What a run is: YAML layers, tasks, flags, and what makes two runs the same."""
