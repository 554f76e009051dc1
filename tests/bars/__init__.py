"""Bars that need more than a test's seconds: each is a function with a quick size for the suite and a full one."""
