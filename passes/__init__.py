"""The graph rewrites: one pass per file. Imported as ``fxcompress.passes``."""

if __name__ != "fxcompress.passes":
    raise ImportError("the folder `passes` is the package `fxcompress.passes`: import it under that name")
