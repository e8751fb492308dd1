"""dptrain.export.small_checkpoint: the same evaluation from a smaller file; a run cannot be resumed from it."""

from __future__ import annotations

import json
from pathlib import Path

from command_runs import assert_one_error, dptrain_here, train_here
from selection import quick_first
from training_runs import configuration, packed, run


@quick_first("average", ["none", "ema"])
def test_it_evaluates_the_same_and_holds_nothing_else(average: str, tmp_path: Path) -> None:
    data = packed(tmp_path / "set")
    run(configuration(data, tmp_path / "run", average=average))
    done = dptrain_here("export", "run", "--to", "small.h5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    large, small = (
        json.loads(dptrain_here("eval", path, data, "--json", cwd=tmp_path).stdout) for path in ("run", "small.h5")
    )
    assert large == small
    whole = max((tmp_path / "run" / "checkpoints").iterdir()).stat().st_size
    assert (tmp_path / "small.h5").stat().st_size < whole
    done = train_here(data, tmp_path / "other", "--resume", str(tmp_path / "small.h5"), average=average)
    assert_one_error(done, "it has no momentum, which this run keeps from step to step")
