"""The node's door for programs and people: JSON-RPC 2.0 over HTTP and WebSocket, metrics, health, a page.

``protocol`` and ``render`` are pure; ``schema`` turns typed functions into methods; ``methods_*`` are
those functions, by group; ``feed`` follows the chain and wakes who waits; ``subscriptions`` and
``session`` serve one WebSocket; ``server`` puts them behind starlette and ``listener`` behind a socket.
All of it reads the node through :class:`node.rpc.backend.Backend` and nothing here signs anything (R77).
"""
