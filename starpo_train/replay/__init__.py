"""Held-out logged successes + a checkpoint -> how often it would act as was recorded."""
