"""The cases of real readers: a 377-byte file that asks for 18 GB, bombs, forged sizes, negative axes, NaN scaling."""

from __future__ import annotations

import asyncio
import gzip
import struct
import time
from collections.abc import AsyncIterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dropgen.errors import TooLargeError, VolumeError
from dropgen.features.studies.volume import volume_from_bytes
from dropgen.serving.decode import Wanted, _environment, decode
from dropgen.serving.header import HEADER_BYTES, check_header
from dropgen.serving.upload import Caps, Received, SlowError, receive, receive_file

SMALL = np.arange(120, dtype=np.float32).reshape(6, 5, 4)
CAPS = Caps(sent_bytes=10**6, unpacked_bytes=10**7, voxels=10**6, seconds=5)


def nifti(array: np.ndarray = SMALL, kind: type = nib.Nifti1Image) -> bytes:
    return bytes(kind(array, np.eye(4)).to_bytes())


def patched(offset: int, layout: str, *values: float) -> bytes:
    body = bytearray(nifti())
    struct.pack_into(layout, body, offset, *values)
    return bytes(body)


def take(body: bytes, path: Path, caps: Caps = CAPS, step: int = 1000, stated: int | None = None) -> Received:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), step):
            yield body[start : start + step]

    return asyncio.run(receive(chunks(), stated, path, caps))


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("order", "<>")
def test_what_nibabel_writes_is_taken_and_its_length_known(kind: type, dtype: type, order: str) -> None:
    header = kind.header_class(endianness=order)
    body = bytes(kind(SMALL.astype(np.dtype(dtype).newbyteorder(order)), np.eye(4), header).to_bytes())
    found = check_header(body[:HEADER_BYTES], 10**6)
    assert found.shape == (6, 5, 4)
    assert found.file_bytes == len(body)


