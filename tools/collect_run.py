"""Turn a finished run's folder into one small JSON for docs/runs, without weights and without local paths.

    python tools/collect_run.py runs/es docs/runs/es_irnet_resnet20.json --data "CIFAR-10" --note "One sentence that a reader has to know."

Run it on the machine that trained: the machine is noted as this one. `tools/results.py` makes docs/results.md from these files.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="collect_run.py", description="Make a run's small JSON for docs/runs.")
    parser.add_argument("run", metavar="RUN_FOLDER", type=Path, help="folder that `esbnn-cls train --out` wrote")
    parser.add_argument("file", metavar="FILE.json", type=Path, help="file to write; an older record of a run is replaced")
    parser.add_argument("--name", help="name of the run (default: the file's)")
    parser.add_argument("--data", metavar="TITLE", help="what the data set is called in print (default: its folder's name)")
    parser.add_argument("--note", action="append", default=[], metavar="TEXT", help="a sentence about the figures; may be repeated")
    parser.add_argument("--commit", help="of the code that trained (default: the present one)")
    options = parser.parse_args(arguments)

    from esbnn_core.cli_support import run_main

    return run_main(lambda: _run(options), "collect_run.py")


def _run(options: argparse.Namespace) -> int:
    from esbnn_cls.record import dump_record, read_run
    from esbnn_core.errors import UserError
    from esbnn_core.files import write_file
    from esbnn_core.machine import git_commit

    if options.file.exists():
        try:
            kind = json.loads(options.file.read_text()).get("kind")
        except (OSError, ValueError, AttributeError):
            kind = None
        if kind != "run":
            raise UserError(f"{options.file}: exists and is not the record of a run; give another name")
    commit = options.commit or git_commit(ROOT)
    record = read_run(options.run, name=options.name or options.file.stem, data=options.data, notes=options.note, commit=commit)
    write_file(options.file, dump_record(record))
    done, wanted = len(record["epochs"]["rows"]), record["recipe"]["epochs"]
    print(f"{options.file}: {done} of {wanted} epochs, test top-1 {record['final']['eval_top1']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
