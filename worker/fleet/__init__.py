"""This worker's part in the fleet: `Fleet` is the thread, its other modules are what it needs."""

from worker.fleet.figures import Figures, Transfer
from worker.fleet.fleet import Fleet
from worker.fleet.readings import Parting

__all__ = ["Figures", "Fleet", "Parting", "Transfer"]
