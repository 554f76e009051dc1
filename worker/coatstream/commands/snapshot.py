"""`coatstream cameras snapshot`: one picture of a source, from the worker that reads it. The camera notices nothing."""

import time
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from coatstream.broker.connection import Client, connect
from coatstream.broker.failures import calls
from coatstream.broker.picture_keys import PictureKeys, picture_keys
from coatstream.broker.preflight import check_server
from coatstream.commands.terminal import complain, date_and_time, shown
from coatstream.errors import ConfigError
from coatstream.frames.still import LARGEST
from coatstream.results.previews import Preview, parse_preview, wish
from coatstream.settings.model import SettingsTree

PATIENCE: Final = 5.0  # seconds; a camera of one frame in ten seconds has its last picture at hand
WIDE_ENOUGH: Final = 321  # pixels: a smaller one was made for another watcher, unless the camera has no more


def take_snapshot(settings: SettingsTree, name: str, *, file: Path | None, force: bool) -> int:
    """Save it. 1 if no worker sends one in time, else 0. Raises ConfigError for a file that is there already."""
    path = file or Path("".join(one if one.isalnum() or one in "-_." else "_" for one in name).lstrip(".") + ".jpg")
    if path.exists() and not force:
        raise ConfigError(f"{shown(str(path))} exists already: give --file another name, or --force")
    with connect(settings.redis) as client:
        check_server(client, settings.redis)
        found = _wished_for(client, picture_keys(settings), name)
    if found is None:
        complain(
            f"no worker has sent a picture of {shown(name)} in {PATIENCE:g} s: "
            "`coatstream cameras list` shows whether one reads it"
        )
        return 1
    try:
        path.write_bytes(found.jpeg)
    except OSError as error:
        raise ConfigError(f"{shown(str(path))} cannot be written: {error.strerror}") from None
    print(f"{shown(str(path))}: {found.width} x {found.height}, taken {date_and_time(found.captured_at)}", flush=True)
    return 0


def _wished_for(client: Client, keys: PictureKeys, name: str) -> Preview | None:
    """The first large one, else the last small one that came."""
    small: Preview | None = None
    ends = time.monotonic() + PATIENCE
    pubsub: Any = client.pubsub(ignore_subscribe_messages=True)
    with closing(pubsub), calls("no picture can be asked for", client):
        pubsub.subscribe(keys.previews(name))
        pubsub.get_message(timeout=1.0)  # the server has answered: from here on none is missed
        wish(client, keys.wish(name), side=LARGEST, seconds=PATIENCE)
        while (left := ends - time.monotonic()) > 0:
            message = pubsub.get_message(timeout=min(left, 1.0 if small else left))
            preview = parse_preview(message["data"]) if message else None
            if preview is not None and max(preview.width, preview.height) >= WIDE_ENOUGH:
                return preview
            if preview is None and small is not None and message is None:
                return small
            small = preview or small
    return small
