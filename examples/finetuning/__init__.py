"""A small language model of one text learns another: `python -m examples.finetuning`."""
