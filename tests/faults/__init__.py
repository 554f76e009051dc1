"""The fault harness: real workers and servers under kills, stalls, lost replies and outages; each frame is counted.

`python -m tests.faults` runs everything at full size and prints a table; the tests beside it run a quick size of each.
"""
