"""What every command shares: exit codes, one-line errors, JSON files. Imports neither torch nor numpy."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from esbnn_core.errors import EsbnnError
from esbnn_core.files import write_file

__all__ = ["run_main", "write_json"]


def run_main(body: Callable[[], int | None], program: str) -> int:
    """Run a command's body and return its exit code.

    0: it worked. 1: the run failed (`RunError`). 2: the user's mistake (`UserError`). 130: interrupted by Ctrl-C. Errors raised on
    purpose are one line on stderr, without a traceback; every other exception is a bug of ours and keeps its traceback.
    """
    try:
        return body() or 0
    except EsbnnError as error:
        line = " ".join(str(error).split())
        print(f"{program}: error: {line}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader of our output (head, less) went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a value as JSON, atomically: an old file stays until the new one is whole.

    NaN and infinities do not belong in JSON: they are written as null.
    """
    write_file(path, (json.dumps(_finite(value), indent=2, allow_nan=False) + "\n").encode())


def _finite(value: Any) -> Any:
    if isinstance(value, float) and value - value != 0:
        return None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
