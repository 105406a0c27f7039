"""Trajectories of a whole dataset -> labels: group, split, distribution, age, why left out."""

from starpo_trace.convert.curation.curate import curate_trajectories
from starpo_trace.convert.curation.describe import describe_trajectories
from starpo_trace.convert.curation.summary import summarise_curation

__all__ = ["curate_trajectories", "describe_trajectories", "summarise_curation"]
