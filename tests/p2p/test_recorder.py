"""The record of frames: whole frames however they were cut, both directions apart, and no record with gaps."""

import os
import struct
from pathlib import Path

import pytest

from consensus.ledger.errors import LocalError, StorageError
from p2p.frames import FrameKind, encode_frame
from p2p.recorder import RECEIVED, SENT, FrameRecorder


def read(path: Path) -> list[tuple[bytes, int, bytes]]:
    data, place, found = path.read_bytes(), 0, []
    while place < len(data):
        size, direction, connection = struct.unpack_from(">IcI", data, place)
        found.append((direction, connection, data[place + 9 : place + 4 + size]))
        place += 4 + size
    return found


def test_frames_are_put_together_whatever_the_pieces(tmp_path: Path) -> None:
    path = tmp_path / "record"
    recorder = FrameRecorder(path)
    first, second = recorder.tap(), recorder.tap()
    one = encode_frame(FrameKind.CONSENSUS, b"one")
    two = encode_frame(FrameKind.PRIVATE_MESSAGE, b"a marker across pieces")
    for byte in one + two:
        first.take(SENT, bytes([byte]))
        second.take(RECEIVED, memoryview(bytes([byte])))
    first.take(RECEIVED, two + one + two[:3])
    assert sorted(read(path)) == sorted(
        [(SENT, 1, one), (SENT, 1, two), (RECEIVED, 2, one), (RECEIVED, 2, two), (RECEIVED, 1, two), (RECEIVED, 1, one)]
    )
    assert path.stat().st_mode & 0o777 == 0o600
    recorder.close()


def test_a_restart_goes_on_in_the_same_file(tmp_path: Path) -> None:
    frame = encode_frame(FrameKind.KEEP_ALIVE, b"")
    for _ in range(2):
        recorder = FrameRecorder(tmp_path / "record")
        recorder.tap().take(SENT, frame)
        recorder.close()
    (first, second) = read(tmp_path / "record")
    assert first[2] == second[2] == frame
    assert first[1] != second[1]


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(LocalError) as caught:
        FrameRecorder(tmp_path / "missing" / "record")
    assert caught.value.code == "file_error"


def test_a_record_that_cannot_be_written_stops_the_node(tmp_path: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    recorder = FrameRecorder(Path("/dev/full"))
    with pytest.raises(StorageError) as caught:
        recorder.tap().take(SENT, encode_frame(FrameKind.KEEP_ALIVE, b""))
    assert caught.value.code == "disk_failed"
    recorder.close()
