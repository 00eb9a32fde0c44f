"""Trainers, checkpoints that survive, callbacks and tracking."""
