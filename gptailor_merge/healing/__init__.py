"""Training of a tailored model, after everything else."""
