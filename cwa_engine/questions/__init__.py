"""What a run may be asked beside its rankings and the damage by its critical sets: one module for each question."""
