"""Adapters for other libraries, imported only when asked for."""
