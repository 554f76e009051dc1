"""This worker's part in the fleet: leases, the registry of cameras, and the thread that keeps both."""
