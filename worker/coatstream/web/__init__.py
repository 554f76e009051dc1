"""HTTP: /metrics and the probes. Reads state, decides nothing."""
