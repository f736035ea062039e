"""A network's beginnings and its homes on disk: certificates, genesis, folders, local processes."""
