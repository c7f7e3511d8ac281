"""Which character is it, in a typeface never seen? `python -m examples.characters`."""
