"""The fault harness: real workers and real servers under kills, stalls, lost replies and outages; counts what became of each frame.

`python -m tests.faults` runs everything at full size and prints a table; the tests beside it run a quick size of each.
"""
