"""Measurements: coverage of public models, latency, and the compiler's own speed.

Each script prints a table and writes ``benchmarks/results/<name>.json`` (with facts of the machine: cores,
torch version; no paths, no host names).
"""
