"""The `hanmaru` command: each subcommand imports its own package, when it is called."""
