"""Models: encoders, projectors, the splice, low-rank updates, what is trained, and their assembly from parts."""
