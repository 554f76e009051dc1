"""The engine: a classifier behind one protocol, whichever library runs it."""
