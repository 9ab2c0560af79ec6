"""isthmus pre-trains one language model across several data centers that are joined by thin links."""

__version__ = "0.1.0"
