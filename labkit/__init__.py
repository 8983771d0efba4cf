"""labkit: four reports on training and running language models, each retold by one notebook you can rerun."""

__version__ = "0.1.0"
