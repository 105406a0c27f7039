"""Records and scores of a run -> whether the policy still reads its input, and when to stop."""
