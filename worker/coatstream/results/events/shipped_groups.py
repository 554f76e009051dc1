"""Groups of ImageNet's classes that people ask for, by the classes' numbers, as ImageNet's hierarchy has them.

A group counts where `tags.include` names it and `tags.groups` has none of that name. There is none for people: ImageNet
has no class `person`.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from coatstream.frames.frame import Label

SHIPPED: Final[Mapping[str, tuple[str, ...]]] = {
    "dog": ("151-268",),
    "cat": ("281-285",),
    "bird": ("7-24", "80-100", "127-146"),
    "horse": ("339", "603"),
    "cow": ("345-347",),
    "sheep": ("348", "349"),
    "bear": ("294-297",),
    "fox": ("277-280",),
    "rabbit": ("330-332",),
    "monkey": ("365-382",),
    "fish": ("0-6", "389-397"),
    "snake": ("52-68",),
    "insect": ("300-326",),
    "spider": ("72-77",),
    "car": ("407", "436", "468", "511", "609", "627", "656", "661", "751", "817"),
    "truck": ("555", "569", "675", "717", "734", "864", "867"),
    "bus": ("654", "779", "874"),
    "bicycle": ("444", "671"),
    "motorcycle": ("665", "670"),
    "boat": ("403", "472", "484", "510", "554", "576", "625", "628", "724", "780", "814", "871", "914"),
    "train": ("466", "547", "565", "705", "820", "829"),
    "plane": ("404", "895"),
    "phone": ("487", "528", "707"),
    "screen": ("527", "620", "664", "681", "782", "851"),
    "chair": ("423", "559", "765", "857"),
    "sofa": ("831",),
    "plant": ("738", "985", "986"),
    "bottle": ("440", "720", "737", "898", "907"),
    "cup": ("504", "968"),
    "bag": ("414", "636", "728", "748"),
    "ball": ("429", "430", "522", "574", "722", "768", "805", "852", "890"),
    "fruit": ("948-957",),
    "food": ("924-967", "969"),
}
_CLASSES: Final = 1000
_FIRST: Final = "n01440764"  # a tench


def shipped_for(labels: Sequence[Label]) -> Mapping[str, tuple[str, ...]]:
    """Those that a model with these classes can have: all of them for ImageNet's 1,000, else none."""
    return SHIPPED if len(labels) == _CLASSES and labels[0].wnid == _FIRST else {}
