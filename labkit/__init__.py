"""labkit: four reports on training and running language models, each retold by one notebook you can rerun."""

import logging

__version__ = "0.1.0"

# transformers imports torchao whatever is loaded, and torchao reports each GPU kernel that a machine without one lacks.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
