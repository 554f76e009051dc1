"""Overlays as tests see them: rendered once, and broken in one place."""

import copy
import re
from functools import cache
from typing import Any

from deploy.check.manifests import OVERLAYS, Manifest, RenderError, kubectl, overlays, title
from deploy.check.manifests import render as rendered
from tests.support.absence import missing

NAMES = [overlay.name for overlay in overlays()]
GONE = object()

Place = tuple[str | int, ...]


@cache
def _render(name: str) -> list[Manifest]:
    try:
        kubectl()
    except RenderError as error:
        missing(str(error))
    return rendered(OVERLAYS / name)


def overlay(name: str) -> list[Manifest]:
    """The objects of an overlay, for the caller to change."""
    return copy.deepcopy(_render(name))


def find(manifests: list[Manifest], start: object) -> Manifest:
    """By `Kind/name`; a generated name may go on with its hash."""
    return next(m for m in manifests if re.fullmatch(f"{start}(-[a-z0-9]{{10}})?", title(m)))


def put(manifests: list[Manifest], place: Place, value: object) -> None:
    """Set or remove what lies at `Kind/name, key, key...`."""
    start, *path, last = place
    node: Any = find(manifests, start)
    for key in path:
        node = node[key]
    if value is GONE:
        del node[last]
    elif isinstance(node, list) and last == len(node):
        node.append(value)
    else:
        node[last] = value
