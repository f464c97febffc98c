"""What a user chooses by name, one function each: metrics, perturbations and controls. Imports without torch."""
