"""Initial values of the mixers' gates from the teacher's attention: a step of its own before stage 1."""

from hybridattn.calibration.calibrate import SEQUENCES, calibrate

__all__ = ["SEQUENCES", "calibrate"]
