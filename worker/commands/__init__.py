"""What each command of the command line does. `worker.cli` parses and calls; nothing here parses."""
