"""The rows of a run: read, tokenised and packed once, then memory-mapped by every process.

sources.py   files, directories and data sets of the hub
readers.py   the kinds of file, row by row (rows.py)
formats.py   pairs, chats (chat.py) and texts -> documents with the places that count (segments.py)
packing.py   which documents share a row
write.py     documents -> packed files
packed.py    packed files -> micro-batches (batch.py)
copies.py    packed directories on disk: locked, complete or invisible, verified
corpus.py    make, find or copy the packed data of a config (start here)
order.py     which rows belong to which step
"""

from training.data.batch import IGNORED, Batch
from training.data.corpus import described, obtain, prepare
from training.data.order import key_of, micro_batches_of, sample_indices
from training.data.packed import Corpus, Packed, read_manifest
from training.data.rows import DataError

__all__ = [
    "IGNORED",
    "Batch",
    "Corpus",
    "DataError",
    "Packed",
    "described",
    "key_of",
    "micro_batches_of",
    "obtain",
    "prepare",
    "read_manifest",
    "sample_indices",
]
