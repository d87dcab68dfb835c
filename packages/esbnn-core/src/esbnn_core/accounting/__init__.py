"""Counting: operations, parameters, bytes and representation capacity of any network, by running it."""

from esbnn_core.accounting.count import count_ops
from esbnn_core.accounting.report import Report, Row

__all__ = ["Report", "Row", "count_ops"]
