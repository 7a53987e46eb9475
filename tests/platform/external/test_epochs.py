from __future__ import annotations

import math

import pytest

from dropgen.platform.external.epochs import Epoch, read_epochs

# As nnU-Net 2.8.1 prints it.
EPOCH = """2026-11-26 01:52:25.992777: Epoch {number}{space}
2026-11-26 01:52:25.992924: Current learning rate: 0.01{space}
2026-11-26 01:55:25.992924: train_loss {loss}{space}
2026-11-26 01:55:25.992925: val_loss -0.25{space}
2026-11-26 01:55:25.992926: Pseudo dice [{dice}]{space}
2026-11-26 01:55:25.992927: Epoch time: {seconds} s{space}
"""
BEST = "2026-11-26 01:55:25.992928: Yayy! New best EMA pseudo Dice: 0.375 \n"


def printed(number: int, dice: str, loss: float = -0.5, seconds: float = 12.25) -> str:
    return EPOCH.format(number=number, loss=loss, dice=dice, seconds=seconds, space=" ")


def test_an_epoch_has_its_loss_its_mean_dice_its_time_and_whether_it_was_the_best() -> None:
    log = (
        printed(0, "np.float32(0.5), np.float32(0.25)") + BEST + printed(1, "np.float32(0.25), np.float32(0.25)", 0.75)
    )
    assert read_epochs(log) == [Epoch(0, -0.5, 0.375, True, 12.25), Epoch(1, 0.75, 0.25, False, 12.25)]


def test_a_class_that_no_patch_held_is_left_out_of_the_mean() -> None:
    first, second = read_epochs(printed(0, "np.float32(nan), np.float32(0.5)") + printed(1, "np.float32(nan)"))
    assert first.dice == 0.5
    assert math.isnan(second.dice)


@pytest.mark.parametrize("dice", ["0.5, 0.25", "np.float32(0.5), np.float32(0.25)", "np.float64(5.0e-01), 0.25"])
def test_numbers_are_read_however_numpy_writes_them(dice: str) -> None:
    assert read_epochs(printed(0, dice))[0].dice == 0.375


def test_an_epoch_that_has_not_ended_does_not_count() -> None:
    whole = printed(0, "0.5") + printed(1, "0.5")
    for end in range(len(printed(0, "0.5")), len(whole) - len("Epoch time: 12.25 s \n")):
        assert len(read_epochs(whole[:end])) == 1


def test_an_epoch_trained_again_after_an_interruption_counts_as_it_was_last() -> None:
    log = printed(0, "0.5") + BEST + printed(1, "0.75") + BEST + printed(1, "0.25")
    assert [(epoch.dice, epoch.best) for epoch in read_epochs(log)] == [(0.5, True), (0.25, False)]


def test_an_empty_log_has_no_epoch() -> None:
    assert read_epochs("") == []
