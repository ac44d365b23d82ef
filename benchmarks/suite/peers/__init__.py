"""The same flows in several libraries: a file for each, and in it a function for each workload.

A function takes sizes and returns the weights and a score. In torch they are a list of parameters and a function of
events x, (batch, dim); in JAX a tree of arrays and a function of the tree and x. The score has a number for each event:
the log density, or log|det J| - |y|^2 / 2 for a layer that maps x to y. A step of training is the gradient of minus its
mean. ``maf_both_ways`` returns the weights and two maps instead, the one that is one pass and its inverse; ``guides``
returns, for each way to take steps of variational inference, a function and how many steps it takes.

What a file does not have, the library does not offer. All networks have ReLUs and two hidden layers or one.
"""
