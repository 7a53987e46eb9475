"""What compression saves on the way to an object store, on real volumes: the table of docs/feature-store.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dropgen.console import say
from dropgen.features.extractors import extract
from dropgen.features.extractors.mind import Mind
from dropgen.features.store.arrays import write_array
from dropgen.features.studies.prepare import Preparation, prepare
from dropgen.features.studies.volume import read_volume

VOLUMES = (
    "brats2013/images/pat0005_t1c_0000.nii.gz",
    "brats2013/images/pat0003_flair_0000.nii.gz",
    "cardiac/images/acdc001_ed_0000.nii.gz",
    "hippocampus/images/hippocampus_015_msd_0000.nii.gz",
)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", VOLUMES)
def test_a_compressed_entry_takes_fewer_bytes(data: Path, tmp_path: Path, name: str) -> None:
    if not (data / name).is_file():
        pytest.skip(f"needs {name} in the folder of data")
    unit = prepare([read_volume(data / name)], Preparation((1.0,) * 3, (32,) * 3, "minmax")).unit
    features, _ = extract(Mind(), np.array(unit))
    row = [Path(name).name]
    for array, dtype in ((unit, "float32"), (features, "float16"), (features, "int8")):
        folder = tmp_path / dtype
        write_array(folder, array, (1, *unit.shape[1:]), np.dtype(dtype), {}, name, compressed=True)
        chunks = sum(path.stat().st_size for path in folder.glob("c.*"))
        row.append(f"{chunks / (array.size * np.dtype(dtype).itemsize):.2f}")
        assert float(row[-1]) < 1
    say(" | ".join(row))
