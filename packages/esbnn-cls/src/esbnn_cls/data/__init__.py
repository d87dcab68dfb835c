"""Labelled images, from where the user keeps them to normalised batches.

`open_source(spec, split)` finds out what a specification means; `open_batches` decides between decoding once into memory (small images)
and decoding anew every epoch, and gives batches whose randomness is keyed: equal for any number of workers and processes.
"""

from esbnn_cls.data.batches import Geometry, MemoryBatches
from esbnn_cls.data.loaders import Batches, open_batches
from esbnn_cls.data.preprocess import Preprocess
from esbnn_cls.data.source import Source
from esbnn_cls.data.specs import open_source

__all__ = ["Batches", "Geometry", "MemoryBatches", "Preprocess", "Source", "open_batches", "open_source"]
