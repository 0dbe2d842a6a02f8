"""What a frozen encoder's features are worth: features, and accuracy under named protocols."""

from lib.evaluate.accuracy import evaluate
from lib.evaluate.features import Features, encode, features
from lib.evaluate.probes import PROTOCOLS, Probe, linear_accuracy

__all__ = [
    "PROTOCOLS",
    "Features",
    "Probe",
    "encode",
    "evaluate",
    "features",
    "linear_accuracy",
]