FORGED = {
    "18 GB in 377 bytes": (patched(40, "<4h", 3, 2100, 2100, 2100)[:377], TooLargeError, "voxels"),
    "negative axis": (patched(42, "<h", -6), VolumeError, "axis x has -6"),
    "zero axis": (patched(44, "<h", 0), VolumeError, "axis y has 0"),
    "negative number of axes": (patched(40, "<h", -3), VolumeError, "dimensions"),
    "slope infinite": (patched(112, "<2f", np.inf, 0), VolumeError, "not finite"),
    "intercept not a number": (patched(112, "<2f", 1, np.nan), VolumeError, "not finite"),
    "voxels begin at infinity": (patched(108, "<f", np.inf), VolumeError, "begin at byte"),
    "voxels begin at NaN": (patched(108, "<f", np.nan), VolumeError, "begin at byte"),
    "voxels begin in the header": (patched(108, "<f", 8), VolumeError, "begin at byte"),
    "voxels begin before the file": (patched(108, "<f", -352), VolumeError, "begin at byte"),
    "bits of another type": (patched(72, "<h", 8), VolumeError, "bitpix"),
    "type unknown": (patched(70, "<h", 31), VolumeError, "data type 31"),
    "colours": (patched(70, "<2h", 128, 24), VolumeError, "data type 128"),
    "header and image in two files": (patched(344, "<4s", b"ni1\0"), VolumeError, "not a NIfTI"),
    "more voxels than bytes": (patched(42, "<h", 7), VolumeError, "truncated"),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_header_is_refused_in_a_moment_and_leaves_no_file(case: str, tmp_path: Path) -> None:
    body, error, word = FORGED[case]
    began = time.process_time()  # of this process: a busy machine is no fault of the header's
    with pytest.raises(error, match=word):
        take(body, tmp_path / "volume.nii")
    assert time.process_time() - began < 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("step", [1, 7, 100_000])
@pytest.mark.parametrize("members", [0, 1, 3])
def test_a_body_arrives_unpacked_whatever_its_pieces(tmp_path: Path, step: int, members: int) -> None:
    plain, part = nifti(), 1 + len(nifti()) // max(members, 1)
    packed = b"".join(gzip.compress(plain[start : start + part]) for start in range(0, len(plain), part))
    received = take(packed if members else plain, tmp_path / "volume.nii", step=step)
    assert received.path.read_bytes() == plain
    assert received.sha256 == take(plain, tmp_path / "other.nii").sha256


def test_a_bomb_is_refused_by_its_ratio_long_before_it_has_unfolded(tmp_path: Path) -> None:
    body = gzip.compress(nifti(np.zeros((500, 500, 500), np.uint8)))
    with pytest.raises(TooLargeError, match="200 times"):
        take(body, tmp_path / "volume.nii", Caps(voxels=10**9))
    with pytest.raises(TooLargeError, match="MiB"):
        take(body, tmp_path / "volume.nii", Caps(unpacked_bytes=10**7, voxels=10**9))
    with pytest.raises(TooLargeError, match="MiB"):  # its header tells of 120 voxels, and zeros go on behind them
        take(gzip.compress(nifti() + bytes(10**8)), tmp_path / "volume.nii", CAPS)
    assert not list(tmp_path.iterdir())


def test_a_stated_length_is_believed_only_where_it_is_too_large(tmp_path: Path) -> None:
    with pytest.raises(TooLargeError):
        take(nifti(), tmp_path / "volume.nii", stated=2**62)
    header = take(nifti(), tmp_path / "volume.nii", stated=3).header
    assert header is not None and header.voxels == 120


def test_a_body_that_trickles_is_let_go(tmp_path: Path) -> None:
    async def slow() -> AsyncIterator[bytes]:
        for byte in nifti():
            yield bytes([byte])
            await asyncio.sleep(0.02)

    with pytest.raises(SlowError, match=r"0\.1 s"):
        asyncio.run(receive(slow(), None, tmp_path / "volume.nii", Caps(seconds=0.1)))
    assert not list(tmp_path.iterdir())


def test_a_file_on_the_server_is_judged_as_a_body_is(tmp_path: Path) -> None:
    (tmp_path / "good.nii.gz").write_bytes(gzip.compress(nifti()))
    header = receive_file(tmp_path / "good.nii.gz", tmp_path / "volume.nii", CAPS).header
    assert header is not None and header.shape == (6, 5, 4)
    (tmp_path / "bad.nii").write_bytes(FORGED["negative axis"][0])
    with pytest.raises(VolumeError, match="axis x"):
        receive_file(tmp_path / "bad.nii", tmp_path / "volume.nii", CAPS)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_bits_give_a_typed_error_within_a_second_and_no_header_passes_that_the_reader_overruns(
    tmp_path: Path, data: st.DataObject
) -> None:
    kind = data.draw(st.sampled_from([nib.Nifti1Image, nib.Nifti2Image]))
    body = bytearray(nifti(kind=kind))
    packed = data.draw(st.booleans())
    if packed:
        body = bytearray(gzip.compress(bytes(body), mtime=0))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    began = time.process_time()
    try:
        received = take(bytes(body), tmp_path / "volume.nii")
        found = volume_from_bytes(received.path.read_bytes())
    except (VolumeError, TooLargeError):
        return
    finally:
        assert time.process_time() - began < 1
    assert received.header is not None and found.array.size == received.header.voxels


def test_the_reader_in_its_own_process_gives_the_same_voxels(tmp_path: Path) -> None:
    received = take(nifti(), tmp_path / "volume.nii")
    decoded = decode(Wanted(received.path, tmp_path / "voxels.npy", 120))
    assert decoded.modality is None
    volume = decoded.volume
    np.testing.assert_array_equal(volume.array, SMALL)
    np.testing.assert_array_equal(volume.affine, np.eye(4))


def test_a_refusal_of_the_reader_names_no_path(tmp_path: Path) -> None:
    path = tmp_path / "meier_anna.nii"
    path.write_bytes(nifti(np.full((4, 4, 4), np.nan, np.float32)))
    with pytest.raises(VolumeError, match=r"voxel \[0, 0, 0\]") as caught:
        decode(Wanted(path, tmp_path / "voxels.npy", 64))
    assert "meier" not in str(caught.value)


def test_the_reader_gets_none_of_the_servers_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DROPGEN_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "hidden")
    assert "hidden" not in _environment().values()


def test_a_file_that_needs_more_than_its_limits_kills_its_reader_only(tmp_path: Path) -> None:
    path = tmp_path / "volume.nii"
    with path.open("wb") as file:
        file.write(patched(42, "<3h", 700, 700, 700)[:352])
        file.truncate(352 + 4 * 700**3)
    with pytest.raises(TooLargeError):  # 343 million voxels, where 1 is promised
        decode(Wanted(path, tmp_path / "voxels.npy", 1))
