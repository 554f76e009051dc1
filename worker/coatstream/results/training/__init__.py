"""Frames that the model is unsure about, kept for a person to label."""
