"""The JSON API under /api: a module for each kind of thing. `backend` is what all of them share."""
