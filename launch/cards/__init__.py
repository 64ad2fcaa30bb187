"""The parts of a model card, each from what the run folder says and nothing else."""
