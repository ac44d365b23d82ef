"""The contract that all layers keep, in ``contract.py``, and the layers, each kind in a file."""
