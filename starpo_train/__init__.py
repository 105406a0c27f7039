"""Fine-tune on trajectory datasets offline with StarPO, and gate the release."""
