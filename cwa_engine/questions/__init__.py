"""What a run may be asked beside its rankings and their damage."""
