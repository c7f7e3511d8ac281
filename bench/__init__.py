"""How fast a training step's loss is, forward and backward, against peers and a copy's time."""
