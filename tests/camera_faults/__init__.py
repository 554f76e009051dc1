"""The camera harness: real workers, a real server and many real RTSP cameras that break, freeze and come back.

`python -m tests.camera_faults` runs everything at full size and prints each figure beside its bar; the tests beside it
run a quick size of each. It is a black box: it knows the settings, the command line, the streams, /metrics and /proc.
Labels under three times too much work are measured by python -m bench overload.
"""
