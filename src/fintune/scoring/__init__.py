"""Label probabilities, metrics and calibration, the same for every kind of model."""
