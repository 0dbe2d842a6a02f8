"""What a frozen encoder's features are worth: features, and accuracy under named protocols."""

from lib.evaluate.features import Features, features
from lib.evaluate.probes import PROTOCOLS, Probe, evaluate

__all__ = ["PROTOCOLS", "Features", "Probe", "evaluate", "features"]
