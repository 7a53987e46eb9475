from __future__ import annotations

import numpy as np

from dropgen.platform.adaptation.crops import draw_crop

SIZE = (4, 4, 4)


def test_windows_without_content_are_skipped() -> None:
    unit = np.zeros((16, 4, 4), dtype=np.float32)
    unit[15, 0, 0] = 1
    generator = np.random.default_rng(0)
    starts = {box[0].start for _ in range(20) if (box := draw_crop(unit[None], SIZE, generator)) is not None}
    assert starts == {12}


def test_a_volume_without_content_gives_none() -> None:
    assert draw_crop(np.full((1, 8, 8, 8), 0.5, dtype=np.float32), SIZE, np.random.default_rng(0)) is None


def test_windows_reach_every_corner_and_nothing_beyond() -> None:
    unit = np.random.default_rng(1).random((6, 5, 4), dtype=np.float32)
    generator = np.random.default_rng(0)
    boxes = [draw_crop(unit[None], SIZE, generator) for _ in range(200)]
    corners = {tuple(edge.start for edge in box) for box in boxes if box is not None}
    assert corners == {(x, y, 0) for x in range(3) for y in range(2)}
    assert all(unit[box].shape == SIZE for box in boxes if box is not None)
