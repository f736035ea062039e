"""What a node keeps on disk: one LevelDB, one batch a block."""
