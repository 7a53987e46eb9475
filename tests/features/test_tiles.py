"""A large volume is extracted in tiles within a budget of memory, and what that changes is nothing or measured.

The rows of the table in docs/feature-store.md: `python -m pytest -s -m "" tests/features/test_tiles.py`.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dropgen.features.extractors import EXTRACTORS, Extractor, extract
from dropgen.features.extractors.anatomix import HALO, Anatomix
from dropgen.features.extractors.mind import Mind
from dropgen.features.extractors.tiles import WORKING_BYTES, legal_shape, peak_bytes, tiles
from tests_support.anatomix import CHANNELS, textured, weights

LIBRARIES_BYTES = 64 * 2**20  # oneDNN and the heap: the same call took 178 to 260 MiB for anatomix
FLOAT16_ROUNDING = 3e-4  # RMS error of storing as float16, in a channel's standard deviations: docs/feature-store.md
REPOSITORY = Path(__file__).resolve().parents[2]
# Says how far memory rose while a volume was extracted, above what it was after a small one.
EXTRACTING = """
import sys
from pathlib import Path
import numpy as np
import torch
from dropgen.config import Component
from dropgen.features.extractors import build, extract

def memory(name):
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])

torch.set_num_threads(1)
options = {"weights": sys.argv[2]} if len(sys.argv) > 2 else {}
extractor = build(Component.of(sys.argv[1], **options))
extract(extractor, np.zeros((1, 32, 32, 32), np.float32))
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins again
extract(extractor, np.random.default_rng(0).random((1, 64, 64, 64), dtype=np.float32))
print(memory("VmHWM") - before)
"""


class Grid:
    """The sizes of an extractor, without the extractor."""

    channels = CHANNELS
    tile_bytes = 56

    def __init__(self, multiple: int, halo: int) -> None:
        self.multiple, self.min_size, self.halo = multiple, 2 * multiple, halo


def bytes_of(voxels: int, extractor: Extractor) -> int:
    """The budget that a tile of so many voxels fills."""
    return voxels * extractor.tile_bytes * extractor.channels


@given(
    shape=st.tuples(*[st.integers(1, 90)] * 3),
    multiple=st.sampled_from([1, 4, 16]),
    halo=st.integers(0, 20),
    voxels=st.integers(1, 200_000),
)
@settings(max_examples=60)
def test_tiles_cover_every_voxel_once_on_legal_boxes_with_their_halo(
    shape: tuple[int, int, int], multiple: int, halo: int, voxels: int
) -> None:
    grid = Grid(multiple, halo)
    padded = legal_shape(grid, shape)
    times = np.zeros(shape, int)
    plan = list(tiles(grid, shape, bytes_of(voxels, grid)))
    for tile in plan:
        times[tile.core] += 1
        for core, seen, size, end in zip(tile.core, tile.seen, shape, padded, strict=True):
            assert 0 <= seen.start <= core.start < core.stop <= seen.stop <= end
            assert seen.start % multiple == 0
            assert (seen.stop - seen.start) % multiple == 0
            assert seen.stop - seen.start >= grid.min_size
            assert core.start == 0 or core.start - seen.start >= min(halo, core.start)
            assert core.stop == size or seen.stop - core.stop >= min(halo, end - core.stop)
    assert (times == 1).all()
    fits = np.prod(padded) <= voxels
    assert (len(plan) == 1) or not fits


def test_a_tile_fits_into_the_budget_and_a_global_extractor_has_one() -> None:
    mind, shape = Mind(), (70, 61, 55)
    largest = max(
        np.prod([edge.stop - edge.start for edge in tile.seen]) for tile in tiles(mind, shape, bytes_of(50_000, mind))
    )
    assert 10_000 < largest <= 50_000
    everywhere = Grid(1, 0)
    everywhere.halo = "global"
    assert len(list(tiles(everywhere, shape, 1))) == 1


def test_without_a_halo_a_volume_is_cut_no_finer_than_it_must_and_across_its_longest_axis() -> None:
    grid = Grid(1, 0)
    shape = (16, 32, 16)
    assert [tile.core for tile in tiles(grid, shape, bytes_of(np.prod(shape) - 1, grid))] == [
        (slice(0, 16), slice(0, 16), slice(0, 16)), (slice(0, 16), slice(16, 32), slice(0, 16)),
    ]  # fmt: skip


@pytest.mark.parametrize("shape", [(5, 34, 6), (64, 65, 33), (31, 32, 100)])
def test_the_one_tile_of_a_global_extractor_is_the_whole_legal_volume(shape: tuple[int, int, int]) -> None:
    everywhere = Grid(32, 0)
    everywhere.halo = "global"
    (tile,) = tiles(everywhere, shape, 1)
    assert tuple(edge.stop for edge in tile.core) == shape
    assert [(edge.start, edge.stop) for edge in tile.seen] == [(0, size) for size in legal_shape(everywhere, shape)]


def test_memory_stops_growing_with_the_volume_but_for_the_result() -> None:
    mind = Mind()
    small, large = (256, 256, 256), (512, 512, 512)
    result = {shape: 4 * mind.channels * np.prod(shape) for shape in (small, large)}
    assert peak_bytes(mind, large) - result[large] <= WORKING_BYTES
    assert peak_bytes(mind, (64, 64, 64)) == 64**3 * mind.channels * (4 + mind.tile_bytes)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(("name", "channels"), [("mind", 12), ("anatomix", CHANNELS)])
def test_extracting_takes_no_more_memory_than_is_planned(name: str, channels: int, tmp_path: Path) -> None:
    call = [sys.executable, "-c", EXTRACTING, name]
    if name == "anatomix":
        call.append(str(weights(tmp_path, "formula")))
    done = subprocess.run(call, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    planned = channels * 64**3 * (4 + EXTRACTORS[name].tile_bytes) + LIBRARIES_BYTES
    assert 4 * channels * 64**3 < int(done.stdout) < planned


@pytest.mark.parametrize("dilations", [(1,), (1, 3)])
@pytest.mark.parametrize("shape", [(33, 21, 27), (40, 9, 11), (5, 37, 6)])
def test_mind_in_tiles_equals_one_pass(dilations: tuple[int, ...], shape: tuple[int, int, int]) -> None:
    mind = Mind(dilations)
    unit = np.random.default_rng(0).random(shape, dtype=np.float32)
    unit[: shape[0] // 2] *= 0.01  # the mean of the local variation is nowhere that of a tile
    budget = bytes_of(np.prod(shape) // 2, mind)
    assert len(list(tiles(mind, shape, budget))) > 1
    whole, stats = extract(mind, unit[None])
    tiled, tiled_stats = extract(mind, unit[None], working_bytes=budget)
    np.testing.assert_allclose(tiled_stats, stats, rtol=1e-6)
    assert np.abs(tiled - whole).max() < 1e-6


def test_mind_given_the_statistics_is_exact_with_its_halo_and_not_with_less(monkeypatch: pytest.MonkeyPatch) -> None:
    mind = Mind((1, 2))
    image = torch.rand(1, 1, 29, 17, 19, generator=torch.Generator().manual_seed(0))
    stats = mind.fit(image)
    whole = mind(image, stats)[0]
    for halo, exact in ((mind.locality, True), (mind.locality - 1, False)):
        mind.halo = halo
        apart = 0.0
        for tile in tiles(mind, image.shape[2:], bytes_of(5000, mind)):
            seen = mind(image[(..., *tile.seen)], stats)[0]
            difference = seen[(slice(None), *tile.inner)] - whole[(slice(None), *tile.core)]
            apart = max(apart, float(difference.abs().max()))
        assert (apart < 1e-6) == exact


def test_statistics_are_the_mean_over_the_cores_and_not_over_the_halos() -> None:
    mind = Mind()
    image = torch.rand(1, 1, 20, 8, 9, generator=torch.Generator().manual_seed(0))
    variation = mind._distances(image, 1)[1]
    inner = (slice(4, 11), slice(0, 5), slice(3, 9))
    assert torch.allclose(mind.fit(image, inner)[0, 0], variation[(0, 0, *inner)].mean())


def test_anatomix_in_tiles_has_the_right_shape_and_stays_close(tmp_path: Path) -> None:
    anatomix = Anatomix(str(weights(tmp_path, "formula")))
    anatomix.halo = 32
    unit = textured((100, 20, 20))
    budget = bytes_of(111 * 32 * 32, anatomix)
    assert len(list(tiles(anatomix, unit.shape, budget))) == 2
    whole, tiled = extract(anatomix, unit[None])[0], extract(anatomix, unit[None], working_bytes=budget)[0]
    assert tiled.shape == whole.shape == (CHANNELS, *unit.shape)
    error = (tiled - whole) / whole.std(axis=(1, 2, 3), keepdims=True)
    assert 0 < np.sqrt(np.square(error).mean()) < 1e-2


def seam_errors(extractor: Extractor, name: str, unit: np.ndarray, halos: Sequence[int]) -> dict[int, float]:
    """Prints a row of the page for every halo of two halves against one pass; returns the RMS at the cut."""
    whole, _ = extract(extractor, unit[None])
    spread = whole.std(axis=(1, 2, 3), keepdims=True)
    rms = {}
    for extractor.halo in halos:
        budget = bytes_of(unit.size - 1, extractor)
        assert len(list(tiles(extractor, unit.shape, budget))) == 2
        tiled, _ = extract(extractor, unit[None], working_bytes=budget)
        error = (tiled - whole) / spread
        cut = len(unit) // 2
        seam = error[:, cut - 8 : cut + 8]  # the sixteen slices about the cut
        rms[extractor.halo] = float(np.sqrt(np.square(seam).mean()))
        sys.stdout.write(f"\n| {name} | {extractor.halo} | {rms[extractor.halo]:.2g} | {np.abs(error).max():.2g} |")
        sys.stdout.flush()
    assert all(rms[more] <= rms[less] for less, more in itertools.pairwise(rms))
    return rms


def test_the_error_of_mind_in_tiles_falls_with_the_halo_to_nothing_at_its_locality() -> None:
    mind = Mind()
    rms = seam_errors(mind, "MIND", textured((64, 32, 32)), range(mind.locality + 1))
    assert rms[mind.locality - 1] > 1e-3
    assert rms[mind.locality] < 1e-6


@pytest.mark.nightly
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", ["formula", "random"])
def test_the_error_of_anatomix_in_tiles_falls_with_the_halo(kind: str, tmp_path: Path) -> None:
    anatomix = Anatomix(str(weights(tmp_path, kind)))
    rms = seam_errors(anatomix, f"anatomix, {kind}", textured((288, 32, 32)), (16, 32, 48, 64, 80, 96, 112))
    assert rms[HALO] < FLOAT16_ROUNDING / 10
    assert rms[112] < 1e-6
