"""Redis: connections, the scripts that run on the server, publishing, dead letters, the embedded server."""
