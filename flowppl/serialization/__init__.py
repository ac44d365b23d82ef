"""Trained flows, guides and fits as files: one format, whichever language trained them and whichever is to use them.

The file is in the safetensors format: arrays by name and two texts, no code. The names are ``weights.``, ``base.``,
``guide.`` or ``fit.`` followed by the path in the tree; those of weights are those of a ``state_dict`` in Pyro.

One text, the metadata entry ``sha256``, stands first in the file. It is the SHA-256 digest, in hexadecimal, of the
whole file with 64 zeros in the place of the digest. Files of versions that wrote no digest do not have the entry.

The other text, the metadata entry ``flowppl``, is JSON with these entries and no others:

==============  ====================================================================================
``format``      the version of this layout, an integer
``flowppl``     the version of the package that wrote the file
``backend``     "pyro" or "numpyro", the language that it was saved from
``kind``        "flow", "transform", "mixture", "guide", "fit", "dequantized" or "pixelcnn"; a "checkpoint" has another
                layout
``bijection``   the bijection: the name of its class as ``type``, and its fields, some of them such objects again;
                of a guide its flow, without the affine layers, whose weights are there under the next numbers; of
                "mixture" that of :mod:`flowppl.inference.density_mixture`, of "dequantized" and "pixelcnn" such an
                object of :mod:`flowppl.discrete`
``base``        the base distribution: its name as ``type``, and its arguments, null for each array; or null; of
                "dequantized" an object of these, for those of ``flow`` and ``noise`` that have one; of "mixture" for
                those flows that have one, under their numbers
``guide``       of a guide or fit, else null: its ``latents``, from "0" on as they lie in the unconstrained vector, each
                with its name, shape in unconstrained space, support, event_dim, plates (name, dim, size) and, if
                members are masked, its mask; the types of ``other_sites`` of the model, whether it ``needs_args``,
                the ``prefix`` of parameters
``fit``         of a fit, else null: its ``losses``, the ``checks`` (the first is that of the result), why it
                ``stopped``, the ``params`` of the model and, from NumPyro, its ``rng_key`` and ``rng_impl``
==============  ====================================================================================

A support is written like a base distribution, under a name that both languages have if both map to it, from the same
unconstrained numbers to the same values.
"""

from flowppl.serialization.file import BFLOAT16, check_entries, check_target, read_file, write_file
from flowppl.serialization.names import BASES, CLASSES, SUPPORTS, check_base, check_support
from flowppl.serialization.trained import absent_model, load, save

__all__ = [
    "BASES",
    "BFLOAT16",
    "CLASSES",
    "SUPPORTS",
    "absent_model",
    "check_base",
    "check_entries",
    "check_support",
    "check_target",
    "load",
    "read_file",
    "save",
    "write_file",
]
