"""From compute, sites, links and data to a run: laws, a cost model and a search. No torch here: it answers at once."""

from isthmus.train.planner.accelerators import ACCELERATORS, Accelerator
from isthmus.train.planner.cluster import Cluster, Link, Site
from isthmus.train.planner.layout import Layout, Sync
from isthmus.train.planner.predict import Prediction, predict
from isthmus.train.planner.shape import Shape, gpt, shape_of

__all__ = [
    "ACCELERATORS",
    "Accelerator",
    "Cluster",
    "Layout",
    "Link",
    "Prediction",
    "Shape",
    "Site",
    "Sync",
    "gpt",
    "predict",
    "shape_of",
]
