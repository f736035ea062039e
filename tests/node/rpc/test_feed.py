"""What the feed holds in memory is bounded, and what has just become final is there without the disk."""

from pathlib import Path

import pytest

from node.rpc import feed, node_backend
from node.rpc.feed import Feed
from tests.node.rpc.support import make_node


def test_recent_blocks_are_bounded_by_what_is_in_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "RECENT_TRANSACTIONS_MAX", 20)
    with make_node(tmp_path) as node:
        node.commit([node.money()])
        for number in range(0, 28, 4):
            node.commit([node.transfer(number + part) for part in range(4)])
        views = Feed(node.backend)
        for height in range(1, 9):
            view = views.view(height)
            assert view is not None
            assert (view.height, view.size) == (height, 2 if height == 1 else 8)
        assert list(views._recent) == [7, 8]
        assert views._recent_size == 16
        assert views.view(8) is views.view(8)
        older = views.view(2)
        assert older is not None
        assert older.height == 2


def test_a_block_that_has_just_become_final_reads_as_the_disk_has_it(tmp_path: Path) -> None:
    with make_node(tmp_path) as node:
        node.commit([node.money()])
        fresh = node.backend.final.committed(1)
        assert fresh is node.backend.final.committed(1)
        for number in range(node_backend.FRESH_BLOCKS_MAX):
            node.commit([node.transfer(number)])
        stored = node.backend.final.committed(1)
        assert stored is not fresh
        assert stored == fresh
