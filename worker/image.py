"""The old address of `decode`, `prepare` and their kin; goes when the last importer has moved."""

from worker.cores import single_threaded as single_threaded
from worker.decoding import PixelFormat as PixelFormat
from worker.decoding import decode as decode
from worker.decoding import raw as raw
from worker.encoding import encode_jpeg as encode_jpeg
from worker.resizing import INTERPOLATIONS as INTERPOLATIONS
from worker.resizing import prepare as prepare
