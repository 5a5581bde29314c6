"""Commands that are longer than a function; ``fxcompress.cli`` lists all."""
