"""Trajectories without log-probabilities -> what their behaviour policy would have said of them."""
