"""The commands of ``fxcompress``, one per file: a function that adds its parser, and one that runs it.

    def add_inspect(commands): ...; parser.set_defaults(run=run_inspect)
    def run_inspect(options) -> Found: ...

A command imports torch and the rest of fxcompress when it runs, not when its parser is made.
"""
