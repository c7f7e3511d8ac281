"""The training of the PowerGrad Transform's paper (arXiv 2111.12495) on ImageNet.

`torchrun --nproc-per-node 8 -m examples.imagenet --data /folder/of/imagenet` on several GPUs,
`python -m examples.imagenet ...` on one or on a CPU, `... --fake` for a minute on made-up images.
"""
