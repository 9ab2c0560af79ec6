"""From compute, sites, links and data to a run: laws, a cost model and a search. No torch here: it answers at once."""

from isthmus.train.planner.predict import Prediction, predict

__all__ = ["Prediction", "predict"]
