"""The size of the second-level cache decides how much is computed at once, and so the last bits of a run."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from selection import quick_first
from thread_ranks import on_ranks
from training_runs import configuration, packed, run, session_and_state

from dptrain.checkpoint.format import Checkpoint, checkpoint_bytes, read_checkpoint
from dptrain.config.train import TrainConfig
from dptrain.system.cache import DEFAULT_KIB
from dptrain.training import session
from dptrain.training.loop import train
from dptrain.training.resume import l2_kib_of
from dptrain.training.session import choose_l2_kib, set_up

SMALL, LARGE = 16, 4096  # KiB: four strips of a map, and one


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("data") / "set", shape=(3, 16, 16))


def machine(kib: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the test runs on a machine with this cache."""
    monkeypatch.setattr(session, "second_level_cache", lambda: kib)


def trained(config: TrainConfig) -> str:
    finished, _ = run(config)
    digest: str = finished["params_sha256"]
    return digest


@pytest.fixture
def undisturbed(data: Path, tmp_path: Path) -> dict[int, str]:
    """The hashes of runs that were never stopped, by the size of the cache."""
    return {
        kib: trained(configuration(data, tmp_path / f"undisturbed {kib}", l2_kib=kib, model_options={"widths": [8]}))
        for kib in (SMALL, LARGE)
    }


@pytest.mark.slow
def test_a_resume_on_another_machine_keeps_the_size_and_so_the_bits(
    data: Path, tmp_path: Path, undisturbed: dict[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert undisturbed[SMALL] != undisturbed[LARGE], "the size has no effect, so this test could not fail"
    config = configuration(data, tmp_path / "run", model_options={"widths": [8]})
    machine(SMALL, monkeypatch)
    run(replace(config, max_steps=5))
    machine(LARGE, monkeypatch)
    finished, memory = run(config)
    assert finished["params_sha256"] == undisturbed[SMALL]
    assert not any("bits may differ" in line for line in memory.lines)


def test_the_flag_overrides_the_checkpoint_and_is_reported(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configuration(data, tmp_path / "run", model_options={"widths": [8]})
    machine(SMALL, monkeypatch)
    run(replace(config, max_steps=5))
    _, memory = run(replace(config, l2_kib=LARGE))
    assert f"changed since the checkpoint: --l2-kib 0 there, {LARGE} here" in memory.lines
    assert any("another cache size (--l2-kib) than the checkpoint's: bits may differ" in line for line in memory.lines)
    newest = max((tmp_path / "run" / "checkpoints").glob("step-*.h5"))
    assert l2_kib_of(read_checkpoint(newest).origin) == LARGE


@pytest.mark.slow
def test_the_machine_of_rank_0_decides_for_all_ranks(
    data: Path, tmp_path: Path, undisturbed: dict[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configuration(data, tmp_path / "run", model_options={"widths": [8]})
    sizes = itertools.cycle([SMALL, LARGE])
    monkeypatch.setattr(session, "second_level_cache", lambda: next(sizes))
    chosen = {one.network.l2_kib for one in on_ranks(2, lambda rank: set_up(config, rank))}
    assert len(chosen) == 1
    finished = on_ranks(2, lambda rank: train(config, rank))[0]
    assert finished is not None
    assert finished.params_sha256 in undisturbed.values()


def test_a_portable_run_computes_for_the_same_size_on_every_machine(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(LARGE, monkeypatch)
    config = configuration(data, tmp_path / "run")
    assert choose_l2_kib(config) == LARGE
    assert choose_l2_kib(replace(config, portable=True)) == DEFAULT_KIB
    assert choose_l2_kib(replace(config, portable=True), SMALL) == SMALL  # a resume keeps the size


@quick_first("tuning", [{}, {"network": None}, {"network": {"l2_kib": "1"}}, {"network": {"l2_kib": -1}}])
def test_a_checkpoint_without_a_size_is_resumed_with_that_of_this_machine(
    tuning: dict[str, Any], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older version has computed each map whole, but also with other algorithms: its bits are out of reach."""
    machine(SMALL, monkeypatch)
    config = configuration(data, tmp_path / "run", model_options={"widths": [8]})
    before, state = session_and_state(config)
    older = Checkpoint(state, replace(before.origin, tuning=tuning), before.take_step.layouts)
    path = tmp_path / "old.h5"
    path.write_bytes(checkpoint_bytes(older.state, older.origin, older.layouts))
    _, memory = run(replace(config, resume=str(path)))
    assert any("another cache size" in line for line in memory.lines)
    newest = max((tmp_path / "run" / "checkpoints").glob("step-*.h5"))
    assert l2_kib_of(read_checkpoint(newest).origin) == SMALL
