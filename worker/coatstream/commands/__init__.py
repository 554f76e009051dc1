"""What each command of the command line does. `coatstream.cli` parses and calls; nothing here parses."""
