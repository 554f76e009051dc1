"""Labels: what each class of a model is called. Knows no weights and runs no model."""

import json
from pathlib import Path

from coatstream.errors import EngineError
from coatstream.frames.frame import Label


def numbered_labels(count: int) -> tuple[Label, ...]:
    """`class 0`, `class 1`, ...: for a head whose classes have no names."""
    return tuple(Label(index, None, f"class {index}") for index in range(count))


def imagenet_labels(num_classes: int) -> tuple[Label, ...]:
    """Label names of an ImageNet head, found by its number of classes (1k, 12k, 21k and 22k subsets, as timm does).

    The name is the synset's first lemma: 285 is n02124075, "Egyptian cat". Any other head gets numbered labels.
    """
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": num_classes})
    if subset is None:
        return numbered_labels(num_classes)
    info = ImageNetInfo(subset)
    wnids = info.label_names()
    return tuple(
        Label(index, wnid, info.label_name_to_description(wnid).split(", ")[0]) for index, wnid in enumerate(wnids)
    )


def labels_from_file(path: Path, count: int) -> tuple[Label, ...]:
    """Names from a text file (one a line), a JSON list of names, or a JSON object {"0": name, ...}.

    Raises EngineError where the file cannot be read or does not name exactly `count` classes.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = _names_from_json(text) if path.suffix.lower() == ".json" else text.splitlines()
    except OSError as error:
        raise EngineError(f"label file {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise EngineError(f"label file {path}: {error}") from None
    names = [name.strip() for name in names]
    while names and not names[-1]:
        names.pop()  # blank lines at the end
    if len(names) != count:
        raise EngineError(f"label file {path} names {len(names)} classes, and the model has {count}")
    if "" in names:
        raise EngineError(f"label file {path} has no name for class {names.index('')}")
    return tuple(Label(index, None, name) for index, name in enumerate(names))


def _names_from_json(text: str) -> list[str]:
    """Raises ValueError."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if isinstance(value, dict):
        if set(value) != {str(index) for index in range(len(value))}:
            raise ValueError(f"an object must have the keys 0 to {len(value) - 1}, each once")
        value = [value[str(index)] for index in range(len(value))]
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError("must hold a list of names or an object of index to name")
    return value
