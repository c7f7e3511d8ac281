"""Cross-entropy against the PowerGrad Transform on scikit-learn's handwritten digits.

`python -m examples.digits` trains the same small network with both losses over paired seeds,
prints what came out and draws the training curves.
"""
