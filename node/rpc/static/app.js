// Shows the node's newest block; follows the chain over the WebSocket and comes back when it breaks.

const show = (id, text) => { document.getElementById(id).textContent = text; };
const RECONNECT_MS = 2000;

function showHead(block) {
  show("height", block.height.toLocaleString());
  show("time", new Date(block.timeMs).toLocaleTimeString());
  show("proposer", block.proposer);
  show("hash", block.hash);
}

function onResult(status) {
  show("node", status.node);
  show("network", status.network);
  show("chain", status.chainId);
  show("peers", status.peers);
  showHead(status.head);
}

function follow() {
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  const socket = new WebSocket(`${scheme}://${location.host}/ws`);
  const ask = (id, method, params) => socket.send(JSON.stringify({ jsonrpc: "2.0", id, method, params }));
  socket.onopen = () => {
    show("state", "live");
    ask(1, "chain_status", {});
    ask(2, "subscribe", { topic: "blocks" });
  };
  socket.onmessage = (message) => {
    const content = JSON.parse(message.data);
    if (content.id === 1 && content.result) onResult(content.result);
    for (const block of content.params?.items ?? []) showHead(block);
  };
  socket.onclose = () => {
    show("state", "not connected, trying again");
    setTimeout(follow, RECONNECT_MS);
  };
}

follow();
