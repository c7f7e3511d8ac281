"""What the experiments share: paired seeds, tuned rates, a journal of runs, tables and pictures."""
