"""HTTP: /metrics, /healthz and /readyz. Reads state, decides nothing."""
