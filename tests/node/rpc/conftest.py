"""A node and a running server for each test."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.node.rpc.support import Server, TestNode, make_node, serving


@pytest.fixture
def node(tmp_path: Path) -> Iterator[TestNode]:
    with make_node(tmp_path) as made:
        yield made


@pytest.fixture
async def server(node: TestNode) -> AsyncIterator[Server]:
    async with serving(node) as running:
        yield running
