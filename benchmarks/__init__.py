"""Measurements: coverage of public models, latency, and the compiler's own speed.

Each module prints a table, writes a record (with facts of the machine: cores, torch version; no paths, no
host names), and has ``markdown(record)``, the part of ``docs/benchmarks.md`` made of it. ``python -m
benchmarks`` runs what ``plan.py`` names.
"""
