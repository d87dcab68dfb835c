"""Errors that the packages raise on purpose, and what each means for a command's exit code."""

from __future__ import annotations


class EsbnnError(Exception):
    """Base of all errors raised on purpose; its text is one line that says what and where."""

    exit_code = 1


class UserError(EsbnnError, ValueError):
    """A mistake in the input (a name, a file, a setting): commands print it and exit with 2."""

    exit_code = 2


class ESError(UserError):
    """A setting of tau and groups that a layer, or the edges between layers, cannot have."""


class RunError(EsbnnError, RuntimeError):
    """A run that failed for no mistake of its input (loss not finite, disk full): exit code 1."""
