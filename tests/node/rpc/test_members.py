"""What the RPC says of nodes beside the validators."""

from tests.node.rpc.support import Server, TestNode


async def test_consensus_validators_lists_all_nodes_with_their_standing(node: TestNode, server: Server) -> None:
    answer = await server.result("consensus_validators")
    listed = {item["name"]: item for item in answer["nodes"]}
    for validator in answer["validators"]:
        assert listed[validator["name"]] == {
            **validator,
            "status": "validator",
            "address": "",
            "revokedCertificates": [],
        }
