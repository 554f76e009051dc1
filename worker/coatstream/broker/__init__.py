"""Redis: connections, the names of keys, checks before work, Lua scripts, the embedded server."""
