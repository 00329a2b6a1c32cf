"""From words on the command line to a checked config; errors to one line and an exit status."""
