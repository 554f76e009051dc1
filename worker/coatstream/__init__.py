"""coatstream: cameras or a Redis queue in, labels out, every frame accounted for."""

from importlib.metadata import version

__version__ = version("coatstream")
