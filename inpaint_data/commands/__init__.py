"""What a person runs and looks at: a file for each command, of its name."""
