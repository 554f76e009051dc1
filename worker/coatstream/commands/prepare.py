"""`coatstream prepare`: chooses, converts and caches the engine, so that a worker's first start finds it there."""

from coatstream.commands.terminal import complain
from coatstream.engine.cache import Cache
from coatstream.engine.loading import load_engine
from coatstream.errors import ConfigError
from coatstream.settings.model import SettingsTree
from coatstream.telemetry import logs


def run_prepare(settings: SettingsTree) -> int:
    """0, with one line that names the engine. Raises EngineError, and ConfigError where nothing would be kept."""
    logs.configure(settings.log)
    model = settings.model
    if model.engine != "noop" and not Cache(model.cache).usable():
        raise ConfigError("nothing would be kept: set model.cache to a folder that this user can write to")
    info = load_engine(model, settings.batch).info
    print(f"{info.name}, weights {info.weights}: engine {info.engine} {info.precision} on {info.device}", flush=True)
    if model.engine == "noop":
        complain("the engine noop needs no preparation")
    return 0
