"""`isthmus plan`: the command line of train/planner."""

import os

# Before numpy and scipy are loaded: their threads cost more than they bring on vectors of a few hundred numbers, and on
# a busy machine ten times as much.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
