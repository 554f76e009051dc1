"""What a worker leaves behind, made by its own settler: labels and dead letters."""

from config.settings import QueueSettings, ResultsSettings
from worker.broker.connection import Client
from worker.broker.settler import Settler
from worker.engine import ModelInfo
from worker.errors import DeadReason
from worker.frames import Label, Prediction, Receipt, ScoredLabel
from worker.outcomes import Buried, Published

NOW = 1_700_000_000.5  # when everything was settled, Unix seconds


def settler(client: Client, name: str) -> Settler:
    model = ModelInfo("coat_lite_mini.in1k", "random", "eager", "cpu", 512)
    return Settler(client, QueueSettings(), ResultsSettings(), model=model, worker="me", name=name)


def publish(client: Client, frame_id: str, *, source: str = "door", label: str = "Egyptian cat") -> str:
    """A camera frame's label, 34 ms old; its JSON document as it stands in the stream."""
    labels = (ScoredLabel(Label(285, "n02124075", label), 0.91),)
    prediction = Prediction(source, frame_id, NOW - 0.034, labels, 1920, 1080)
    settler(client, f"label {frame_id}").settle([Published(prediction)], now=NOW)
    [(_, fields)] = client.xrevrange("labels", count=1)
    return str(fields[b"json"].decode())


def bury(client: Client, *pairs: tuple[str | bytes, str | bytes | int], error: str = "no picture") -> str:
    """A frame with these fields that a worker read and buried; the id of its dead letter."""
    if not client.exists("frames") or not client.xinfo_groups("frames"):
        client.xgroup_create("frames", "coatstream", id="0", mkstream=True)
    entry_id = client.execute_command("XADD", "frames", "*", *(value for pair in pairs for value in pair)).decode()
    client.xreadgroup("coatstream", "me", {"frames": ">"})
    outcome = Buried("door", DeadReason.UNDECODABLE, error, Receipt("frames", entry_id))
    settler(client, f"burial {entry_id}").settle([outcome], now=NOW)
    [(letter, _)] = client.xrevrange("frames:dead", count=1)
    return str(letter.decode())
