"""Raw Arrow columns → indices and dense values: the one place, for training and for serving.

An encoder is fitted once, on the training window, and stored with the model. What it writes has a fixed schema that
is cheap to keep as Arrow IPC; `to_batch` turns it into tensors without Python per row, and a `Loader` reads it in
shuffled batches.
"""

from recsys_moe.encoding.columns import RawTable, canonical
from recsys_moe.encoding.encoder import Encoder
from recsys_moe.encoding.loading import EncodedRows, Loader
from recsys_moe.encoding.moments import Scaler
from recsys_moe.encoding.segments import UNKNOWN

__all__ = ["UNKNOWN", "EncodedRows", "Encoder", "Loader", "RawTable", "Scaler", "canonical"]
