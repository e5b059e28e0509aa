"""Other libraries: their checkpoints and their models. Each module is imported only when asked for."""
