"""The graph: capture, the compiled module, and the normalized view of its operator calls."""
