"""The command line: arguments to a checked config, errors to one line and an exit status."""
