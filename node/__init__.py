"""One node: storage, the chain on it, mempool, driver, catch-up, RPC, and the program that holds them."""
